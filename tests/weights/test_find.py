"""Finding the folder of a model by its name, without a download."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import idefics
from idefics.errors import BadSetting, ModelNotFound
from idefics.weights import complete_cached_folder, find_checkpoint
from idefics.weights.hub_files import snapshot_folder

PACKAGE = Path(idefics.__file__).parent
COMMIT = "0" * 39 + "1"
SETTINGS = {"config.json": "{}", "tokenizer.json": "{}", "preprocessor_config.json": "{}"}


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub."""
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def add_to_cache(cache, hub, files, commit=COMMIT, reference="main"):
    """Lays files into the cache as the hub's client does: blobs, links to them, a reference to the commit."""
    repository = cache / f"models--{hub.replace('/', '--')}"
    folder = repository / "snapshots" / commit
    for place in (folder, repository / "blobs", repository / "refs"):
        place.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / reference).write_text(commit)
    for name, content in files.items():
        blob = repository / "blobs" / f"{commit}-{name}"
        blob.write_text(content)
        (folder / name).symlink_to(blob)
    return folder


def write_checkpoint(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_is_itself(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "mine" / "tuned")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_checkpoint(folder) == folder == find_checkpoint(str(folder))
    assert find_checkpoint("mine/tuned").samefile(folder)  # before a hub id of the same form
    assert find_checkpoint("~/mine/tuned") == folder


def test_a_short_name_wins_over_a_folder_so_called(tmp_path, monkeypatch, hub_cache):
    write_checkpoint(tmp_path / "smolvlm-500m")
    monkeypatch.chdir(tmp_path)
    folder = add_to_cache(
        hub_cache, "HuggingFaceTB/SmolVLM-500M-Instruct", {**SETTINGS, "model.safetensors": "w"}
    )
    assert find_checkpoint("smolvlm-500m") == find_checkpoint("SmolVLM-500M") == folder
    assert find_checkpoint("./smolvlm-500m") == find_checkpoint(Path("smolvlm-500m")) == Path("smolvlm-500m")


@pytest.mark.parametrize(("name", "folder"), [("demo", "demo/idefics3"), ("demo-idefics1", "demo/idefics1")])
def test_the_demo_is_a_row_with_a_folder(name, folder):
    if not (PACKAGE / folder).is_dir():
        pytest.skip("not trained yet")
    assert find_checkpoint(name, offline=True) == PACKAGE / folder


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("smolvml-500m", "'smolvml-500m' is neither a folder nor a short name (near: smolvlm-500m"),
        ("/no/such/folder", "'/no/such/folder' is neither a folder nor"),
        (Path("no-such-folder"), "'no-such-folder' is neither a folder nor"),
        ("empty", "empty has no config.json"),
        ("file", "file is a file: give the folder"),
    ],
)
def test_what_is_no_checkpoint_is_told(tmp_path, monkeypatch, model, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelNotFound) as caught:
        find_checkpoint(model)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_has_no_revisions(tmp_path):
    with pytest.raises(BadSetting, match="revision is 'v2', but"):
        find_checkpoint(write_checkpoint(tmp_path / "a"), revision="v2")


@pytest.mark.parametrize("pictures", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    "weights",
    [["model.safetensors"], ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]],
)
def test_a_complete_snapshot_needs_no_hub(hub_cache, pictures, weights):
    files = {"config.json": "{}", "tokenizer.json": "{}", pictures: "{}"} | dict.fromkeys(weights, "weights")
    if len(weights) > 1:
        files["model.safetensors.index.json"] = json.dumps({"weight_map": dict(enumerate(weights))})
    folder = add_to_cache(hub_cache, "acme/tiny", files)
    calls = []
    assert find_checkpoint("acme/tiny", progress=lambda *call: calls.append(call)) == folder
    assert calls == []
    assert complete_cached_folder("acme/tiny") == folder


def test_revisions_are_branches_tags_and_commits(hub_cache):
    whole = {**SETTINGS, "model.safetensors": "w"}
    main, other = (
        add_to_cache(hub_cache, "acme/tiny", whole),
        add_to_cache(hub_cache, "acme/tiny", whole, "2" * 40, "v2"),
    )
    assert find_checkpoint("acme/tiny") == find_checkpoint("acme/tiny", revision=COMMIT) == main
    assert (
        find_checkpoint("acme/tiny", revision="v2")
        == find_checkpoint("acme/tiny", revision="2" * 40)
        == other
    )
    assert snapshot_folder("acme/tiny", "v3") is None


@pytest.mark.parametrize("lost", [*SETTINGS, "model-00002-of-00002.safetensors"])
def test_an_incomplete_snapshot_is_not_used(hub_cache, lost):
    weights = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"model.safetensors.index.json": json.dumps({"weight_map": dict(enumerate(weights))})}
    folder = add_to_cache(hub_cache, "acme/tiny", SETTINGS | index | dict.fromkeys(weights, "w"))
    (folder / lost).unlink()
    assert complete_cached_folder("acme/tiny") is None
    with pytest.raises(
        ModelNotFound, match=r"only partly in the cache \(without .*\) and offline mode is on"
    ) as caught:
        find_checkpoint("acme/tiny", offline=True)
    assert ("weights" if lost in weights else lost) in str(caught.value)


@pytest.mark.parametrize("switch", ["argument", "IDEFICS_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_and_not_cached_names_the_ways_out(hub_cache, monkeypatch, switch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if switch != "argument":
        monkeypatch.setenv(switch, "1")
    with pytest.raises(ModelNotFound) as caught:
        find_checkpoint("smolvlm-500m", offline=True if switch == "argument" else None)
    message = str(caught.value)
    for words in (
        "HuggingFaceTB/SmolVLM-500M-Instruct is not in the cache",
        "offline",
        "--model demo",
        "a folder",
    ):
        assert words in message
    assert "\n" not in message


def test_nothing_is_cached_in_an_empty_cache(hub_cache):
    assert complete_cached_folder("acme/tiny") is None


def test_looking_into_the_cache_imports_no_torch():
    code = (
        "import sys, idefics.weights as w; w.complete_cached_folder('a/b');"
        "assert not {'torch', 'safetensors', 'numpy', 'httpx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(PACKAGE.parent)})
