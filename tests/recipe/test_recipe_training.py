"""The trainer: attention equals the package's, training resumes, checkpoints load."""

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import idefics
from idefics.nn.attention import DenseAttn, LayerCrossKV
from picturebook import draw_scene, sample_scene
from picturebook.drawing import FONT_PATH
from recipe import training
from recipe.attention import SupervisedCrossAttention
from recipe.batches import iterate_batches
from recipe.checkpoints import RECIPE_BY_NAME, write_weights
from recipe.optimizer import Muon, orthogonalize, set_learning_rate

DEMO = Path(idefics.__file__).parent / "demo"
needs_font = pytest.mark.skipif(not FONT_PATH.is_file(), reason="needs the package fonts-noto-color-emoji")

ROWS, LENGTH, HEADS, SIZE, FEATURES_PER_IMAGE = 5, 7, 2, 4, 3


@pytest.mark.parametrize(
    "pictures", [[1, 1, 1, 1, 1], [2, 1, 4, 3, 1], [0, 2, 0, 1, 0], [4, 0, 0, 0, 4], [0, 0, 0, 0, 1]]
)
def test_rows_attend_only_to_their_own_images(pictures):
    """As with `DenseAttn`, which masks all pictures: a token attends to the latest one of its sequence."""
    sees, first = torch.full((ROWS, LENGTH), -1), 0
    for row, number in enumerate(pictures):
        for index in range(number):
            sees[row, 1 + index :] = first + index
        first += number
    keys, values = torch.randn(2, first, FEATURES_PER_IMAGE, HEADS, SIZE)
    q = torch.randn(ROWS * LENGTH, HEADS, SIZE)
    memory = [LayerCrossKV(keys, values)]
    expected = DenseAttn(ROWS, memory, sees.flatten()).cross_attention(0, q)
    torch.testing.assert_close(
        SupervisedCrossAttention(ROWS, memory, sees.flatten()).cross_attention(0, q), expected
    )
    assert (expected[sees.flatten() < 0] == 0).all()


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_orthogonalised_updates_are_nearly_orthogonal(shape):
    """All singular values are near one; five steps are known to leave 0.7 to 1.2."""
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape) * 100))
    assert values.max() < 1.25
    assert values.min() > 0.3


def test_muon_makes_steps_of_adams_size():
    parameter = torch.nn.Parameter(torch.zeros(8, 32))
    optimizer = Muon([{"params": [parameter], "lr": 0.1}])
    parameter.grad = torch.randn(8, 32)
    optimizer.step()
    moved = parameter.detach().square().mean().sqrt().item()
    assert moved == pytest.approx(0.1 * 0.2, rel=0.15)


def test_rates_warm_up_hold_and_fall():
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "peak": 2.0}], lr=0.0)

    def rate(step):
        set_learning_rate(optimizer, step, 1000, decay_fraction=0.4)
        return optimizer.param_groups[0]["lr"]

    assert rate(0) == 2.0 / 100
    assert rate(99) == rate(599) == 2.0
    assert rate(800) == pytest.approx(2.0 * (1 - 0.98 / 2))
    assert rate(999) == pytest.approx(2.0 * (1 - 0.98 * 399 / 400))
    assert rate(2000) == 2.0 * 0.02


@pytest.fixture
def few_small_steps(monkeypatch):
    """A few steps of two sequences each."""
    monkeypatch.setattr(training, "BATCH_SIZE", 2)
    monkeypatch.setattr(training, "VISION_BATCH_SIZE", 2)
    monkeypatch.setattr(training, "NUM_SIMPLE_STEPS", 1)


def make_trainer(name, folder, total=3):
    """A trainer in a folder with a trained tokenizer, because training one takes long."""
    folder.mkdir(exist_ok=True)
    for path in (DEMO / RECIPE_BY_NAME[name].folder).iterdir():
        if path.name != "model.safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    return training.DemoTrainer(RECIPE_BY_NAME[name], folder, total, seed=0, log=lambda line: None)


@needs_font
@pytest.mark.parametrize("name", RECIPE_BY_NAME)
def test_training_resumes(name, few_small_steps, monkeypatch, tmp_path):
    monkeypatch.setattr(training.DemoTrainer, "_train_vision", lambda self, steps: None)
    stopped = make_trainer(name, tmp_path / "one", total=2)
    stopped.run()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / stopped.state_path.name).write_bytes(stopped.state_path.read_bytes())
    one, two = (make_trainer(name, tmp_path / folder, total=3) for folder in ("one", "two"))
    assert one.step == two.step == 2
    assert assert_same_weights(one, stopped)
    one.run()
    two.run()
    assert one.step == two.step == 3
    assert assert_same_weights(one, two)
    assert not assert_same_weights(one, stopped)


