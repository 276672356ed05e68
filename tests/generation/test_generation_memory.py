"""A process takes no more memory than the README says for many long questions, and less under a limit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from idefics.host_memory import default_kv_cache_bytes, estimate_peak_bytes
from models import tiny

ROOT = Path(__file__).parents[2]
# Few numbers to compute, but as many to keep of each token as larger models have: 65,536 bytes.
WIDE_CONFIG = tiny.merge_config(
    tiny.IDEFICS3,
    text_config={
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 8192,
    },
)
TOKEN_BYTES = 2 * 16 * 8 * 64 * 4
ASK_SCRIPT = """
import json, random, resource, sys
limit, folder, questions, keywords = json.loads(sys.argv[1]), *sys.argv[2:3], int(sys.argv[3]), json.loads(sys.argv[4])
import idefics, PIL.Image
from idefics import Idefics  # brings torch
def kibibytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
if limit:
    limit += 1024 * kibibytes("VmSize:")
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
vlm = idefics.load(folder, device="cpu", **keywords)
letters = random.Random(1)
tokens = 0
for number in range(questions):
    picture = PIL.Image.new("RGB", (64, 48), (number, 5, 9))
    question = "".join(letters.choice("abcdefgh?! ") for _ in range(1500))
    tokens += vlm.ask(picture, question, max_new_tokens=4).usage.prompt_tokens
peak = kibibytes("VmHWM:")
cache = vlm.engine.kv_cache
kept = sum(x.nbytes for x in (*cache.keys, *cache.values))
print(json.dumps({"peak": 1024 * peak, "tokens": tokens, "weights": vlm.memory, "cache": kept}))
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_complete_checkpoint(tmp_path_factory.mktemp("memory") / "model", WIDE_CONFIG)


def run_questions(folder, questions, *, limit=0, **keywords):
    """What a process of its own that asks so many questions says of its memory."""
    command = [
        sys.executable,
        "-c",
        ASK_SCRIPT,
        json.dumps(limit),
        folder,
        str(questions),
        json.dumps(keywords),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@linux
@pytest.mark.slow
def test_twenty_long_questions_take_what_the_readme_says(folder):
    found = run_questions(folder, 20)
    bound = default_kv_cache_bytes(TOKEN_BYTES, 8192)
    assert found["cache"] <= bound + bound // 100
    assert found["tokens"] * TOKEN_BYTES > 3 * bound, "without a bound it would be several times as much"
    assert bound < found["peak"] <= estimate_peak_bytes(found["weights"], TOKEN_BYTES, 8192)


@linux
def test_a_smaller_cache_is_asked_for(folder):
    found = run_questions(folder, 1, kv_cache="200MB")
    assert 190_000_000 < found["cache"] <= 202_000_000


@linux
def test_a_limit_of_the_process_makes_the_cache_smaller(folder):
    """As `ulimit -v` sets it, so much above what the process has when it begins to load."""
    held = run_questions(folder, 1, limit=1_200_000_000)
    assert 100_000_000 < held["cache"] < 0.3 * 1_200_000_000 < default_kv_cache_bytes(TOKEN_BYTES, 8192)


@linux
@pytest.mark.parametrize(
    ("limit", "what"),
    [
        (26_000_000, "the model needs"),  # with less, Python itself fails while it imports
        (32_000_000, "the model needs"),
        (60_000_000, "the model needs 47 MB"),
    ],
)
def test_where_nothing_fits_the_message_has_the_numbers(folder, limit, what):
    command = [sys.executable, "-c", ASK_SCRIPT, str(limit), folder, "1", "{}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode != 0
    said = done.stderr.splitlines()[-1]
    assert "OutOfMemory" in said and what in said and "MB free: " in said, done.stderr[-500:]
