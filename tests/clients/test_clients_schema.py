"""schemathesis, which reads our own description of the API, finds nothing that the description does not say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


def run_schemathesis(url, folder, phases, examples):
    """Runs the command as people do; each fault that it finds is printed with the curl command that shows it."""
    command = [Path(sys.executable).parent / "schemathesis", "run", f"{url}/openapi.json"]
    command += ["--checks", ",".join(CHECKS), "--phases", phases, "--max-examples", str(examples)]
    command += [
        "--generation-deterministic",
        "--continue-on-failure",
        "--no-color",
        "--request-timeout",
        "60",
    ]
    hooks = {"SCHEMATHESIS_HOOKS": "clients.schemathesis_hooks", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **hooks}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_nothing_happens_that_is_not_described(url, tmp_path):
    assert "passed" in run_schemathesis(url, tmp_path, "fuzzing", 6)


@pytest.mark.slow
def test_nothing_undescribed_happens_in_long_runs(url, tmp_path):
    assert "passed" in run_schemathesis(url, tmp_path, "coverage,fuzzing", 200)
