"""The public names of `idefics.train`."""

import pytest

from idefics import train


def test_the_names_are_sorted_and_others_are_not_there():
    assert train.__all__ == sorted(train.__all__, key=str.casefold)
    assert dir(train) == sorted(train.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = train.nonsense


@pytest.mark.parametrize("name", train.__all__)
def test_the_names_are_explained(name):
    text = getattr(train, name).__doc__
    assert text and not text.startswith(f"{name}(")
