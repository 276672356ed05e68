"""The training forward: packed rows give the losses and gradients of each row by itself, and of transformers."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from idefics.train import forward
from idefics.train.forward import compute_token_losses
from idefics.train.packing import pack_rows
from idefics.train.pictures import PictureStore
from idefics.train.settings import TrainSettings
from idefics.train.trainable import make_trainable
from models import tiny
from train.row_makers import make_row, row_of_prompt

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning:transformers")]
CONFIGS = {
    "idefics": tiny.IDEFICS1,
    "idefics2": tiny.IDEFICS2,
    "idefics3": tiny.IDEFICS3,
    "smolvlm": tiny.merge_config(tiny.IDEFICS3, model_type="smolvlm"),
}
# Of one picture, several, none; lengths that are padded together and apart; a picture at the end, and a document's.
SCENES = ("t1tttt", "tt1t2ttttttttttttttttttttttttttttttttttt", "ttttttt", "t1tte1ttttt", "1ttt")


def make_model(family):
    torch.manual_seed(0)
    return tiny.make_random_model(CONFIGS[family]).train()


def scenes_of(model):
    return [scene.replace("2", "1") for scene in SCENES] if model.config.cross_attention else SCENES


def make_rows(model):
    return [make_row(model, scene) for scene in scenes_of(model)]


def compute_gradients(model, row_lists, folder):
    model.zero_grad()
    store = PictureStore(model, folder)
    losses = []
    for rows in row_lists:
        out = compute_token_losses(model, pack_rows(rows), store).losses
        out.sum().backward()
        losses.append(out.detach())
    return torch.cat(losses), {
        name: torch.zeros_like(one) if one.grad is None else one.grad.clone()
        for name, one in model.named_parameters()
    }


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("family", CONFIGS)
def test_packed_rows_equal_each_row_by_itself(family, tmp_path):
    model = make_model(family).double()
    rows = make_rows(model)
    losses, gradients = compute_gradients(model, [rows], tmp_path)
    expected_losses, expected_gradients = compute_gradients(model, [[row] for row in rows], tmp_path)
    torch.testing.assert_close(losses, expected_losses, atol=1e-12, rtol=1e-12)
    largest = max(one.abs().max().item() for one in expected_gradients.values())
    for name, expected in expected_gradients.items():
        torch.testing.assert_close(gradients[name], expected, atol=1e-12 * largest, rtol=1e-12, msg=name)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("learns", [True, False])
def test_logits_computed_a_part_at_a_time_give_the_same_gradients(tmp_path, monkeypatch, learns):
    model = make_model("idefics").double()
    model.lm_head.requires_grad_(learns)
    rows = make_rows(model)
    sizes, logits = [], model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: sizes.append(len(hidden)) or logits(hidden))
    whole_losses, whole_gradients = compute_gradients(model, [rows], tmp_path)
    assert sizes == [1, len(whole_losses)]  # the first one only to see whether the head learns
    sizes.clear()
    monkeypatch.setattr(forward, "MAX_LOGITS_AT_ONCE", 3 * model.layout.vocab_size)
    losses, gradients = compute_gradients(model, [rows], tmp_path)
    assert max(sizes) == 3
    assert sum(sizes) == 1 + (2 if learns else 1) * len(
        losses
    )  # a head that learns again in the backward pass
    torch.testing.assert_close(losses, whole_losses, atol=1e-12, rtol=1e-12)
    for name, expected in whole_gradients.items():
        torch.testing.assert_close(gradients[name], expected, atol=1e-12, rtol=1e-12, msg=name)


@pytest.mark.usefixtures("float64")
def test_gradients_of_a_frozen_head_equal_those_of_one_that_learns(tmp_path):
    model = make_model("idefics").double()
    rows = make_rows(model)
    _, expected = compute_gradients(model, [rows], tmp_path)
    model.lm_head.requires_grad_(False)
    _, gradients = compute_gradients(model, [rows], tmp_path)
    for name, gradient in gradients.items():
        if name.startswith("lm_head."):
            assert not gradient.any()
        else:
            torch.testing.assert_close(gradient, expected[name], atol=1e-12, rtol=1e-12, msg=name)


@pytest.mark.parametrize("family", CONFIGS)
def test_losses_and_gradients_of_factors_equal_those_of_peft(family, tmp_path):
    peft = pytest.importorskip("peft")
    reference, model = tiny.make_reference_and_model(tmp_path / "model", CONFIGS[family])
    settings = TrainSettings(data="x", model="x", out=tmp_path / "out", targets="all", rank=3, alpha=5)
    learned = make_trainable(model, settings)
    model.double()
    config = learned.adapter_config
    wrapped = peft.get_peft_model(
        reference.double(), peft.LoraConfig(r=3, lora_alpha=5, target_modules=config.target_modules)
    )
    expected = {
        name.removeprefix("base_model.model.").replace(".default", ""): weight
        for name, weight in wrapped.named_parameters()
    }
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in learned.by_name.items():
            if "lora" in name:
                weight.normal_(std=0.2)
            expected[name].copy_(weight)
            expected[name].requires_grad_(True)
    assert expected.keys() - learned.by_name.keys() == {
        name for name, weight in expected.items() if not weight.requires_grad
    }
    prompts = [tiny.make_random_prompt(model, scene) for scene in scenes_of(model)]
    losses, _ = compute_gradients(model, [[row_of_prompt(one, 3, "row") for one in prompts]], tmp_path)
    inputs = tiny.make_reference_inputs(reference, prompts)
    logits = wrapped(**inputs).logits[:, -4:-1]  # transformers' own loss fails for Idefics 1
    loss = cross_entropy(logits.flatten(0, 1), inputs["input_ids"][:, -3:].flatten(), reduction="sum")
    loss.backward()
    assert losses.sum().item() == pytest.approx(loss.item(), rel=1e-6)
    largest = max(expected[name].grad.abs().max().item() for name in learned.by_name)
    for name, weight in learned.by_name.items():
        assert weight.dtype == expected[name].dtype == torch.float64
        # Norms are float32 in both.
        torch.testing.assert_close(weight.grad, expected[name].grad, atol=1e-6 * largest, rtol=1e-5, msg=name)
