"""Downloads from a local server in place of the hub, or with a client that fails on purpose."""

import errno
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from idefics.errors import ModelNotFound, UnsupportedModel
from idefics.weights import find_checkpoint
from weights.fake_hub import run_fake_hub

CONFIG = b'{"model_type": "idefics3"}'
SETTINGS = {
    "config.json": CONFIG,
    "tokenizer.json": b"{}",
    "preprocessor_config.json": b"[]",
    "chat_template.jinja": b"t",
}
EXTRAS = {
    "README.md": b"read",
    "pytorch_model.bin": b"pickle",
    "onnx/model.safetensors": b"other",
    ".gitattributes": b"",
}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
REPOSITORIES = {
    "acme/whole": SETTINGS
    | EXTRAS
    | {"model.safetensors": b"w" * 3_000_000, "model.fp16.safetensors": b"half"},
    "acme/shards": SETTINGS
    | EXTRAS
    | {name: name.encode() for name in SHARDS}
    | {
        "model.safetensors.index.json": json.dumps(
            {"weight_map": dict(zip("ab", SHARDS, strict=True))}
        ).encode()
    }
    | {"consolidated.safetensors": b"again"},
    "acme/odd": SETTINGS | {"odd.safetensors": b"w"},
}

DOWNLOAD_SCRIPT = """
import json, sys
from idefics.weights import find_checkpoint, complete_cached_folder
calls = []
folder = find_checkpoint(sys.argv[1], progress=lambda *call: calls.append(call))
assert complete_cached_folder(sys.argv[1]) == folder
json.dump([sorted(file.name for file in folder.iterdir()), calls], sys.stdout)
again = find_checkpoint(sys.argv[1], progress=lambda *call: sys.exit("downloaded twice"))
assert again == folder
"""


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("acme/whole", ["model.safetensors"]),
        ("acme/shards", [*SHARDS, "model.safetensors.index.json"]),
        ("acme/odd", ["odd.safetensors"]),
    ],
)
def test_what_is_needed_is_downloaded_once(tmp_path, name, weights):
    with run_fake_hub(REPOSITORIES) as (address, asked):
        here = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        run = subprocess.run(
            [sys.executable, "-c", DOWNLOAD_SCRIPT, name],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"]} | here,
        )
    assert run.returncode == 0, run.stderr
    files, calls = json.loads(run.stdout)
    wanted = sorted([*SETTINGS, *weights])
    assert files == wanted
    total = sum(len(REPOSITORIES[name][file]) for file in wanted)
    assert calls[0] == [0, total]
    assert calls[-1] == [total, total]
    assert calls == sorted(calls)
    assert len(calls) > 3
    fetched = [path.rsplit("/", 1)[1] for method, path in asked if method == "GET" and "/resolve/" in path]
    assert sorted(fetched) == wanted
    assert not set(fetched[: len(SETTINGS)]) & set(weights)  # settings come first


SETTINGS_FIRST_SCRIPT = """
import json, sys
from idefics.weights import find_checkpoint
names = lambda folder: sorted(file.name for file in folder.iterdir())
small = names(find_checkpoint("acme/whole", needs_weights=False))
find_checkpoint("acme/whole", needs_weights=False, offline=True)  # not asked for again
json.dump([small, names(find_checkpoint("acme/whole"))], sys.stdout)
"""


def test_a_processor_needs_no_weights(tmp_path):
    with run_fake_hub(REPOSITORIES) as (address, _):
        here = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        run = subprocess.run(
            [sys.executable, "-c", SETTINGS_FIRST_SCRIPT],
            capture_output=True,
            text=True,
            env={"PATH": os.environ["PATH"]} | here,
        )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [sorted(SETTINGS), sorted([*SETTINGS, "model.safetensors"])]


