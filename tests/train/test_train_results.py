"""What a training writes opens in idefics, transformers and peft, with equal logits."""

import pytest
import torch
from safetensors.torch import load_file

from idefics.errors import BadSetting
from idefics.models import read_checkpoint
from idefics.train.result import write_result
from idefics.train.settings import TrainSettings
from idefics.train.trainable import make_trainable
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
    settings = TrainSettings(data="x", model=str(folder), out=out, **changes)
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
    trainee = learn_at_random(tmp_path / "base", tmp_path / "out", targets="all", rank=3, alpha=5)
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
    names = [
        set().union(*(load_file(file) for file in (tmp_path / which).glob("*.safetensors")))
        for which in ("base", "out")
    ]
    assert names[0] == names[1]
    opened, report = type(reference).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same_logits(tiny.compute_reference_logits(opened.eval(), prompts), expected)


@pytest.mark.parametrize("family", ["idefics", "idefics2", "idefics3"])
def test_modules_to_save_are_learned_wholly_and_open_here_and_in_peft(family, tmp_path):
    peft = pytest.importorskip("peft")
    reference, base = tiny.make_reference_and_model(tmp_path / "base", RAW_BY_FAMILY[family])
    modules = ("lm_head", "embed_tokens")
    trainee = learn_at_random(tmp_path / "base", tmp_path / "out", modules_to_save=modules)
    names = [name for name in trainee.learned.by_name if "lora" not in name and "alpha" not in name]
    assert {name.split(".")[-2] for name in names} >= {*modules}
    prompts = [tiny.make_random_prompt(base, scene) for scene in SCENES]
    expected = tiny.compute_logits(trainee.model, prompts)
    loaded = tiny.load_checkpoint(tmp_path / "base", adapter=tmp_path / "out")
    assert_same_logits(tiny.compute_logits(loaded, prompts), expected)
    wrapped = peft.PeftModel.from_pretrained(reference, tmp_path / "out").eval()
    assert_same_logits(tiny.compute_reference_logits(wrapped, prompts), expected)


@pytest.mark.parametrize(
    ("targets", "hint"),
    [
        ("q_proj", r"of no module \(did you mean '\.\*q_proj'\?\): give text, "),
        ("lm_head", r"of no module \(modules_to_save=lm_head learns it wholly\): give"),
        ("heads", "of no module: give text, "),
    ],
)
def test_targets_that_match_nothing_say_what_would(targets, hint):
    model = tiny.make_random_model(tiny.IDEFICS3)
    with pytest.raises(BadSetting, match=f"targets is '{targets}', which is the whole name {hint}"):
        make_trainable(model, TrainSettings(data="x", model="x", out="x", targets=targets))


@pytest.mark.parametrize(
    ("family", "modules", "message"),
    [
        ("tied", ("embed_tokens",), "embedding and head of this model are one weight"),
        ("idefics3", ("word_head",), "modules_to_save has 'word_head', which is the end of no module's name"),
    ],
)
def test_modules_that_cannot_be_saved_are_refused(family, modules, message, tmp_path):
    tiny.make_reference_and_model(tmp_path / "base", RAW_BY_FAMILY[family])
    with pytest.raises(BadSetting, match=message):
        learn_at_random(tmp_path / "base", tmp_path / "out", modules_to_save=modules)
