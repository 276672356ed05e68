"""Key rules: which tensors of a checkpoint become which of the model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idefics.errors import BrokenCheckpoint
from idefics.weights import KeyRules

RULES = KeyRules(
    ignore=(r"\.inv_freq$",),
    concat={
        "text.embed.weight": ("embed.weight", "embed.extra.weight"),
        "head.weight": ("head.weight", "extra.weight"),
    },
    rename=((r"^(layers|norm)\.", r"text.\1."), (r"^layers\.0", "never: the first rule wins")),
)


def test_old_names_become_ours():
    names = ["extra.weight", "head.weight", "embed.extra.weight", "embed.weight", "layers.0.q", "norm.weight"]
    assert RULES.source_names_by_target(names) == {
        "head.weight": ("head.weight", "extra.weight"),
        "text.embed.weight": ("embed.weight", "embed.extra.weight"),
        "text.layers.0.q": ("layers.0.q",),
        "text.norm.weight": ("norm.weight",),
    }


def test_ignored_names_are_left_out():
    assert RULES.source_names_by_target(["layers.0.inv_freq", "norm.b"]) == {"text.norm.b": ("norm.b",)}


def test_a_join_takes_the_parts_that_are_there():
    assert RULES.source_names_by_target(["embed.weight", "head.weight"]) == {
        "text.embed.weight": ("embed.weight",),
        "head.weight": ("head.weight",),
    }


def test_an_old_and_a_new_name_of_one_weight_are_a_contradiction():
    for names in (["norm.weight", "text.norm.weight"], ["text.embed.weight", "embed.weight"]):
        with pytest.raises(BrokenCheckpoint, match=f"{names[0]} and {names[1]}, which are the same weight"):
            RULES.source_names_by_target(names)


key_pieces = st.sampled_from(
    ["layers.0.q", "norm.weight", "embed.weight", "extra.weight", "head.weight", "x.y"]
)


@given(st.sets(key_pieces))
def test_renaming_is_idempotent(names):
    ours = RULES.source_names_by_target(names)
    again = RULES.source_names_by_target(ours)
    assert {new: (new,) for new in ours} == again


def test_no_rules_change_nothing():
    assert KeyRules().source_names_by_target(["b", "a"]) == {"b": ("b",), "a": ("a",)}
