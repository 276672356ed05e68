"""`idefics check`: lines and JSON, the exit code, records, the bug report, and a run that is interrupted."""

import hashlib
import json
import shutil

import pytest

from evaluation.spoilt_checkpoints import DEMO_FOLDERS, write_spoilt
from idefics import __version__
from idefics.evaluate.check import check_run
from models.tiny_adapters import write_demo_adapter


def test_a_line_for_each_check(run_idefics):
    done = run_idefics("check", "demo", "--device", "cpu", "--quick")
    assert (done.exit_code, done.stderr, done.load_flags) == (0, "", [])
    *lines, summary = done.stdout.splitlines()
    assert summary == f"{sum(line.startswith('ok ') for line in lines)} ok, 0 off, 4 skipped"
    assert any(line.startswith("ok  tensors ") and "118 tensors" in line for line in lines)
    assert "-   gates                 0.0 s  this family has no gates" in lines
    assert any("answer: shapes" in line for line in lines)


def test_json(run_idefics):
    rows = [
        json.loads(line)
        for line in run_idefics("check", "demo", "--device", "cpu", "--quick", "--json").stdout.splitlines()
    ]
    assert [row["check"] for row in rows][:3] == ["tensors", "finite numbers", "copies"]
    for row in rows:
        assert row.keys() == {
            *("check", "status", "measured", "limit", "details", "shows", "tolerance", "seconds")
        }


def test_a_spoilt_weight_is_off(run_idefics, tmp_path):
    folder = write_spoilt(DEMO_FOLDERS["demo"], tmp_path / "spoilt", "swap_gate")
    done = run_idefics("check", str(folder), "--device", "cpu", "--quick")
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    [index] = [index for index, line in enumerate(lines) if line.startswith("OFF")]
    assert lines[index].startswith("OFF gate and up ")
    assert lines[index + 1].strip() == (
        "model.text_model.layers.1.mlp: gate_proj and up_proj seem to be exchanged"
    )


def test_a_record_is_written_and_compared(run_idefics, tmp_path):
    record, good = tmp_path / "record.json", tmp_path / "good"
    shutil.copytree(DEMO_FOLDERS["demo"], good)
    done = run_idefics("check", str(good), "--device", "cpu", "--quick", "--record", str(record))
    assert (done.exit_code, done.stderr) == (0, f"{record} is written\n")
    quantized = run_idefics(
        "check", str(good), "--device", "cpu", "--quick", "--quantize", "int8", "--against", str(record)
    )
    assert quantized.exit_code == 0
    assert "ok  recorded logits" in quantized.stdout
    spoilt = write_spoilt(good, tmp_path / "spoilt", "change_norm")
    done = run_idefics("check", str(spoilt), "--device", "cpu", "--quick", "--against", str(record))
    assert done.exit_code == 1
    assert "model.text_model.layers.1.input_layernorm.weight has a root mean square of" in done.stdout


def test_a_damaged_file_is_named_once_and_the_report_names_no_path(run_idefics, tmp_path):
    report, folder = tmp_path / "report.md", tmp_path / "damaged"
    shutil.copytree(DEMO_FOLDERS["demo"], folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1000])
    done = run_idefics("check", str(folder), "--device", "cpu", "--quick", "--report", str(report))
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("OFF")] == ["OFF tensors"]
    assert any("the same error as of 'tensors'" in line for line in lines if line.startswith("-   copies"))
    assert any("the model cannot be loaded" in line for line in lines if line.startswith("-   batch"))
    assert str(tmp_path) in done.stdout
    assert str(tmp_path) not in report.read_text()
    assert "    - model.safetensors " in report.read_text()


def test_an_adapter_is_compared_as_it_computes(run_idefics, tmp_path):
    adapter, record = write_demo_adapter(tmp_path / "adapter"), tmp_path / "record.json"
    command = ["check", "demo", "--device", "cpu", "--quick"]
    with_adapter = [*command, "--adapter", str(adapter), "--report", str(report := tmp_path / "report.md")]
    done = run_idefics(*with_adapter, "--record", str(record))
    assert done.exit_code == 0
    assert "answer: " not in done.stdout  # those are the answers of the model alone
    assert " adapter=adapter\n" in report.read_text()
    assert "- adapter_model.safetensors: " in report.read_text()
    lines = run_idefics(*with_adapter, "--against", str(record)).stdout.splitlines()
    assert any(line.startswith("ok  recorded logits") for line in lines)
    assert any("has an adapter: logits are compared instead" in line for line in lines)
    done = run_idefics(*command, "--against", str(record))
    assert [line[:20] for line in done.stdout.splitlines() if line.startswith("OFF")] == [
        "OFF recorded logits "
    ]
    done = run_idefics(*command, "--adapter", str(tmp_path))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "has no adapter_config.json" in done.stderr


def test_a_setting_that_is_wrong_is_no_fault_of_the_model(run_idefics):
    done = run_idefics("check", "demo", "--quick", "--threads", "0")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("idefics check: --threads is 0")


def test_the_bug_report_names_no_path(run_idefics, tmp_path):
    report = tmp_path / "report.md"
    folder = write_spoilt(DEMO_FOLDERS["demo"], tmp_path / "spoilt", "zero_layer")
    done = run_idefics("check", str(folder), "--device", "cpu", "--quick", "--report", str(report))
    assert (done.exit_code, done.stderr) == (1, f"{report} is written\n")
    text = report.read_text()
    assert text.startswith(f"### idefics check spoilt\nidefics {__version__}, Python ")
    assert str(tmp_path) not in text
    assert "- off **finite numbers**" in text
    assert "    - model.text_model.layers.1.mlp.down_proj.weight is 0 everywhere" in text
    assert "kernels: " in text
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert f"bytes, sha256 {digest}" in text


def test_an_interrupted_run_says_what_was_done(run_idefics, monkeypatch):
    run_checks = check_run.run_checks

    def interrupted(subject, *, quick):
        results = run_checks(subject, quick=quick)
        yield from (next(results), next(results))
        raise KeyboardInterrupt

    monkeypatch.setattr(check_run, "run_checks", interrupted)
    done = run_idefics("check", "demo", "--device", "cpu")
    assert (done.exit_code, done.stderr) == (130, "interrupted after 2 ok, 0 off, 0 skipped\n")
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing/here"], "idefics check: "),
        (["demo", "--against", "missing.json"], "idefics check: missing.json is no record of this version"),
        (
            ["demo", "--quick", "--report", "no/folder/a.md"],
            "idefics check: no/folder/a.md cannot be written",
        ),
        (["demo", "--quick", "--record", "no/folder/a"], "idefics check: no/folder/a cannot be written"),
    ],
)
def test_mistakes(run_idefics, argv, message):
    done = run_idefics("check", *argv)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith(message)
