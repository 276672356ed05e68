"""Every public name of `idefics.compat` is there, and names of newer and older guides are the same classes."""

import pytest
import torch

from compat.processors_tiny import make_smolvlm_tokenizer
from idefics import compat


@pytest.mark.parametrize("name", compat.__all__)
def test_every_name_is_there(name):
    assert getattr(compat, name).__name__


def test_names_that_are_one_class():
    for kind in ("Idefics2", "Idefics3", "SmolVLM"):
        assert getattr(compat, f"{kind}ImageProcessorFast") is getattr(compat, f"{kind}ImageProcessor")
    assert compat.BatchEncoding is compat.BatchFeature


def test_criteria_of_the_guides_end_answers():
    tokenizer = make_smolvlm_tokenizer()
    ids = torch.tensor([tokenizer("A cat. Four.").input_ids])
    assert compat.StopStringCriteria(tokenizer, "Four.")(ids, None).tolist() == [True]
    assert compat.StopStringCriteria(tokenizer, ["dog"])(ids, None).tolist() == [False]
    assert compat.MaxLengthCriteria(ids.shape[1])(ids, None)
    assert compat.EosTokenCriteria(int(ids[0, -1]))(ids, None).tolist() == [True]
    assert not compat.MaxTimeCriteria(60)(ids, None)
