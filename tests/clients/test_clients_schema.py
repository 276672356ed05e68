"""schemathesis finds no response that the OpenAPI description does not allow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clients.conftest import run_server

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)


@pytest.fixture(scope="module")
def running_server(vlm, tmp_path_factory):
    """A server with all routes."""
    with run_server(vlm, batches=tmp_path_factory.mktemp("batches")) as (url, service):
        yield url, service


def run_schemathesis(url, folder, phases, examples):
    """Runs schemathesis, which prints each failure with a curl command to reproduce it."""
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


def test_responses_match_the_description(url, tmp_path):
    assert "passed" in run_schemathesis(url, tmp_path, "fuzzing", 6)


@pytest.mark.slow
def test_responses_match_the_description_in_long_runs(url, tmp_path):
    assert "passed" in run_schemathesis(url, tmp_path, "coverage,fuzzing", 200)
