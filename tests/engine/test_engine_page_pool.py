"""The page pool as a state machine, and the keys of the prefix cache."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.fakes import check_page_pool, make_prompt, make_tiles
from idefics.engine.page_pool import PAGE_SIZE, PageContent, PageKeys, PagePool


class PagePoolMachine(RuleBasedStateMachine):
    """Sequences allocate, share, cache, find and release pages in any order."""

    def __init__(self):
        super().__init__()
        self.pages, self.rows, self.names = PagePool(9), [], 0

    @precondition(lambda self: self.pages.num_free_pages)
    @rule()
    def allocate_pages(self):
        num_free_pages = self.pages.num_free_pages
        page = self.pages.allocate()
        assert page and not any(page in row for row in self.rows)
        assert self.pages.num_free_pages == num_free_pages - 1
        self.rows.append([page])

    @precondition(lambda self: self.rows and self.pages.num_free_pages)
    @rule(data=st.data())
    def append_page(self, data):
        data.draw(st.sampled_from(self.rows)).append(self.pages.allocate())

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def share_row(self, data):
        row = data.draw(st.sampled_from(self.rows))
        self.pages.add_references(row)
        self.rows.append(list(row))

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), name=st.binary(min_size=1, max_size=1))
    def add_to_prefix_cache(self, data, name):
        page = data.draw(st.sampled_from(data.draw(st.sampled_from(self.rows))))
        self.pages.add_to_prefix_cache(page, PageContent(name, b"", ((name[0], ""),)))

    @rule(names=st.lists(st.binary(min_size=1, max_size=1), max_size=3))
    def match_prefix(self, names):
        found = self.pages.match_prefix(names)
        if found:
            self.pages.add_references(found)
            self.rows.append(found)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def release_row(self, data):
        number = data.draw(st.integers(0, len(self.rows) - 1))
        self.pages.release(self.rows.pop(number))

    @rule()
    def clear_prefix_cache(self):
        self.pages.clear_prefix_cache()

    @invariant()
    def every_page_has_its_owners_or_none(self):
        check_page_pool(self.pages)
        for page in range(1, 9):
            assert self.pages.ref_counts[page] == sum(row.count(page) for row in self.rows)


TestPagePool = PagePoolMachine.TestCase
TestPagePool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)


def test_eviction_is_least_recently_used_and_last_pages_first():
    pages = PagePool(5)
    row, other = [pages.allocate(), pages.allocate()], [pages.allocate()]
    for number, page in enumerate([*row, *other]):
        pages.add_to_prefix_cache(page, PageContent(bytes([number]), b"", ()))
    pages.release(row)
    pages.release(other)
    assert len(pages._evictable_pages) == 3
    pages.allocate()  # the one that was never used
    assert pages.allocate() == row[1]
    assert pages.match_prefix([b"\0", b"\1"]) == [row[0]]
    pages.add_references([row[0]])  # used again
    pages.release([row[0]])
    assert pages.allocate() == other[0]
    assert pages.allocate() == row[0]
    assert pages.num_free_pages == 0 == len(pages._evictable_pages)


def compute_page_keys(prompt, kind="inline", ids=None, length=None):
    ids = prompt.ids if ids is None else ids
    return PageKeys(prompt, kind == "cross_attention").full_page_keys(
        ids, len(ids) if length is None else length
    )


def test_keys_are_of_full_pages():
    ids = list(range(40))
    prompt = make_prompt("inline", *ids)
    assert len(compute_page_keys(prompt)) == 2
    assert len(compute_page_keys(prompt, length=16)) == 1
    assert len(compute_page_keys(prompt, length=15)) == 0


def test_equal_prefixes_have_equal_keys_and_others_have_not():
    one, other = (
        compute_page_keys(make_prompt("inline", *range(48))),
        compute_page_keys(make_prompt("inline", *range(32), *range(1, 17))),
    )
    assert one[:2] == other[:2] and one[2] != other[2]
    moved = compute_page_keys(make_prompt("inline", *range(16, 32)))
    assert moved[0] != one[1], "a page counts with what stands before it"


@pytest.mark.parametrize("kind", ["inline", "cross_attention"])
def test_another_picture_is_another_key(kind):
    cat, dog = (
        compute_page_keys(make_prompt(kind, 3, make_tiles(name), *range(5, 30)), kind)
        for name in ("cat", "dog")
    )
    assert len(cat) == 1 and cat != dog
    assert cat == compute_page_keys(make_prompt(kind, 3, make_tiles("cat"), *range(5, 30)), kind)


def test_cross_attention_keys_include_the_visible_image():
    """The same ids, but after the end of a document tokens attend to no picture."""
    cat = make_tiles("cat")
    seen, unseen = (
        make_prompt("cross_attention", cat, 2, *range(5, 40)),
        make_prompt("cross_attention", cat, None, *range(5, 40)),
    )
    assert seen.ids == unseen.ids
    assert compute_page_keys(seen, "cross_attention")[0] != compute_page_keys(unseen, "cross_attention")[0]


def test_generated_tokens_attend_to_the_prompts_last_picture():
    cat = make_tiles("cat")
    first, second = (
        make_prompt("cross_attention", 3, cat, *range(5, 12)),
        make_prompt("cross_attention", 3, cat, *range(5, 40)),
    )
    assert compute_page_keys(first, "cross_attention", ids=second.ids) == compute_page_keys(
        second, "cross_attention"
    )


@given(before=st.integers(0, 40), frames=st.integers(1, 30), after=st.integers(0, 40))
def test_a_match_never_ends_within_a_picture(before, frames, after):
    prompt = make_prompt("inline", *[5] * before, make_tiles("wide", frames=frames), *[5] * after)
    pages = PageKeys(prompt, uses_cross_attention=False)
    for most in range(len(prompt) + 1):
        outside = pages.round_down_to_image_boundary(most)
        assert outside <= most
        assert not before < outside < before + 3 * frames
        if not before < most < before + 3 * frames:
            assert outside == most, "no more is given up than must be"


def test_partial_pages_match_their_common_prefix():
    pages, (one, other) = (
        PagePool(5),
        ([(n, "") for n in range(PAGE_SIZE)], [(n, "") for n in range(8)] + [(1, "cat")] * 4),
    )
    first, second = pages.allocate(), pages.allocate()
    pages.add_to_prefix_cache(first, PageContent(b"1", b"before", tuple(one)))
    pages.add_to_prefix_cache(second, PageContent(b"2", b"before", tuple(other)))
    assert pages.match_partial_page(b"before", one[:12]) == (first, 12)
    assert pages.match_partial_page(b"before", other) == (second, 12)
    assert pages.match_partial_page(b"before", [*other[:10], (1, "dog")]) == (second, 10)
    assert (
        pages.match_partial_page(b"before", [(9, "")]) == pages.match_partial_page(b"another", one) == (0, 0)
    )
    more = (*other, (5, ""))
    pages.add_to_prefix_cache(second, PageContent(b"3", b"before", more))
    assert pages.match_partial_page(b"before", [*more, (6, "")]) == (second, 13)
    check_page_pool(pages)
