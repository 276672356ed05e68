"""Trainings that stop, and continue from a checkpoint: exactly, and with the same data and weights alone."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from idefics.errors import BadPicture, BadSetting
from idefics.train.checkpoints import find_checkpoint
from idefics.train.pictures import FEATURES
from idefics.train.training import check_folders, train_rows
from models import tiny
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

LATE_SEED = 3  # row 4 is in the second step


@pytest.fixture
def one_folder(tmp_path):
    """A tiny checkpoint, where its family does not matter."""
    return tiny.write_checkpoint(tmp_path / "model", tiny.IDEFICS3)


def interrupt_at(step):
    """A listener that interrupts training after a step."""

    def interrupt(done):
        if done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return Recorder(interrupt)


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
    train(folder, tmp_path / "out", interrupt_at(1))
    with pytest.raises(BadSetting, match=r"rank=4 \(was 2\); steps=9 \(was 6\): give the same settings"):
        train(folder, tmp_path / "out", rank=4, steps=9)
    with pytest.raises(BadSetting, match="there were 7 rows and are 2"):
        train(folder, tmp_path / "out", scenes=SCENES[:2])


def edit_row(field, index=None, value=None):
    """Changes a field of the second row."""

    def edit(rows):
        changed = value if index is None else getattr(rows[1], field).copy()
        if index is not None:
            changed[index] = value
        rows[1] = replace(rows[1], **{field: changed})
        return rows

    return edit


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (edit_row("ids", 3, 5), "texts of the rows have changed: give"),
        (edit_row("is_target", 5, True), "texts of the rows have changed: give"),
        (
            edit_row("picture_keys", value=("other",)),
            "pictures of the rows have changed, or how",
        ),
    ],
)
def test_rows_of_the_same_number_that_are_others_are_refused(one_folder, tmp_path, edit, expected):
    train(one_folder, tmp_path / "out", interrupt_at(1))
    with pytest.raises(BadSetting, match=expected):
        train(one_folder, tmp_path / "out", edit=edit)
    train(one_folder, tmp_path / "out")


def test_other_weights_of_the_same_shapes_are_refused(one_folder, tmp_path):
    train(one_folder, tmp_path / "out", interrupt_at(1))
    path = one_folder / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"][3, 4] += 1
    save_file(weights, path)
    with pytest.raises(BadSetting, match=r"is of another training: the model has other weights: give"):
        train(one_folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["learned.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_an_error_of_one_line(one_folder, tmp_path, name):
    path = train(one_folder, tmp_path / "out", interrupt_at(1)).checkpoint
    os.truncate(path / name, 100)
    with pytest.raises(
        BadSetting, match=r"step-00000001 is damaged, .*: remove .*out\.training and begin again$"
    ):
        train(one_folder, tmp_path / "out")


def test_another_learning_rate_is_taken_where_it_is_given(one_folder, tmp_path):
    train(one_folder, tmp_path / "out", interrupt_at(1))
    with pytest.raises(BadSetting, match=r"learning_rate=None \(was 0\.01\): give"):
        train(one_folder, tmp_path / "out", learning_rate=None)
    recorder = interrupt_at(4)
    train(one_folder, tmp_path / "out", recorder, learning_rate=0.001)
    assert [(one["step"], one["learning_rate"]) for one in recorder.steps[:1]] == [(2, 0.001)]
    with pytest.raises(BadSetting, match=r"learning_rate=None \(was 0\.001\)"):
        train(one_folder, tmp_path / "out", learning_rate=None)


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
    advice = r"go on from .*/step-0*(\d) with resume=True learning_rate=0\.0025; or mend or leave out these rows, and"
    with pytest.raises(BadSetting, match=rf"the loss of row 4 is nan in step \d: {advice} give a new out$"):
        train(folder, tmp_path / "out", recorder, edit=break_row, seed=LATE_SEED, save_every=1)
    checkpoint = find_checkpoint(tmp_path / "out.training")
    assert checkpoint.name == f"step-{recorder.steps[-1]['step']:08d}"
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadSetting, match=advice):  # without checkpoints on the way, one is written
        train(folder, tmp_path / "other", edit=break_row, seed=LATE_SEED)
    assert find_checkpoint(tmp_path / "other.training").name == checkpoint.name
    train(folder, tmp_path / "other", seed=LATE_SEED, save_every=0, learning_rate=0.0025)
    assert (tmp_path / "other").exists()


def test_a_first_loss_that_is_no_number_says_how_to_begin_again(one_folder, tmp_path):
    def break_rows(rows):
        for row in rows:
            for picture in row.read_pictures():
                picture.frames[0][:] = np.nan
        return rows

    with pytest.raises(BadSetting, match=r"in step 1: begin again with learning_rate=0\.0025; or mend"):
        train(one_folder, tmp_path / "out", edit=break_rows)
    assert find_checkpoint(tmp_path / "out.training") is None


def test_features_that_an_unfinished_training_left_are_not_read(folder, tmp_path):
    settings = make_settings(folder, tmp_path / "out")
    features = settings.training_folder / FEATURES
    features.mkdir(parents=True)
    (features / "old.safetensors").write_bytes(b"of another model")
    check_folders(settings, resume=False)
    assert not features.exists()


@pytest.mark.parametrize("save_every", [0, 1])
def test_a_picture_that_cannot_be_read_keeps_what_was_learned(folder, tmp_path, save_every):
    settings = make_settings(folder, tmp_path / "out", save_every=save_every)
    trainee = make_trainee(folder, settings)
    rows = make_rows(trainee.model)

    def fail():
        raise BadPicture("1.jpg is cut off")

    def break_pictures(step):
        for number, row in enumerate(rows):
            rows[number] = replace(
                row, read_pictures=fail, picture_keys=tuple(f"{key}!" for key in row.picture_keys)
            )

    with pytest.raises(
        BadPicture, match=r"^1\.jpg is cut off: mend it, then continue from .* with resume=True$"
    ):
        train_rows(trainee, rows, None, settings, [Recorder(break_pictures)])
    assert find_checkpoint(settings.training_folder) is not None

    def mend(rows):
        return type(rows)(
            replace(row, picture_keys=tuple(f"{key}?" for key in row.picture_keys)) for row in rows
        )

    with pytest.raises(BadSetting, match="texts of the rows have changed"):
        train(folder, tmp_path / "out", edit=edit_row("ids", 3, 5))
    train(folder, tmp_path / "out", interrupt_at(3), edit=mend)
    with pytest.raises(BadSetting, match="pictures of the rows have changed"):
        train(folder, tmp_path / "out")
