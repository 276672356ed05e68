"""Files of encoded pictures: later engines read them; damaged ones are ignored; the folder is private and bounded."""

import errno
import os
import random
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from engine.fakes import make_fake_model, make_prompt, make_request, make_tiles, run_requests
from engine.reference_decoding import reference_greedy
from idefics.config import EngineConfig
from idefics.engine import tensor_files
from idefics.engine.engine import Engine
from idefics.engine.tensor_files import TensorFileCache

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="features are not stored on Windows")


open_files = partial(TensorFileCache, max_bytes=1 << 30)


@pytest.fixture(params=["inline", "cross_attention"])
def kind(request):
    return request.param


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "features"


def make_engine(kind, folder, **config):
    return Engine(
        make_fake_model(kind), EngineConfig(**config), feature_cache=open_files(folder, "tiny model")
    )


def generate(engine, *items):
    """The handle of a request with these pictures and ids, whose ids are those of the reference."""
    kind = "cross_attention" if engine.model.uses_cross_attention else "inline"
    prompt = make_prompt(kind, *items)
    (handle,) = run_requests(engine, [make_request(prompt, max_new_tokens=6, logprobs=True)])
    assert handle.ids == reference_greedy(make_fake_model(kind), prompt, 6)
    return handle


def num_encoded_frames(engine):
    return sum(engine.model.frames_per_encode)


def test_a_second_engine_reads_what_the_first_has_encoded(kind, folder):
    tiles = make_tiles("wide", frames=1 if kind == "cross_attention" else 5)
    first, second = (make_engine(kind, folder) for _ in range(2))
    answers = [generate(engine, 3, tiles, 4, 5) for engine in (first, second)]
    assert (num_encoded_frames(first), num_encoded_frames(second)) == (len(tiles.frames), 0)
    assert second.model.images_per_cross_kv == []
    assert second.encoder_cache.num_encoded == 0
    assert answers[0].result().logprobs == answers[1].result().logprobs, "equal to the last bit"
    before, after = (next(iter(one.encoder_cache.image_by_key.values())) for one in (first, second))
    assert all(torch.equal(a, b) for a, b in zip(before.tensors, after.tensors, strict=True))
    assert second.encoder_cache.size_bytes == first.encoder_cache.size_bytes > 0
    generate(second, 6, tiles, 7)
    second.clear_caches()
    assert second.encoder_cache.size_bytes == 0
    generate(second, 3, tiles, 8)
    assert num_encoded_frames(second) == 0


def test_a_picture_that_was_encoded_in_several_steps_is_one_file(folder):
    first, second = (make_engine("inline", folder, encode_frames=2) for _ in range(2))
    for engine in (first, second):
        generate(engine, 3, make_tiles("wide", frames=5), 4)
    assert (first.model.frames_per_encode, second.model.frames_per_encode) == ([2, 2, 1], [])
    assert len(list(folder.iterdir())) == 1


def test_only_the_pictures_without_a_file_are_encoded(folder):
    generate(make_engine("inline", folder), make_tiles("cat", frames=2), 4)
    engine = make_engine("inline", folder)
    generate(engine, make_tiles("cat", frames=2), 5, make_tiles("dog", frames=3))
    assert num_encoded_frames(engine) == 3
    assert len(list(folder.iterdir())) == 2


def test_models_and_pictures_have_files_of_their_own(folder):
    cache = open_files(folder, "one model")
    cache.store("a cat", [torch.ones(2)])
    assert torch.equal(cache.load("a cat")[0], torch.ones(2))
    assert cache.load("a dog") is None
    assert open_files(folder, "another model").load("a cat") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_come_back_as_they_were(folder, dtype):
    tensors = [torch.randn(3, 4).to(dtype), torch.randn(4, 1, 2).to(dtype).transpose(0, 2), torch.zeros(0, 3)]
    cache = open_files(folder, "model")
    cache.store("picture", tensors)
    loaded = cache.load("picture")
    assert [one.dtype for one in loaded] == [dtype, dtype, torch.float32]
    assert all(torch.equal(a, b) for a, b in zip(tensors, loaded, strict=True))


