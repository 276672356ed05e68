"""The training loop: accumulation, what is kept of pictures, what is computed again, and in which dtype."""

import pytest
import torch

from idefics.train.packing import pack_rows
from idefics.train.pictures import PictureStore
from idefics.train.schedule import dropout_seed
from idefics.train.trainable import part_of
from idefics.train.trainer import Trainer
from models import tiny
from train.row_makers import Rows, make_row
from train.tiny_trainings import (
    SCENES,
    Recorder,
    assert_equal,
    make_rows,
    make_settings,
    make_trainee,
    read_result,
    train,
)


@pytest.mark.usefixtures("float64")
def test_the_loss_is_the_mean_over_tokens_whatever_the_micro_batches(folder, tmp_path):
    gradients = []
    for max_tokens in (1, 20, 10**6):
        settings = make_settings(folder, tmp_path, micro_batch_tokens=max_tokens, batch_size=7, targets="all")
        trainee = make_trainee(folder, settings)
        trainee.model.double()
        rows = Rows(make_row(trainee.model, scene, 1 + number % 3) for number, scene in enumerate(SCENES))
        trainer = Trainer(trainee.model, trainee.learned, rows, settings, tmp_path)
        prepared = trainer.prepare_step(1)
        loss = trainer.compute_gradients(prepared.batches, prepared.num_targets)
        gradients.append(
            (len(prepared.batches), loss, {name: one.grad for name, one in trainee.learned.by_name.items()})
        )
    assert [number for number, *_ in gradients] == [7, pytest.approx(4, abs=1), 1]
    largest = max(one.abs().max() for one in gradients[0][2].values())
    for _, loss, found in gradients[1:]:
        assert loss == pytest.approx(gradients[0][1], rel=1e-12)
        for name, one in found.items():
            assert one.dtype == torch.float64
            torch.testing.assert_close(one, gradients[0][2][name], atol=1e-12 * largest.item(), rtol=1e-12)


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_frozen_tower_encodes_each_picture_once_and_its_features_are_exact(folder, tmp_path):
    settings = make_settings(folder, tmp_path)
    trainee = make_trainee(folder, settings)
    rows = make_rows(trainee.model)
    trainer = Trainer(trainee.model, trainee.learned, rows, settings, tmp_path)
    calls = count_calls(trainee.model.model.vision_model)
    trainer.train(lambda: None)
    num_pictures = len({key for row in rows for key in row.picture_keys})
    assert (len(calls), trainer.store.stage) == (num_pictures, "features")
    from_disk = PictureStore(trainee.model, tmp_path / "files", memory_bytes=0)
    uncached = PictureStore(trainee.model, tmp_path / "none", memory_bytes=0, disk_bytes=0)
    for row in rows:
        for picture in pack_rows([row]).pictures:
            expected = uncached.frame_tensors(picture, {})
            from_disk.frame_tensors(picture, {})
            calls.clear()
            for store in (trainer.store, from_disk, PictureStore(trainee.model, tmp_path / "files")):
                for one, other in zip(store.frame_tensors(picture, {}), expected, strict=True):
                    assert torch.equal(one, other)
            assert not calls
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("targets", "stage"), [("text+connector", "patches"), ("all", "frames")])
def test_what_learns_is_computed_in_each_step(folder, tmp_path, targets, stage):
    settings = make_settings(folder, tmp_path, targets=targets)
    trainee = make_trainee(folder, settings)
    rows = make_rows(trainee.model)
    trainer = Trainer(trainee.model, trainee.learned, rows, settings, tmp_path)
    tower, connector = (
        count_calls(one) for one in (trainee.model.model.vision_model, trainee.model.model.connector_module)
    )
    before = {name: one.detach().clone() for name, one in trainee.learned.by_name.items()}
    trainer.train(lambda: None)
    num_pictures = len({key for row in rows for key in row.picture_keys})
    assert trainer.store.stage == stage
    assert len(connector) >= trainer.num_steps
    assert len(tower) == (num_pictures if stage == "patches" else len(connector))
    unchanged = [name for name, one in trainee.learned.by_name.items() if torch.equal(one, before[name])]
    assert not unchanged


