"""The results of a batch while it runs, and batches of the task routes."""

import time

import httpx
import openai
import pytest

from clients.conftest import run_server, strict_client
from server import test_server_batches_running
from server.batch_requests import batch_line, begin, read_lines, run_client, wait_for
from server.request_bodies import chat_request, picture_data_uri
from server.test_server_batches_running import IDS, LINES
from server.test_server_openapi import check_against_schema

TASKS = "/v1/images/tasks"
slow_engine = test_server_batches_running.slow_engine


@pytest.fixture(scope="module")
def client(vlm, tmp_path_factory):
    with run_client(vlm, tmp_path_factory.mktemp("batches")) as (client, _):
        yield client


def results(client, batch, **query):
    return client.get(
        f"/batches/{batch.id}/results", cast_to=httpx.Response, options={"params": query}
    ).json()


def wait_for_results(client, batch, num_results):
    """Waits until a batch that runs has stored so many results."""
    deadline = time.monotonic() + 30
    while len(page := results(client, batch)["data"]) < num_results:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return page


def test_results_come_while_the_batch_runs_each_once(vlm, tmp_path, slow_engine):
    with run_client(vlm, tmp_path) as (client, _):
        batch = begin(client, [*LINES, batch_line("bad", chat_request(temperature=9.0))])
        wait_for_results(client, batch, 8)
        lines, last = {}, 0
        while True:
            page = results(client, batch, after=last, limit=5)
            assert len(page["data"]) <= 5
            assert not {line["custom_id"] for line in page["data"]} & lines.keys()
            lines |= {line["custom_id"]: line for line in page["data"]}
            assert page["last"] == last + len(page["data"])
            if page["status"] != "in_progress":
                break
            last = page["last"]
        assert len(lines) >= 8
        batch = wait_for(client, batch)
        files = read_lines(client, batch.output_file_id) | read_lines(client, batch.error_file_id)
        assert files.keys() == IDS | {"bad"}
        assert {custom_id: files[custom_id] for custom_id in lines} == lines


def test_a_page_says_whether_there_are_more(vlm, tmp_path, slow_engine):
    with run_client(vlm, tmp_path) as (client, _):
        batch = begin(client, LINES)
        wait_for_results(client, batch, 8)
        page = results(client, batch, limit=3)
        assert (len(page["data"]), page["has_more"]) == (3, True)
        assert page["request_counts"]["total"] == len(LINES)
        beyond = results(client, batch, after=10_000)
        assert (beyond["data"], beyond["last"], beyond["has_more"]) == ([], 10_000, False)
        client.batches.cancel(batch.id)


def test_a_page_is_not_much_larger_than_four_megabytes(vlm, tmp_path, slow_engine, monkeypatch):
    monkeypatch.setattr("idefics.server.batch_results.MAX_RESULT_BYTES", 1)
    with run_client(vlm, tmp_path) as (client, _):
        batch = begin(client, LINES)
        wait_for_results(client, batch, 1)
        page = results(client, batch)
        assert (len(page["data"]), page["has_more"]) == (1, True)
        client.batches.cancel(batch.id)


def test_a_batch_that_has_ended_has_its_results_in_files(client):
    batch = wait_for(client, begin(client, [batch_line("one")]))
    page = results(client, batch)
    assert (page["data"], page["has_more"], page["status"]) == ([], False, "completed")
    assert page["request_counts"] == {"total": 1, "completed": 1, "failed": 0}


def test_an_unknown_batch_has_none(client):
    with pytest.raises(openai.NotFoundError, match="there is no batch"):
        client.get("/batches/none/results", cast_to=httpx.Response)


def test_results_are_for_the_key_of_the_batch(vlm, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a\nb\n")
    with (
        run_server(vlm, batches=tmp_path / "batches", api_key_file=keys) as (url, _),
        strict_client(url, api_key="a") as first,
        strict_client(url, api_key="b") as second,
    ):
        batch = begin(first, [batch_line("one")])
        assert results(first, batch)["object"] == "list"
        with pytest.raises(openai.NotFoundError, match="there is no batch"):
            results(second, batch)
        wait_for(first, batch)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("caption", {}),
        ("ask", {"words": "What is it?"}),
        ("classify", {"labels": ["door", "puppy"]}),
        ("write", {"max_new_tokens": 4}),
    ],
)
def test_the_tasks_are_endpoints_too(client, name, body):
    path, body = f"{TASKS}/{name}", body | {"image_url": picture_data_uri("door")}
    lines = [batch_line("good", body, path), batch_line("bad", body | {"image_url": "data:,x"}, path)]
    batch = wait_for(client, begin(client, lines, path))
    assert batch.request_counts.model_dump() == {"total": 2, "completed": 1, "failed": 1}
    answer = read_lines(client, batch.output_file_id)["good"]["response"]["body"]
    live = client.post(path.removeprefix("/v1"), cast_to=httpx.Response, body=body).json()
    answer["usage"].pop("prompt_tokens_details"), live["usage"].pop("prompt_tokens_details")
    if name == "classify":
        assert [one["label"] for one in answer["labels"]] == [one["label"] for one in live["labels"]]
        assert answer["labels"][0]["probability"] == pytest.approx(live["labels"][0]["probability"], abs=1e-3)
    else:
        assert answer == live
    assert batch.usage.input_tokens == answer["usage"]["prompt_tokens"]
    failed = read_lines(client, batch.error_file_id)["bad"]
    assert failed["response"]["status_code"] == 400


def test_the_results_match_their_description(vlm, tmp_path, slow_engine):
    with run_client(vlm, tmp_path) as (client, _):
        batch = begin(client, LINES)
        wait_for_results(client, batch, 2)
        document = httpx.get(f"{str(client.base_url).removesuffix('/v1/')}/openapi.json").json()
        answer = client.get(f"/batches/{batch.id}/results", cast_to=httpx.Response)
        assert answer.json()["data"]
        check_against_schema(document, "/v1/batches/{batch_id}/results", "get", answer)
        client.batches.cancel(batch.id)


def test_a_part_of_a_file_is_read(client):
    batch = wait_for(client, begin(client, [batch_line("one")]))
    path = f"/files/{batch.output_file_id}/content"
    whole = client.get(path, cast_to=httpx.Response).content
    part = client.get(path, cast_to=httpx.Response, options={"headers": {"Range": "bytes=5-14"}})
    assert (part.status_code, part.content) == (206, whole[5:15])
