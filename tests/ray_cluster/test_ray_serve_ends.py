"""How serving on a Ray cluster ends: after the requests that were admitted, or before it began."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from test_ray_serve import LOAD_KEYWORDS, ask, make_settings, slow_question

from idefics.errors import BadSetting, IdeficsError
from idefics.server.ray_serve import serve_on_ray


def test_admitted_requests_finish_before_the_replicas_end(three_nodes):
    with serve_on_ray(make_settings(three_nodes), LOAD_KEYWORDS) as url:
        answers = []
        client = threading.Thread(target=lambda: answers.append(ask(url, slow_question())))
        client.start()
        time.sleep(0.5)
    client.join()
    assert answers[0].status_code == 200
    assert len(answers[0].json()["choices"][0]["message"]["content"]) == 500


def test_the_command_serves_until_sigterm_and_finishes_what_it_admitted(three_nodes, tmp_path):
    command = [sys.executable, "-m", "idefics", "serve", "--model", "demo", "--port", "0", "--replicas", "1"]
    with subprocess.Popen(
        [*command, "--ray", three_nodes.address], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        try:
            printed = process.stderr.readline()
            url = re.search(r"demo is served at (http://127.0.0.1:\d+); Ctrl-C stops it", printed)[1]
            answers = []
            client = threading.Thread(target=lambda: answers.append(ask(url, slow_question())))
            client.start()
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    client.join()
    assert answers[0].status_code == 200
    assert process.returncode == 0
    assert rest == ""


def test_what_cannot_be_served_is_one_line(three_nodes, monkeypatch, tmp_path):
    with (
        pytest.raises(IdeficsError, match=r"the replicas did not start: .*nobody/nothing") as caught,
        serve_on_ray(
            make_settings(three_nodes), {**LOAD_KEYWORDS, "model": "nobody/nothing", "offline": True}
        ),
    ):
        pass
    assert "\n" not in str(caught.value)
    for changes in ({"ui": True}, {"batches": tmp_path}):
        with (
            pytest.raises(BadSetting, match=f"--{next(iter(changes))} keeps its state in one process"),
            serve_on_ray(make_settings(three_nodes, **changes), {}),
        ):
            pass
    monkeypatch.setitem(os.environ, "RAY_SERVE_ENABLE_HA_PROXY", "1")
    with (
        pytest.raises(BadSetting, match="listens on all addresses"),
        serve_on_ray(make_settings(three_nodes), {}),
    ):
        pass