def assert_same_weights(one, other):
    others = other.model.state_dict()
    return all(torch.equal(tensor, others[key]) for key, tensor in one.model.state_dict().items())


# CLIP normalises its class vector once more for a use that the model has not; checkpoints hold the weights.
WEIGHTS_WITHOUT_GRADIENT = {
    "model.vision_model.post_layernorm.weight",
    "model.vision_model.post_layernorm.bias",
}


@needs_font
@pytest.mark.parametrize("name", RECIPE_BY_NAME)
def test_every_parameter_learns(name, few_small_steps, tmp_path):
    """One step changes every parameter, and the package loads the checkpoint."""
    trainer = make_trainer(name, tmp_path)
    before = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
    stream = iterate_batches(
        trainer.encoder, trainer.image_plan, random.Random(0), training.SIMPLE_KIND_WEIGHTS, 8
    )
    trainer._train_step(next(stream))
    still = {key for key, tensor in trainer.model.state_dict().items() if torch.equal(tensor, before[key])}
    assert still == (
        WEIGHTS_WITHOUT_GRADIENT & set(before) if trainer.model.layout.num_cross_attention_layers else set()
    )
    write_weights(trainer.model, tmp_path)
    picture = idefics.Picture(draw_scene(sample_scene(random.Random(0), "train", thing_filter="shape")))
    assert idefics.load(tmp_path, device="cpu").caption(picture, max_new_tokens=3).tokens


@needs_font
@pytest.mark.parametrize("name", RECIPE_BY_NAME)
def test_the_first_stage_trains_vision_alone(name, few_small_steps, tmp_path):
    """The first stage changes vision tower, connector and token embeddings, and nothing else."""
    trainer = make_trainer(name, tmp_path)
    before = {key: tensor.clone() for key, tensor in trainer.model.state_dict().items()}
    trainer._train_vision(2)
    moved = {
        key for key, tensor in trainer.model.state_dict().items() if not torch.equal(tensor, before[key])
    }
    parts = ("vision_model", "perceiver_resampler", "connector", "embed_tokens")
    sees = {key for key in before if any(part in key for part in parts)}
    assert moved == sees - (
        WEIGHTS_WITHOUT_GRADIENT if trainer.model.layout.num_cross_attention_layers else set()
    )


@needs_font
@pytest.mark.parametrize("name", RECIPE_BY_NAME)
def test_training_starts_from_a_checkpoint(name, few_small_steps, monkeypatch, tmp_path):
    """With its weights and tokenizer; the first steps train the heads alone and leave the weights unchanged."""
    monkeypatch.setattr(training, "NUM_HEAD_STEPS", 2)
    shipped = DEMO / RECIPE_BY_NAME[name].folder
    trainer = training.DemoTrainer(
        RECIPE_BY_NAME[name], tmp_path, 1, seed=0, log=lambda line: None, start_checkpoint=shipped
    )
    heads = [parameter.clone() for parameter in trainer.heads.parameters()]
    trainer._prepare_first_step()
    weights = load_file(shipped / "model.safetensors")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in trainer.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert all((a != b).any() for a, b in zip(heads, trainer.heads.parameters(), strict=True))
    assert (tmp_path / "tokenizer.json").read_bytes() == (shipped / "tokenizer.json").read_bytes()
    trainer.run()
    assert not all(torch.equal(tensor, weights[key]) for key, tensor in trainer.model.state_dict().items())


@pytest.mark.parametrize("name", RECIPE_BY_NAME)
def test_matching_heads_find_equal_vectors_from_the_first_step(name, tmp_path):
    """In the matching heads, the key of the same vector has the highest score."""
    text = make_trainer(name, tmp_path).model
    attention = next(
        module
        for key, module in text.named_modules()
        if key.endswith(("cross_attn", "text_model.layers.0.self_attn"))
    )
    words = torch.nn.functional.normalize(torch.randn(50, text.config.text.hidden_size), dim=-1)
    heads = (text.config.text.num_heads, text.config.text.head_size)
    q, k = (project(words).unflatten(-1, heads) for project in (attention.q_proj, attention.k_proj))
    best = torch.einsum("qhk,phk->hqp", q, k).argmax(-1)  # (H, 50)
    found = best.eq(torch.arange(50)).float().mean(-1)
    assert (found[: training.NUM_MATCHING_HEADS] > 0.9).all()
    assert (found[training.NUM_MATCHING_HEADS :] < 0.2).all()