@pytest.fixture
def hub_client(tmp_path, monkeypatch):
    """The hub's client, with one repository that may be changed and two calls that may be made to fail."""
    state = SimpleNamespace(
        files={"config.json": 2, "tokenizer.json": 2, "model.safetensors": 50},
        config={},
        listing=None,
        download=None,
    )

    def model_info(self, hub, **kwargs):
        if state.listing:
            raise state.listing
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in state.files.items()]
        return SimpleNamespace(sha="0" * 40, siblings=siblings, config=state.config)

    def snapshot_download(hub, **kwargs):
        if state.download:
            raise state.download
        return str(tmp_path)

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return state


def make_http_error(kind, text="401 Client Error.\n\nmore lines"):
    return kind(text, response=SimpleNamespace(headers={}, request=None))


UNREACHABLE_MESSAGE = (
    "acme/tiny is not in the cache and the hub cannot be reached (ConnectionError: no route): use --model"
)
BROKEN_DOWNLOAD_MESSAGE = (
    "the download of acme/tiny broke off (ConnectionError: no route): run the same again"
)


@pytest.mark.parametrize(
    ("error", "where", "words"),
    [
        (ConnectionError("no route\nmore lines"), "listing", UNREACHABLE_MESSAGE),
        (ConnectionError("no route\nmore lines"), "download", BROKEN_DOWNLOAD_MESSAGE),
        (
            make_http_error(errors.HfHubHTTPError, "503 Server Error"),
            "listing",
            "cannot be reached (HfHubHTTPError: 503 Server",
        ),
        (
            make_http_error(errors.GatedRepoError),
            "listing",
            "acme/tiny is gated: accept its terms at https://huggingface.co/acme",
        ),
        (make_http_error(errors.GatedRepoError), "download", "acme/tiny is gated"),
        (
            make_http_error(errors.RepositoryNotFoundError),
            "listing",
            "'acme/tiny' is neither a folder nor a model on the hub",
        ),
        (make_http_error(errors.RevisionNotFoundError), "listing", "acme/tiny has no revision 'v9'"),
        (
            errors.HFValidationError("bad id"),
            "listing",
            "'acme/tiny' is neither a folder nor a model on the hub",
        ),
        (OSError(errno.ENOSPC, "No space left"), "download", "the disk is full: make room in"),
    ],
)
def test_every_failure_is_one_line(hub_client, error, where, words):
    setattr(hub_client, where, error)
    with pytest.raises(ModelNotFound) as caught:
        find_checkpoint("acme/tiny", revision="v9")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_too_small_a_disk_is_told_before_the_download(hub_client):
    hub_client.files["model.safetensors"] = 10**18
    hub_client.download = AssertionError("must not be reached")
    with pytest.raises(
        ModelNotFound, match=r"acme/tiny needs 1000000000\.0 GB and .* GB free: make room, or set HF_HOME"
    ):
        find_checkpoint("acme/tiny")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"config": {"model_type": "llama"}},
            "'llama'; this version runs idefics, idefics2, idefics3, smolvlm",
        ),
        ({"files": {"model.gguf": 9}}, "has no config.json"),
        ({"files": {"config.json": 2, "pytorch_model.bin": 9}}, "holds pickle weights only, and safetensors"),
        ({"files": {"config.json": 2, "onnx/model.safetensors": 9}}, "holds no weights"),
    ],
)
def test_what_cannot_run_is_refused_before_the_download(hub_client, change, words):
    vars(hub_client).update(change, download=AssertionError("must not be reached"))
    with pytest.raises(UnsupportedModel) as caught:
        find_checkpoint("acme/tiny")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_architecture_may_be_left_out(hub_client, tmp_path):
    calls = []
    assert find_checkpoint("acme/tiny", progress=lambda *call: calls.append(call)) == tmp_path
    assert calls == [(0, 54), (54, 54)]


def test_online_may_be_asked_for(hub_client, monkeypatch, tmp_path):
    monkeypatch.setenv("IDEFICS_OFFLINE", "1")
    assert find_checkpoint("acme/tiny", offline=False) == tmp_path