def flip_last_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def rewrite_tensors(file, change):
    tensors = safetensors.torch.load(file.read_bytes())
    change(tensors)
    file.write_bytes(safetensors.torch.save(tensors))


def replace_with_link(file):
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "only a header": lambda file: file.write_bytes(file.read_bytes()[:40]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "one bit": flip_last_bit,
    "a text": lambda file: file.write_text("hello"),
    "another shape": lambda file: rewrite_tensors(
        file, lambda tensors: tensors.update({"0": tensors["0"].flatten()})
    ),
    "another dtype": lambda file: rewrite_tensors(
        file, lambda tensors: tensors.update({"0": tensors["0"].view(torch.int32)})
    ),
    "one more": lambda file: rewrite_tensors(file, lambda tensors: tensors.update({"more": torch.ones(1)})),
    "none": lambda file: rewrite_tensors(file, lambda tensors: tensors.pop("0")),
    "no digest": lambda file: rewrite_tensors(file, lambda tensors: tensors.pop("digest")),
    "a link": replace_with_link,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_deleted_and_written_again(kind, folder, damage):
    generate(make_engine(kind, folder), 3, make_tiles("cat"), 4)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    damage(file)
    assert open_files(folder, "tiny model").load(make_tiles("cat").content_hash) is None
    assert not os.path.lexists(file)
    damaged_again = make_engine(kind, folder)
    file.write_bytes(whole)
    damage(file)
    generate(damaged_again, 3, make_tiles("cat"), 4)
    assert num_encoded_frames(damaged_again) == 1
    assert file.read_bytes() == whole


def test_no_damage_raises_or_changes_a_number(folder):
    cache, tensor = open_files(folder, "model"), torch.arange(24.0).view(4, 6)
    cache.store("picture", [tensor])
    (file,) = folder.iterdir()
    whole, rng = file.read_bytes(), random.Random(0)
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged)
        loaded = cache.load("picture")
        assert loaded is None or torch.equal(loaded[0], tensor)


def test_the_file_of_another_picture_is_not_used(folder):
    cache = open_files(folder, "model")
    cache.store("a cat", [torch.ones(2)])
    (file,) = folder.iterdir()
    file.rename(cache._file("a dog"))
    assert cache.load("a dog") is None
    assert list(folder.iterdir()) == []


def test_a_folder_in_the_place_of_a_file_is_ignored(folder):
    cache = open_files(folder, "model")
    cache._file("picture").mkdir(parents=True)
    assert cache.load("picture") is None
    cache.store("picture", [torch.ones(2)])
    assert cache.load("picture") is None
    assert [one.name for one in folder.iterdir()] == [cache._file("picture").name]


def test_only_the_owner_can_open_folder_and_files(folder):
    folder.mkdir(mode=0o755, parents=True)
    previous = os.umask(0)
    try:
        open_files(folder, "model").store("picture", [torch.ones(2)])
    finally:
        os.umask(previous)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [one.stat().st_mode & 0o777 for one in folder.iterdir()] == [0o600]


def test_what_another_user_owns_is_not_used(folder, monkeypatch):
    cache, user = open_files(folder, "model"), os.geteuid()
    cache.store("a cat", [torch.ones(2)])
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert cache.load("a cat") is None
    cache.store("a dog", [torch.ones(2)])
    assert [one.name for one in folder.iterdir()] == [cache._file("a cat").name]
    users = iter((user, user + 1))  # of the folder, then of the file
    monkeypatch.setattr(os, "geteuid", lambda: next(users))
    assert cache.load("a cat") is None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_where_nothing_can_be_written_answers_are_as_before(folder, monkeypatch, error):
    """A folder without access, a file system that is read only, a full disk."""
    generate(make_engine("inline", folder), make_tiles("cat"), 4)

    def refuse(*arguments, **keywords):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(tensor_files, "NamedTemporaryFile", refuse)
    for name in ("utime", "unlink", "chmod"):
        monkeypatch.setattr(os, name, refuse)
    engine = make_engine("inline", folder)
    generate(engine, make_tiles("cat"), 4, make_tiles("dog"), 5)
    assert num_encoded_frames(engine) == 1, "what is there is read"
    assert len(list(folder.iterdir())) == 1