def test_rows_without_pictures_train(folder, tmp_path):
    recorder = Recorder()
    train(folder, tmp_path / "out", recorder, scenes=("ttttt", "tttttttt"), steps=20, targets="all")
    assert recorder.steps[-1]["loss"] < 0.8 * recorder.steps[0]["loss"]


def test_checkpointed_layers_have_equal_gradients(folder, tmp_path):
    steps = []
    for is_checkpointed in (False, True):
        recorder = Recorder()
        train(
            folder,
            tmp_path / str(is_checkpointed),
            recorder,
            gradient_checkpointing=is_checkpointed,
            targets="all",
            dropout=0.2,
        )
        steps.append(recorder.steps)
    assert steps[0] == steps[1]
    assert_equal(read_result(tmp_path / "False"), read_result(tmp_path / "True"))


def test_in_bfloat16_what_learns_is_float32_and_the_rest_is_not(folder, tmp_path):
    options = {"modules_to_save": ("lm_head", "norm"), "steps": 20, "micro_batch_tokens": 40}
    losses = {}
    for dtype in ("float32", "bfloat16"):
        recorder = Recorder()
        train(folder, tmp_path / dtype, recorder, dtype=dtype, **options)
        losses[dtype] = [record["loss"] for record in recorder.steps]
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"][:3] == pytest.approx(losses["float32"][:3], rel=0.05)
    assert losses["bfloat16"][-1] < 0.8 * losses["bfloat16"][0]
    settings = make_settings(folder, tmp_path, dtype="bfloat16", **options)
    trainee = make_trainee(folder, settings)
    seen = []
    trainee.model.lm_head.register_forward_hook(
        lambda module, inputs, out: seen.append((inputs[0].dtype, out.dtype))
    )
    trainer = Trainer(trainee.model, trainee.learned, make_rows(trainee.model), settings, tmp_path)
    trainer.compute_gradients(trainer.prepare_step(1).batches, 1)
    assert set(seen) == {(torch.bfloat16, torch.bfloat16)}
    for name, weight in trainee.learned.by_name.items():
        assert (weight.dtype, weight.grad.dtype) == (torch.float32, torch.float32), name
    learned = {id(weight) for weight in trainee.learned.by_name.values()}
    rest = {
        name: weight.dtype for name, weight in trainee.model.named_parameters() if id(weight) not in learned
    }
    assert {dtype for name, dtype in rest.items() if part_of(name) == "text"} == {torch.bfloat16}
    # As `load` has them on a CPU: norms, biases and convolutions in float32.
    assert {dtype for name, dtype in rest.items() if part_of(name) == "vision"} == {
        torch.bfloat16,
        torch.float32,
    }


def test_features_of_a_frozen_tower_are_those_of_use(folder, tmp_path):
    trainee = make_trainee(folder, make_settings(folder, tmp_path, dtype="bfloat16"))
    store = PictureStore(trainee.model, tmp_path)
    row = make_row(trainee.model, "1ttt")
    (features,) = store.frame_tensors(pack_rows([row]).pictures[0], {})
    vlm_like = tiny.load_checkpoint(folder, storage=torch.bfloat16)
    expected = vlm_like.encode(torch.from_numpy(row.read_pictures()[0].frames[0])[None])[0]
    assert torch.equal(features, expected.detach().bfloat16())


def test_dropout_drops_others_in_each_step(folder, tmp_path):
    """torch's generator on a CPU reads the low 32 bits of a seed."""
    drawn = set()
    for seed, step, rank in ((0, 1, 0), (0, 2, 0), (0, 1, 1), (1, 1, 0)):
        torch.manual_seed(dropout_seed(seed, step, rank))
        drawn.add(tuple(torch.rand(4).tolist()))
    assert len(drawn) == 4
