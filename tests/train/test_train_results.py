"""What a training writes opens in idefics, transformers and peft, with equal logits."""

import pytest
import torch

from idefics.models import read_checkpoint
from idefics.train.result import write_result
from idefics.train.settings import TrainSettings
from idefics.train.trainee import load_trainee
from models import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]
RAW_BY_FAMILY = {
    "idefics": tiny.IDEFICS1,
    "idefics-vector": {**tiny.IDEFICS1, "alpha_type": "vector"},
    "idefics2": tiny.IDEFICS2,
    "idefics3": tiny.IDEFICS3,
    "smolvlm": {**tiny.IDEFICS3, "model_type": "smolvlm"},
    "tied": tiny.merge_config(
        tiny.IDEFICS3, tie_word_embeddings=True, text_config={"tie_word_embeddings": True}
    ),
}
SCENES = ["tt1tt", "t", "1tt1t"]


def learn_at_random(folder, out, **changes):
    """A model in which what learns has random values."""
    settings = TrainSettings(data="x", model=str(folder), out=out, rank=3, alpha=5, **changes)
    trainee = load_trainee(read_checkpoint(folder), settings)
    torch.manual_seed(4)
    with torch.no_grad():
        for weight in trainee.learned.by_name.values():
            weight.add_(0.2 * torch.randn(weight.shape))
    write_result(trainee, out)
    trainee.model.eval()
    return trainee


def assert_same_logits(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=3e-4, rtol=3e-4)


@pytest.mark.parametrize("family", RAW_BY_FAMILY)
def test_an_adapter_opens_here_and_in_peft(family, tmp_path):
    peft = pytest.importorskip("peft")
    reference, base = tiny.make_reference_and_model(tmp_path / "base", RAW_BY_FAMILY[family])
    trainee = learn_at_random(tmp_path / "base", tmp_path / "out", targets="all")
    prompts = [tiny.make_random_prompt(base, scene) for scene in SCENES]
    expected = tiny.compute_logits(trainee.model, prompts)
    before = tiny.compute_logits(base, prompts)
    assert max((one - other).abs().max() for one, other in zip(expected, before, strict=True)) > 0.1
    loaded = tiny.load_checkpoint(tmp_path / "base", adapter=tmp_path / "out")
    assert_same_logits(tiny.compute_logits(loaded, prompts), expected)
    wrapped = peft.PeftModel.from_pretrained(reference, tmp_path / "out").eval()
    assert_same_logits(tiny.compute_reference_logits(wrapped, prompts), expected)


@pytest.mark.parametrize("family", RAW_BY_FAMILY)
def test_a_full_checkpoint_opens_here_and_in_transformers(family, tmp_path):
    pytest.importorskip("transformers")
    raw = RAW_BY_FAMILY[family]
    reference, base = tiny.make_reference_and_model(tmp_path / "base", raw)
    trainee = learn_at_random(tmp_path / "base", tmp_path / "out", method="full")
    prompts = [tiny.make_random_prompt(base, scene) for scene in SCENES]
    expected = tiny.compute_logits(trainee.model, prompts)
    assert_same_logits(tiny.compute_logits(tiny.load_checkpoint(tmp_path / "out"), prompts), expected)
    opened, report = type(reference).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_logits(tiny.compute_reference_logits(opened.eval(), prompts), expected)