def test_a_file_that_was_not_written_whole_leaves_nothing(folder, monkeypatch):
    cache = open_files(folder, "model")
    cache.store("a cat", [torch.ones(2)])
    monkeypatch.setattr(tensor_files.Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    cache.store("a dog", [torch.ones(2)])
    assert [one.name for one in folder.iterdir()] == [cache._file("a cat").name]


def test_an_interrupted_file_leaves_nothing(folder, monkeypatch):
    cache = open_files(folder, "model")
    monkeypatch.setattr(tensor_files.Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        cache.store("a cat", [torch.ones(2)])
    assert list(folder.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_left(tmp_path):
    (tmp_path / "features").write_text("mine")
    cache = open_files(tmp_path / "features", "model")
    cache.store("picture", [torch.ones(2)])
    assert cache.load("picture") is None
    assert (tmp_path / "features").read_text() == "mine"


def test_the_least_recently_used_files_go_first(folder):
    unbounded = open_files(folder, "model")
    unbounded.store("0", [torch.ones(1000)])
    (file,) = folder.iterdir()
    cache = open_files(folder, "model", max_bytes=3 * file.stat().st_size)
    for number in range(3):
        cache.store(str(number), [torch.ones(1000)])
        os.utime(cache._file(str(number)), (number, number))
    assert cache.load("0") is not None  # now the most recently used
    cache.store("3", [torch.ones(1000)])
    assert [cache.load(str(number)) is not None for number in range(4)] == [True, False, True, True]
    (folder / ".left by a process that died.tmp").write_bytes(bytes(4000))
    os.utime(folder / ".left by a process that died.tmp", (1, 1))
    cache.store("4", [torch.ones(1000)])
    assert [cache.load(str(number)) is not None for number in range(5)] == [False, False, True, True, True]
    assert sum(one.stat().st_size for one in folder.iterdir()) <= cache.max_bytes
    open_files(folder, "model", max_bytes=1).store("5", [torch.ones(1000)])
    assert list(folder.iterdir()) == []


def test_a_file_that_is_larger_than_all_may_be_deletes_no_other(folder):
    cache = open_files(folder, "model", max_bytes=5000)
    cache.store("small", [torch.ones(1000)])
    cache.store("large", [torch.ones(2000)])
    assert (cache.load("small") is not None, cache.load("large")) == (True, None)


def test_nothing_is_written_to_a_disk_that_is_nearly_full(folder, monkeypatch):
    free_bytes = 45_000
    monkeypatch.setattr(tensor_files.shutil, "disk_usage", lambda _: SimpleNamespace(free=free_bytes))
    cache = open_files(folder, "model")
    cache.store("small", [torch.ones(1000)])
    cache.store("large", [torch.ones(2000)])
    assert (cache.load("small") is not None, cache.load("large")) == (True, None)


WRITER = """
import sys
from pathlib import Path
import torch
from idefics.engine.tensor_files import TensorFileCache
cache, found = TensorFileCache(Path(sys.argv[1]), "model", max_bytes=5 * 4200), 0
print("ready", flush=True)
sys.stdin.readline()
for number in range(300):
    name = number % 8
    cache.store(str(name), [torch.full((1000,), float(name))])
    tensors = cache.load(str((number * 5) % 8))
    if tensors is not None:
        found += 1
        assert torch.equal(tensors[0], torch.full((1000,), float((number * 5) % 8)))
print(found)
"""


def test_two_processes_at_once(folder):
    """Both write, read and delete the same files."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        found, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        assert int(found) > 0
    assert sum(one.stat().st_size for one in folder.iterdir()) <= 5 * 4200
    assert all(one.suffix == ".safetensors" for one in folder.iterdir())
