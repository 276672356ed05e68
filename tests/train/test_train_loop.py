"""The training loop: accumulation, what is kept of pictures, stops and resumption, losses that are no numbers."""

import os
import signal
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from idefics.errors import BadPicture, BadSetting
from idefics.models import read_checkpoint
from idefics.train.checkpoints import find_checkpoint
from idefics.train.packing import pack_rows
from idefics.train.pictures import PictureStore
from idefics.train.records import TrainingListener
from idefics.train.schedule import dropout_seed
from idefics.train.settings import TrainSettings
from idefics.train.trainable import part_of
from idefics.train.trainee import load_trainee
from idefics.train.trainer import FEATURES, Trainer
from idefics.train.training import check_folders, train_rows
from models import tiny
from train.row_makers import make_row

SCENES = (
    "tt1ttt",
    "1ttttttttt",
    "t1t1tttttttttttttttttttttttttttttttt",
    "ttttt",
    "1tttt",
    "tttt1tttttt",
    "ttttttttt",
)

LATE_SEED = 3  # row 4 is in the second step


@pytest.fixture(scope="module", params=["idefics", "idefics3"])
def folder(request, tmp_path_factory):
    raw = {"idefics": tiny.IDEFICS1, "idefics3": tiny.IDEFICS3}[request.param]
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model") / request.param, raw)


class Recorder(TrainingListener):
    """A listener that keeps records, and calls `after` with the number of each step."""

    def __init__(self, after=lambda step: None):
        self.steps, self.validations, self.checkpoints, self.after = [], [], [], after

    def on_step(self, record):
        self.steps.append({name: one for name, one in asdict(record).items() if "seconds" not in name})
        self.after(record.step)

    def on_validation(self, record):
        self.validations.append(record)

    def on_checkpoint(self, step, folder):
        self.checkpoints.append(step)


def make_settings(folder, out, **changes):
    fields = {"batch_size": 3, "steps": 6, "learning_rate": 0.01, "warmup_steps": 2, "rank": 2}
    return TrainSettings(data="x", model=str(folder), out=out, **{**fields, **changes})


def make_trainee(folder, settings):
    return load_trainee(read_checkpoint(folder), settings)


def make_rows(model, scenes=SCENES):
    return [make_row(model, scene, name=f"row {number}") for number, scene in enumerate(scenes)]


def train(folder, out, listener=None, scenes=SCENES, edit=lambda rows: rows, **changes):
    settings = make_settings(folder, out, **changes)
    trainee = make_trainee(folder, settings)
    rows = edit(make_rows(trainee.model, scenes))
    return train_rows(trainee, rows, None, settings, [listener] if listener else [])


def read_result(out):
    (path,) = [
        out / name for name in ("adapter_model.safetensors", "model.safetensors") if (out / name).exists()
    ]
    return load_file(path)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.usefixtures("float64")
def test_the_loss_is_the_mean_over_tokens_whatever_the_micro_batches(folder, tmp_path):
    gradients = []
    for max_tokens in (1, 20, 10**6):
        settings = make_settings(folder, tmp_path, micro_batch_tokens=max_tokens, batch_size=7, targets="all")
        trainee = make_trainee(folder, settings)
        trainee.model.double()
        rows = [make_row(trainee.model, scene, 1 + number % 3) for number, scene in enumerate(SCENES)]
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


@pytest.mark.parametrize("method", ["lora", "full", "8 bits"])
def test_a_resumed_training_equals_an_unbroken_one_to_the_bit(folder, tmp_path, method):
    options = {
        "lora": {"dropout": 0.3},
        "full": {"method": "full"},
        "8 bits": {"method": "full", "optimizer": "adamw8bit"},
    }[method]
    if method == "8 bits":
        pytest.importorskip("bitsandbytes")
    options["save_every"] = 2
    unbroken, broken = Recorder(), Recorder()
    optimizers = []

    def stop(step):
        if step in (3, 4):
            os.kill(os.getpid(), signal.SIGINT)

    broken.after = stop
    train(folder, tmp_path / "unbroken", unbroken, **options)
    for step in (3, 4):
        result = train(folder, tmp_path / "broken", broken, **options)
        assert (result.out, result.step, result.checkpoint) == (
            None,
            step,
            find_checkpoint(tmp_path / "broken.training"),
        )
        optimizers.append(load_file(result.checkpoint / "optimizer.safetensors"))
    result = train(folder, tmp_path / "broken", broken, **options)
    assert (result.out, result.checkpoint) == (tmp_path / "broken", None)
    assert unbroken.steps == broken.steps and len(broken.steps) == 6
    assert_equal(read_result(tmp_path / "unbroken"), read_result(tmp_path / "broken"))
    assert find_checkpoint(tmp_path / "broken.training") is None


