"""The training forward: packed rows give the losses and gradients of each row by itself, and of transformers."""

import pytest
import torch

from idefics.train.forward import compute_token_losses
from idefics.train.packing import pack_rows
from idefics.train.pictures import PictureStore
from models import tiny
from train.row_makers import make_row

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


def make_rows(model):
    scenes = [scene.replace("2", "1") for scene in SCENES] if model.config.cross_attention else SCENES
    return [make_row(model, scene) for scene in scenes]


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


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_rows_equal_each_row_by_itself(family, tmp_path):
    model = make_model(family)
    rows = make_rows(model)
    losses, gradients = compute_gradients(model, [rows], tmp_path)
    expected_losses, expected_gradients = compute_gradients(model, [[row] for row in rows], tmp_path)
    torch.testing.assert_close(losses, expected_losses, atol=1e-5, rtol=1e-5)
    largest = max(one.abs().max().item() for one in expected_gradients.values())
    for name, expected in expected_gradients.items():
        torch.testing.assert_close(gradients[name], expected, atol=1e-6 * largest, rtol=1e-4, msg=name)
