"""How serving on a Ray cluster ends: after the requests that were admitted, or before it began."""

import os
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


def test_what_cannot_be_served_is_one_line(three_nodes, monkeypatch):
    with (
        pytest.raises(IdeficsError, match=r"the replicas did not start: .*nobody/nothing") as caught,
        serve_on_ray(
            make_settings(three_nodes), {**LOAD_KEYWORDS, "model": "nobody/nothing", "offline": True}
        ),
    ):
        pass
    assert "\n" not in str(caught.value)
    with (
        pytest.raises(BadSetting, match="--ui and --ray"),
        serve_on_ray(make_settings(three_nodes, ui=True), {}),
    ):
        pass
    monkeypatch.setitem(os.environ, "RAY_SERVE_ENABLE_HA_PROXY", "1")
    with (
        pytest.raises(BadSetting, match="listens on all addresses"),
        serve_on_ray(make_settings(three_nodes), {}),
    ):
        pass