def test_a_changed_setting_or_other_data_is_refused(folder, tmp_path):
    train(folder, tmp_path / "out", Recorder(lambda step: os.kill(os.getpid(), signal.SIGINT)))
    with pytest.raises(
        BadSetting, match=r"rank was 2 and is 4; steps was 6 and is 9: give the same settings"
    ):
        train(folder, tmp_path / "out", rank=4, steps=9)
    with pytest.raises(BadSetting, match="there were 7 rows and are 2"):
        train(folder, tmp_path / "out", scenes=SCENES[:2])


@pytest.mark.parametrize(
    "moment", ["learned.safetensors", "optimizer.safetensors", "state.json", "rename", "remove"]
)
def test_a_process_that_is_killed_leaves_a_whole_checkpoint(folder, tmp_path, monkeypatch, moment):
    pid = os.fork()
    if pid == 0:  # the child ends in the middle of its second checkpoint
        _die_in_second_save(folder, tmp_path, moment)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    checkpoint = find_checkpoint(tmp_path / "out.training")
    assert checkpoint.name == ("step-00000002" if moment == "remove" else "step-00000001")
    train(folder, tmp_path / "out")
    train(folder, tmp_path / "unbroken")
    assert_equal(read_result(tmp_path / "out"), read_result(tmp_path / "unbroken"))
    assert [path.name for path in (tmp_path / "out.training").iterdir()] == []


def _die_in_second_save(folder, tmp_path, moment):
    import shutil
    from pathlib import Path

    import safetensors.torch

    def die(original, is_moment):
        def wrapped(*args, **options):
            if is_moment(*args):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        return wrapped

    def arm(step):
        if step == 2:
            names = lambda *args: any(str(one).endswith(moment) for one in args)  # noqa: E731
            safetensors.torch.save_file = die(safetensors.torch.save_file, names)
            Path.write_text = die(Path.write_text, names)
            if moment == "rename":
                Path.replace = die(Path.replace, lambda *_: True)
            if moment == "remove":
                shutil.rmtree = die(shutil.rmtree, lambda path, *_: "step-00000001" in str(path))

    train(folder, tmp_path / "out", Recorder(arm), save_every=1)


def test_a_loss_that_is_no_number_names_the_row_and_keeps_the_checkpoint(folder, tmp_path):
    def break_row(rows):
        picture = rows[4].read_pictures()[0]
        picture.frames[0][:] = np.nan
        return rows

    recorder = Recorder()
    with pytest.raises(
        BadSetting, match=r"the loss of row 4 is nan in step \d: look at these rows, .* is kept$"
    ):
        train(folder, tmp_path / "out", recorder, edit=break_row, seed=LATE_SEED, save_every=1)
    checkpoint = find_checkpoint(tmp_path / "out.training")
    assert checkpoint.name == f"step-{recorder.steps[-1]['step']:08d}"
    assert not (tmp_path / "out").exists()


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


def test_a_token_that_the_model_does_not_have_is_refused(folder, tmp_path):
    def put_unknown_token(rows):
        rows[2].ids[1] = 1000
        return rows

    with pytest.raises(
        BadSetting, match=r"^row 2 has the token 1000, and the model's embedding has (52|64) tokens: "
    ):
        train(folder, tmp_path / "out", edit=put_unknown_token)


def test_dropout_drops_others_in_each_step(folder, tmp_path):
    """torch's generator on a CPU reads the low 32 bits of a seed."""
    drawn = set()
    for seed, step, rank in ((0, 1, 0), (0, 2, 0), (0, 1, 1), (1, 1, 0)):
        torch.manual_seed(dropout_seed(seed, step, rank))
        drawn.add(tuple(torch.rand(4).tolist()))
    assert len(drawn) == 4


def test_features_that_an_unfinished_training_left_are_not_read(folder, tmp_path):
    settings = make_settings(folder, tmp_path / "out")
    features = settings.training_folder / FEATURES
    features.mkdir(parents=True)
    (features / "old.safetensors").write_bytes(b"of another model")
    check_folders(settings, resume=False)
    assert not features.exists()


def test_a_picture_that_cannot_be_read_keeps_what_was_learned(folder, tmp_path):
    settings = make_settings(folder, tmp_path / "out")
    trainee = make_trainee(folder, settings)
    rows = make_rows(trainee.model)

    def fail():
        raise BadPicture("1.jpg is cut off")

    def break_pictures(step):
        for number, row in enumerate(rows):
            rows[number] = replace(
                row, read_pictures=fail, picture_keys=tuple(f"{key}!" for key in row.picture_keys)
            )

    with pytest.raises(BadPicture):
        train_rows(trainee, rows, None, settings, [Recorder(break_pictures)])
    assert find_checkpoint(settings.training_folder) is not None
