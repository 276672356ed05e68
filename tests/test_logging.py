"""The log has loading, requests, cache hits and refusals, and no text of prompts or answers."""

import logging
import subprocess
import sys
import time

import numpy as np
import pytest

import idefics
from idefics import BadPrompt, EngineBusy
from idefics.cli.main import run
from idefics.demo import pictures

PIXELS = np.zeros((20, 30, 3), np.uint8)


@pytest.fixture
def vlm():
    with idefics.load("demo") as vlm:
        yield vlm


@pytest.fixture(autouse=True)
def forget_levels(monkeypatch):
    """Levels that a server in this process has set for its log, before this file's tests."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("idefics."):
            monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    logging.getLogger("idefics").setLevel(logging.NOTSET)  # also forgets what was enabled


def test_a_library_shows_nothing_by_itself():
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("idefics").handlers)
    code = """
import idefics
vlm = idefics.load("demo")
vlm.generate(["The"], max_new_tokens=3)
try:
    vlm.ask(None, "What?")
except idefics.IdeficsError:
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_loading_says_what_where_and_how(caplog):
    with caplog.at_level(logging.INFO, "idefics"), idefics.load("demo", quantize="int8") as vlm:
        decode = str(vlm.engine.model_runner.decode_step)
    (line,) = [
        record.getMessage() for record in caplog.records if record.name == "idefics.generation.loading"
    ]
    assert line.startswith("loaded demo from ") and "demo/idefics3 in " in line
    for word in (
        " s: Idefics3 in torch.float32 on cpu with ",
        " threads; ",
        decode,
        "of cache",
        "batch_rows=8",
    ):
        assert word in line


def test_requests_and_cache_hits_are_logged_with_numbers(vlm, caplog):
    with caplog.at_level(logging.DEBUG, "idefics"):
        secret = vlm.ask(PIXELS, "Is there a secret zebra?", max_new_tokens=4)
        again = vlm.ask(PIXELS, "Is there a secret zebra?", max_new_tokens=4)
        vlm.classify(PIXELS, ["cat", "dog"])
    lines = [record.getMessage() for record in caplog.records]
    prompt = secret.usage.prompt_tokens
    assert f"submitted: {prompt} tokens, 1 pictures, up to 4 new tokens; 1 waiting" in lines
    assert any(line.startswith("encoded ") and " of 1 pictures in " in line for line in lines)
    hits = again.usage.cached_tokens
    assert hits and any(
        line.startswith(f"done: {prompt} prompt tokens, {hits} of them cached, 1 pictures") for line in lines
    )
    assert any("2 continuations" in line for line in lines)
    assert not [line for line in lines if "zebra" in line or secret.text in line]


def test_refusals_are_logged(vlm, caplog):
    with caplog.at_level(logging.DEBUG, "idefics"):
        with pytest.raises(BadPrompt):
            vlm.ask(PIXELS, " ")
        with vlm.engine.condition:  # no step is taken meanwhile
            streams = [vlm.submit(vlm.prompt(["The"])) for _ in range(vlm.engine.config.waiting)]
            with pytest.raises(EngineBusy):
                vlm.submit(vlm.prompt(["The"]))
            for stream in streams:
                stream.close()
    lines = [record.getMessage() for record in caplog.records]
    assert "ask() raises BadPrompt" in lines and "submit() raises EngineBusy" in lines


def test_nothing_is_logged_for_each_token(vlm, caplog):
    with caplog.at_level(logging.DEBUG, "idefics"):
        for tokens in (2, 40):
            caplog.clear()
            vlm.generate(
                ["The"], max_new_tokens=tokens, logit_bias=dict.fromkeys(vlm.loaded_model.stop_ids, -100)
            )
            while len(caplog.records) < 2:  # "done" comes at the end of the step
                time.sleep(0.01)
            time.sleep(0.1)
            assert [record.getMessage()[:5] for record in caplog.records] == ["submi", "done:"]


def test_the_command_line_shows_it_with_debug(capsys):
    command = ["caption", str(pictures()[0]), "--model", "demo", "--max-new-tokens", "3"]
    assert run(command) == 0
    assert "loaded" not in capsys.readouterr().err
    assert run([*command, "--debug"]) == 0
    shown = capsys.readouterr().err
    assert (
        "idefics.generation.loading: loaded demo from " in shown and "idefics.engine.engine: done: " in shown
    )
    assert run(command) == 0
    assert "loaded" not in capsys.readouterr().err
