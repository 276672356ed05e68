"""What a training writes: checkpoints and the result, on a full disk, and while somebody interrupts."""

import os
import shutil
import signal
from collections import namedtuple

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from idefics.config import QuantizationConfig
from idefics.errors import BadSetting
from idefics.generation.quantize import quantize_checkpoint
from idefics.train import trainer, training
from idefics.train.checkpoints import find_checkpoint
from idefics.train.packing import pack_rows
from idefics.train.pictures import DISK_BYTES, PictureStore, find_disk_space
from idefics.weights import digest_files
from idefics.weights.adapter_config import AdapterConfig
from idefics.weights.adapter_files import write_adapter
from models import tiny
from train.row_makers import make_row
from train.tiny_trainings import Recorder, assert_equal, make_settings, make_trainee, read_result, train

FULL = "Error while serializing: I/O error: No space left on device (os error 28)"


@pytest.fixture
def folder(tmp_path):
    return tiny.write_checkpoint(tmp_path / "model", tiny.IDEFICS3)


def fail_on(monkeypatch, is_full):
    """Makes the disk full for the files of safetensors' library whose path `is_full` takes."""
    save_file = safetensors.torch.save_file

    def save(tensors, path, *args, **options):
        if is_full(str(path)):
            raise SafetensorError(FULL)
        return save_file(tensors, path, *args, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", save)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_on(patch, lambda path: "step-00000004" in path and "optimizer" in path)
        with pytest.raises(BadSetting) as raised:
            train(folder, tmp_path / "out", save_every=2)
    advice = "make room, then continue with resume=True"
    raised.match(rf"step-00000004 cannot be written \(.*os error 28\)\): {advice}; .*step-00000002 is kept$")
    assert [path.name for path in (tmp_path / "out.training").iterdir()] == ["step-00000002"]
    train(folder, tmp_path / "out", save_every=2)
    train(folder, tmp_path / "unbroken")
    assert_equal(read_result(tmp_path / "out"), read_result(tmp_path / "unbroken"))


def test_a_result_is_written_where_a_checkpoint_has_no_room(folder, tmp_path, monkeypatch):
    fail_on(monkeypatch, lambda path: "step-" in path)
    result = train(folder, tmp_path / "out")
    assert result.out == tmp_path / "out" and read_result(result.out)


def test_a_result_that_cannot_be_written_is_kept_in_a_checkpoint(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_on(patch, lambda path: "adapter_model" in path)
        with pytest.raises(
            BadSetting, match=r"out cannot be written .*step-00000006 is kept: continue with resume=True$"
        ):
            train(folder, tmp_path / "out")
    recorder = Recorder()
    train(folder, tmp_path / "out", recorder)
    assert recorder.steps == [] and read_result(tmp_path / "out")


def write_quantized(out):
    quantize_checkpoint("demo", QuantizationConfig(kind="int8"), out)


def write_an_adapter(out):
    write_adapter(out, {"a": torch.zeros(1)}, AdapterConfig(rank=1, alpha=1))


@pytest.mark.parametrize("write", [write_quantized, write_an_adapter])
def test_a_full_disk_is_an_error_of_one_line(tmp_path, monkeypatch, write):
    def fail(*_, **__):
        raise SafetensorError(FULL)

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    monkeypatch.setattr("huggingface_hub.save_torch_state_dict", fail)
    with pytest.raises(
        BadSetting, match=r"out cannot be written \(Error .*\): make room there, or give another folder$"
    ):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class Interrupted:
    """A function that is interrupted three times before it does what it does."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **options):
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        return self.function(*args, **options)


@pytest.mark.parametrize("place", [(trainer, "save_checkpoint"), (training, "write_result")])
def test_interrupts_do_not_break_what_is_written_at_the_end(folder, tmp_path, monkeypatch, place):
    module, name = place
    monkeypatch.setattr(module, name, Interrupted(getattr(module, name)))
    waits = []
    recorder = Recorder()
    recorder.on_stop_while_writing = lambda: waits.append(1)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    result = train(folder, tmp_path / "out", recorder)
    assert (result.out, len(waits)) == (tmp_path / "out", 3)
    assert read_result(result.out) and find_checkpoint(tmp_path / "out.training") is None
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_stopped_training_keeps_its_checkpoint_whoever_interrupts(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "save_checkpoint", Interrupted(trainer.save_checkpoint))
    recorder = Recorder(lambda step: os.kill(os.getpid(), signal.SIGTERM))
    result = train(folder, tmp_path / "out", recorder)
    assert (result.out, result.step) == (None, 1) and result.checkpoint.is_dir()


def test_a_checkpoint_on_the_way_is_finished_and_training_then_stops(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "save_checkpoint", Interrupted(trainer.save_checkpoint))
    result = train(folder, tmp_path / "out", save_every=2)
    assert (result.out, result.step, result.checkpoint.name) == (None, 2, "step-00000002")
    monkeypatch.undo()
    train(folder, tmp_path / "out")
    train(folder, tmp_path / "unbroken")
    assert_equal(read_result(tmp_path / "out"), read_result(tmp_path / "unbroken"))


def test_a_second_interrupt_ends_the_steps_at_once(folder, tmp_path):
    def interrupt_twice(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "out", Recorder(interrupt_twice), save_every=2)
    assert find_checkpoint(tmp_path / "out.training").name == "step-00000002"


def test_checkpoints_are_written_by_time_where_no_steps_are_given(folder, tmp_path, monkeypatch):
    recorder = Recorder()
    train(folder, tmp_path / "out", recorder)
    assert recorder.checkpoints == []
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0)
    train(folder, tmp_path / "other", recorder)
    assert recorder.checkpoints == [1, 2, 3, 4, 5]
    train(folder, tmp_path / "third", recorder, save_every=3)
    assert recorder.checkpoints[5:] == [3]


def test_the_checkpoint_before_the_result_is_not_announced(folder, tmp_path):
    recorder = Recorder()
    train(folder, tmp_path / "out", recorder, save_every=2)
    assert recorder.checkpoints == [2, 4]


def test_features_that_cannot_be_written_are_computed_again(folder, tmp_path, monkeypatch):
    trainee = make_trainee(folder, make_settings(folder, tmp_path))
    fail_on(monkeypatch, lambda path: True)
    store = PictureStore(trainee.model, tmp_path / "files", memory_bytes=0)
    (picture,) = pack_rows([make_row(trainee.model, "1ttt")]).pictures
    first, again = store.frame_tensors(picture, {}), store.frame_tensors(picture, {})
    assert all(map(torch.equal, first, again))
    assert list((tmp_path / "files").iterdir()) == []
    monkeypatch.undo()
    store.frame_tensors(picture, {})
    assert list((tmp_path / "files").iterdir()) == [], "the disk is not tried again"


def test_features_take_half_of_the_free_disk_at_most(folder, tmp_path, monkeypatch):
    trainee = make_trainee(folder, make_settings(folder, tmp_path))
    pictures = pack_rows([make_row(trainee.model, scene) for scene in ("1ttt", "t1tt", "tt1t")]).pictures
    size = sum(one.nbytes for one in PictureStore(trainee.model, tmp_path).frame_tensors(pictures[0], {}))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 0, 4 * size + 2))
    files = tmp_path / "new" / "features"
    assert find_disk_space(files) == (2 * size + 1, 4 * size + 2)
    store = PictureStore(trainee.model, files, memory_bytes=0, disk_bytes=2 * size + 1)
    for picture in pictures:
        store.frame_tensors(picture, {})
    assert len(list(files.iterdir())) == 2
    resumed = PictureStore(trainee.model, files, memory_bytes=0, disk_bytes=2 * size + 1)
    resumed.frame_tensors(pictures[2], {})
    assert len(list(files.iterdir())) == 2, "older files count"
    written = sum(path.stat().st_size for path in files.iterdir())
    assert find_disk_space(files)[0] == written + 2 * size + 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 0, 3 * DISK_BYTES))
    assert find_disk_space(files)[0] == DISK_BYTES


def test_the_digest_of_files_is_that_of_their_contents(tmp_path):
    one, other = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"weights")
    other.write_bytes(b"weights")
    assert digest_files([one]) == digest_files([other]) != digest_files([one, other])
    blob = tmp_path / "blobs" / ("6f" * 32)
    blob.parent.mkdir()
    blob.write_bytes(b"not read: the hub names files by their hashes")
    before = digest_files([blob])
    blob.write_bytes(b"")
    assert digest_files([blob]) == before != digest_files([one])
