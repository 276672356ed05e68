"""Pages and what they hold: one state each, whatever is done with them; keys that tell all that matters."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.fakes import picture, prompt
from idefics.engine.pages import PAGE, Content, Keys, Pages


class AnyUse(RuleBasedStateMachine):
    """Rows take, share, publish, find and release pages in any order."""

    def __init__(self):
        super().__init__()
        self.pages, self.rows, self.names = Pages(9), [], 0

    @precondition(lambda self: self.pages.room)
    @rule()
    def take(self):
        room = self.pages.room
        page = self.pages.take()
        assert page and not any(page in row for row in self.rows)
        assert self.pages.room == room - 1
        self.rows.append([page])

    @precondition(lambda self: self.rows and self.pages.room)
    @rule(data=st.data())
    def grow(self, data):
        data.draw(st.sampled_from(self.rows)).append(self.pages.take())

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def share(self, data):
        row = data.draw(st.sampled_from(self.rows))
        self.pages.share(row)
        self.rows.append(list(row))

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), name=st.binary(min_size=1, max_size=1))
    def publish(self, data, name):
        page = data.draw(st.sampled_from(data.draw(st.sampled_from(self.rows))))
        self.pages.publish(page, Content(name, b"", ((name[0], ""),)))

    @rule(names=st.lists(st.binary(min_size=1, max_size=1), max_size=3))
    def find(self, names):
        found = self.pages.find(names)
        if found:
            self.pages.share(found)
            self.rows.append(found)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def release(self, data):
        number = data.draw(st.integers(0, len(self.rows) - 1))
        self.pages.release(self.rows.pop(number))

    @rule()
    def forget(self):
        self.pages.forget()

    @invariant()
    def every_page_has_its_owners_or_none(self):
        self.pages.check()
        for page in range(1, 9):
            assert self.pages.owners[page] == sum(row.count(page) for row in self.rows)


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


def test_the_longest_unused_page_goes_first_and_ends_before_beginnings():
    pages = Pages(5)
    row, other = [pages.take(), pages.take()], [pages.take()]
    for number, page in enumerate([*row, *other]):
        pages.publish(page, Content(bytes([number]), b"", ()))
    pages.release(row)
    pages.release(other)
    assert pages.kept == 3
    pages.take()  # the one that was never used
    assert pages.take() == row[1]
    assert pages.find([b"\0", b"\1"]) == [row[0]]
    pages.share([row[0]])  # asked for again
    pages.release([row[0]])
    assert pages.take() == other[0]
    assert pages.take() == row[0]
    assert pages.room == 0 == pages.kept


def keys(asked, kind="text", ids=None, length=None):
    ids = asked.ids if ids is None else ids
    return Keys(asked, kind == "beside").upto(ids, len(ids) if length is None else length)


def test_keys_are_of_full_pages():
    ids = list(range(40))
    asked = prompt("text", *ids)
    assert len(keys(asked)) == 2
    assert len(keys(asked, length=16)) == 1
    assert len(keys(asked, length=15)) == 0


def test_equal_beginnings_have_equal_keys_and_others_have_not():
    one, other = keys(prompt("text", *range(48))), keys(prompt("text", *range(32), *range(1, 17)))
    assert one[:2] == other[:2] and one[2] != other[2]
    moved = keys(prompt("text", *range(16, 32)))
    assert moved[0] != one[1], "a page counts with what stands before it"


@pytest.mark.parametrize("kind", ["text", "beside"])
def test_another_picture_is_another_key(kind):
    cat, dog = (keys(prompt(kind, 3, picture(name), *range(5, 30)), kind) for name in ("cat", "dog"))
    assert len(cat) == 1 and cat != dog
    assert cat == keys(prompt(kind, 3, picture("cat"), *range(5, 30)), kind)


def test_beside_the_text_what_is_seen_counts():
    """The same ids, but after the end of a document nothing is seen."""
    cat = picture("cat")
    seen, unseen = prompt("beside", cat, 2, *range(5, 40)), prompt("beside", cat, None, *range(5, 40))
    assert seen.ids == unseen.ids
    assert keys(seen, "beside")[0] != keys(unseen, "beside")[0]


def test_an_answer_sees_what_the_prompts_end_saw():
    cat = picture("cat")
    first, second = prompt("beside", 3, cat, *range(5, 12)), prompt("beside", 3, cat, *range(5, 40))
    assert keys(first, "beside", ids=second.ids) == keys(second, "beside")


@given(before=st.integers(0, 40), frames=st.integers(1, 30), after=st.integers(0, 40))
def test_a_match_never_ends_within_a_picture(before, frames, after):
    asked = prompt("text", *[5] * before, picture("wide", frames=frames), *[5] * after)
    pages = Keys(asked, beside=False)
    for most in range(len(asked) + 1):
        outside = pages.outside(most)
        assert outside <= most
        assert not before < outside < before + 3 * frames
        if not before < most < before + 3 * frames:
            assert outside == most, "no more is given up than must be"


def test_a_page_serves_as_far_as_it_goes():
    pages, (one, other) = (
        Pages(5),
        ([(n, "") for n in range(PAGE)], [(n, "") for n in range(8)] + [(1, "cat")] * 4),
    )
    first, second = pages.take(), pages.take()
    pages.publish(first, Content(b"1", b"before", tuple(one)))
    pages.publish(second, Content(b"2", b"before", tuple(other)))
    assert pages.partly(b"before", one[:12]) == (first, 12)
    assert pages.partly(b"before", other) == (second, 12)
    assert pages.partly(b"before", [*other[:10], (1, "dog")]) == (second, 10)
    assert pages.partly(b"before", [(9, "")]) == pages.partly(b"another", one) == (0, 0)
    more = (*other, (5, ""))
    pages.publish(second, Content(b"3", b"before", more))
    assert pages.partly(b"before", [*more, (6, "")]) == (second, 13)
    pages.check()
