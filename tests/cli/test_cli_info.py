"""`idefics info` as text and as JSON, and the warning about missing kernels."""

import json
import logging
import tomllib
from pathlib import Path

import pytest

import idefics as package
from idefics import weights
from idefics.catalog import checkpoint_peak_bytes, checkpoint_weight_bytes, find_entry
from idefics.config import EngineConfig
from idefics.generation import environment
from idefics.host_memory import PROCESS_OVERHEAD_BYTES
from idefics.native import library

ROOT = Path(__file__).parents[2]


def parse_info_lines(out):
    """(label, text) of each line."""
    return [tuple(line.split(None, 1)) for line in out.splitlines()]


def test_info_shows_kernels_devices_and_memory(run_idefics):
    done = run_idefics("info")
    assert (done.exit_code, done.stderr, done.load_flags) == (0, "", [])
    said = parse_info_lines(done.stdout)
    words = [word for word, _ in said]
    assert set(words) == {
        *("idefics", "processor", "device", "kernel", "matmul", "memory", "cache", "versions", "extra")
    }
    assert said[0][1].startswith(package.__version__)
    assert any("free of" in text and text.endswith("machine") for word, text in said if word == "memory")
    if (best := library.best_instruction_set("decode step")) is not None:
        assert ("kernel", f"decode step: {best.label}") in said
    assert any(text == f"models: 0 MB in {weights.cache_folder()}" for word, text in said if word == "cache")


def test_the_files_of_encoded_pictures_are_counted(run_idefics, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "idefics" / "features"
    assert ("cache", f"features: 0 MB in {folder}") in parse_info_lines(run_idefics("info").stdout)
    folder.mkdir(parents=True)
    (folder / "one.safetensors").write_bytes(bytes(3_000_000))
    assert ("cache", f"features: 3 MB in {folder}") in parse_info_lines(run_idefics("info").stdout)


def test_json_is_one_object(run_idefics):
    done = run_idefics("info", "--json")
    [line] = done.stdout.splitlines()
    found = json.loads(line)
    assert found["idefics"] == package.__version__
    assert found["kernels"] == library.describe_kernels()
    assert found["versions"]["torch"]
    assert found["memory"][0]["free"] <= found["memory"][0]["total"]
    assert found["engine"]["batch_rows"] == EngineConfig().batch_rows
    assert "model" not in found


def test_a_model_on_this_machine(run_idefics):
    found = json.loads(run_idefics("info", "demo", "--json").stdout)["model"]
    vlm = package.load("demo", device="cpu")
    assert found["weights"] == vlm.memory
    assert found["kv_cache"] == pytest.approx(
        sum(x.nbytes for x in (*vlm.engine.kv_cache.keys, *vlm.engine.kv_cache.values)), rel=0.01
    )
    assert (
        found["in_all"] == found["weights"] + found["kv_cache"] + found["pictures"] + PROCESS_OVERHEAD_BYTES
    )
    assert found["in_all"] == pytest.approx(checkpoint_peak_bytes(find_entry("demo"), "bfloat16"), rel=0.001)
    said = dict(parse_info_lines(run_idefics("info", "demo").stdout))
    assert said["weights"] == "7 MB"
    assert said["total"] == "about 1.3 GB on a CPU"


def test_a_model_that_is_not_on_this_machine_is_not_downloaded(run_idefics):
    found = json.loads(run_idefics("info", "smolvlm-256m", "--json").stdout)["model"]
    row = find_entry("smolvlm-256m")
    assert found == {
        "model": "smolvlm-256m",
        "folder": None,
        "weights": checkpoint_weight_bytes(row, "bfloat16"),
        "in_all": checkpoint_peak_bytes(row, "bfloat16"),
    }
    assert "not on this machine" in run_idefics("info", "smolvlm-256m").stdout


def test_no_such_model(run_idefics):
    done = run_idefics("info", "nothing/here")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("idefics info: ")
    assert len(done.stderr.splitlines()) == 1


def test_the_extras_are_those_of_the_project():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(environment.DISTRIBUTIONS_BY_EXTRA) == set(extras) - {"all", "dev", "site"}
    for extra, names in environment.DISTRIBUTIONS_BY_EXTRA.items():
        wanted = " ".join(extras[extra]) + " ".join(extras["form"]) * (extra == "serve")
        assert all(name in wanted for name in names)


def test_missing_extras_are_reported(run_idefics, monkeypatch):
    real = environment._installed_version
    monkeypatch.setattr(environment, "_installed_version", lambda name: None if name == "av" else real(name))
    assert ("extra", "video: not installed (pip install 'idefics[video]')") in parse_info_lines(
        run_idefics("info").stdout
    )


@pytest.fixture
def without_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "LIBRARY_PATH", tmp_path / "none.so")
    monkeypatch.setattr(library, "_load_once", library._load_once.__wrapped__)


def test_missing_kernels_are_reported_once(without_kernels, caplog, run_idefics):
    with caplog.at_level(logging.WARNING, "idefics"):
        package.load("demo", device="cpu")
        package.load("demo", device="cpu")
    [record] = caplog.records
    said = record.getMessage()
    assert "C kernels are missing" in said
    assert "install a C compiler" in said
    assert "\n" not in said
    lines = parse_info_lines(run_idefics("info").stdout)
    assert ("kernel", "decode step: missing") in lines
    assert ("kernel", library.missing_reason()) in lines


def test_kernels_reference_logs_no_warning(without_kernels, caplog):
    with caplog.at_level(logging.WARNING, "idefics"):
        package.load("demo", device="cpu", kernels="reference")
    assert caplog.records == []


@pytest.mark.skipif(library.load_library() is None, reason="the C code was not compiled")
def test_nothing_is_logged_where_all_kernels_exist(caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with caplog.at_level(logging.WARNING, "idefics"):
        package.load("demo", device="cpu")
    assert caplog.records == []
    assert list(tmp_path.iterdir()) == []


def test_one_of_a_kind_is_singular_and_extras_say_whether_they_are_there(run_idefics, monkeypatch):
    found = environment.describe_environment() | {
        "cores": 1,
        "threads": 1,
        "extras": {"heif": True, "video": False},
    }
    monkeypatch.setattr(environment, "describe_environment", lambda: found)
    said = parse_info_lines(run_idefics("info").stdout)
    assert dict(said)["processor"].endswith(", 1 core, 1 thread")
    assert [text for word, text in said if word == "extra"] == [
        "heif: installed",
        "video: not installed (pip install 'idefics[video]')",
    ]
    found |= {"cores": 2, "threads": 3}
    said = parse_info_lines(run_idefics("info").stdout)
    assert dict(said)["processor"].endswith(", 2 cores, 3 threads")
