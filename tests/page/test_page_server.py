"""The page on the server: the same application, model, key and limits."""

import asyncio
import base64
import json
import shutil
import subprocess

import anyio.to_thread
import pytest
from starlette.testclient import TestClient

from idefics.cli.serve import _mount_page
from idefics.errors import IdeficsError
from idefics.messages import Picture, Shot, assistant, user
from idefics.page.batch import run_batch_with_progress
from idefics.page.code_snippets import BatchSnippets, ChatSnippets, TaskSnippets
from idefics.server.app import create_app
from idefics.server.settings import Settings
from idefics.tasks import TASKS
from page.browser import serve_app


def app_with_page(demo, **settings):
    settings = Settings(model="demo", ui=True, **settings)
    app = create_app(demo, settings)
    _mount_page(app, demo, settings, "http://127.0.0.1:8000")
    return app


def test_the_page_is_served_with_the_api(demo_model):
    with TestClient(app_with_page(demo_model), base_url="http://127.0.0.1") as client:
        assert "gradio_config" in client.get("/").text
        assert client.get("/v1/models").json()["data"][0]["id"] == "demo"
        assert client.get("/health").status_code == 200


def test_the_api_refuses_unknown_paths_in_json_next_to_the_page(demo_model):
    with (
        TestClient(app_with_page(demo_model), base_url="http://127.0.0.1") as client,
        TestClient(create_app(demo_model, Settings(model="demo")), base_url="http://127.0.0.1") as api_alone,
    ):
        for method, path in [("GET", "/v1/nope"), ("POST", "/v1/images/tasks/nope")]:
            refused, expected = client.request(method, path), api_alone.request(method, path)
            assert refused.status_code == expected.status_code == 404
            assert refused.json()["error"]["message"] == expected.json()["error"]["message"]
        assert client.get("/nope").text == "no such page"
        assert client.get("/v1/models").status_code == 200


def test_the_page_is_behind_the_key(demo_model):
    with TestClient(app_with_page(demo_model, api_key="secret"), base_url="http://127.0.0.1") as client:
        asked = {"accept": "text/html"}
        for path in ("/", "/config", "/gradio_api/info", "/assets/x.js", "/theme.css"):
            assert client.get(path, headers=asked).status_code == 401
        refused = client.get("/", headers=asked)
        assert refused.headers["www-authenticate"].startswith("Basic")  # a browser asks for it
        assert client.post("/gradio_api/queue/join", json={}).status_code == 401
        word = base64.b64encode(b"me:secret").decode()
        page = client.get("/", headers={**asked, "authorization": f"Basic {word}"})
        assert page.status_code == 200
        assert "IDEFICS_API_KEY" not in page.text
        assert "secret" not in page.text


def test_without_the_flag_there_is_no_page(demo_model):
    with TestClient(create_app(demo_model, Settings(model="demo")), base_url="http://127.0.0.1") as client:
        assert client.get("/").status_code == 404


def run_in_handler_thread(work):
    """Runs `work` in a thread, as Gradio runs handlers of the page, and returns its result."""

    async def run():
        return await anyio.to_thread.run_sync(work)

    return asyncio.run(run())


def test_an_answer_of_the_page_takes_and_releases_an_admission_slot(demo_model):
    admission = create_app(demo_model, Settings(model="demo", pictures_at_once=4)).state.service.admission

    def work():
        with admission.hold_page_slot(lambda: None, 3, 100):
            there = len(admission.slots), admission.usage["pictures"], admission.usage["tokens"]
            with pytest.raises(IdeficsError, match="busy with 3 pictures"):
                admission.hold_page_slot(lambda: None, 2, 1).__enter__()
            assert len(admission.slots) == 1
        return there

    assert run_in_handler_thread(work) == (1, 3, 100)
    assert (len(admission.slots), admission.usage["pictures"], admission.usage["tokens"]) == (0, 0, 0)


def test_a_shutdown_ends_answers_of_the_page(demo_model):
    admission = create_app(demo_model, Settings(model="demo")).state.service.admission
    ended = []

    async def run():
        async def close():
            await asyncio.sleep(0)
            await admission.close(0)

        def work():
            with admission.hold_page_slot(lambda: ended.append("ended"), 1, 1):
                anyio.from_thread.run(close)
            with pytest.raises(IdeficsError):
                admission.hold_page_slot(lambda: None, 1, 1).__enter__()

        await anyio.to_thread.run_sync(work)

    asyncio.run(run())
    assert ended == ["ended"]


@pytest.fixture
def run_shell(demo_model, bundled_pictures, tmp_path):
    """Runs shell commands against a server, in a folder with the bundled pictures; returns their output."""
    for name, path in bundled_pictures.items():
        (tmp_path / name).write_bytes(path.read_bytes())
    with serve_app(create_app(demo_model, Settings(model="demo"))) as address:

        def execute(make):
            call = make(address)
            done = subprocess.run(
                ["bash", "-c", call.curl], cwd=tmp_path, capture_output=True, text=True, check=True
            )
            return done.stdout

        yield execute


pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")


def test_the_curl_of_a_conversation_gives_its_answer(demo_model, bundled_pictures, run_shell):
    def messages(name):
        return [
            user(Picture(name("tower.png")), "What is in this image?"),
            assistant("A tower."),
            user(Picture(name("statue.png")), 'And in this one?\nSay it\'s "so".'),
        ]

    said = json.loads(
        run_shell(
            lambda address: ChatSnippets(
                messages=messages(str),
                options={"max_new_tokens": 20, "detail": "low"},
                model="demo",
                server=address,
            )
        )
    )
    wanted = demo_model.chat(messages(bundled_pictures.__getitem__), max_new_tokens=20, detail="low").text
    assert said["choices"][0]["message"]["content"] == wanted


@pytest.mark.parametrize(
    "call",
    [
        {"task": "ask", "words": "What is on the 'left'?", "options": {"max_new_tokens": 9, "detail": "low"}},
        {"task": "caption", "shots": [("statue.png", "", "1 STATUE")], "options": {"num_beams": 2}},
        {"task": "classify", "labels": ["red, round", "vegetables"], "options": {"calibrated": True}},
    ],
    ids=lambda call: call["task"],
)
def test_the_curl_of_a_task_gives_its_answer(demo_model, bundled_pictures, run_shell, call):
    said = json.loads(
        run_shell(lambda address: TaskSnippets(picture="picnic.png", model="demo", server=address, **call))
    )
    picture, options = bundled_pictures["picnic.png"], call["options"]
    if call["task"] == "classify":
        assert said["labels"][0]["label"] == demo_model.classify(picture, call["labels"], **options).best
        return
    shots = [Shot(Picture(bundled_pictures[name]), answer) for name, _, answer in call.get("shots", ())]
    task = TASKS[call["task"]]
    assert (
        said["text"] == demo_model.with_shots(shots).run(task, picture, call.get("words", ""), **options).text
    )


@pytest.mark.parametrize(
    ("task", "words"),
    [("caption", ""), ("ask", "What's on the table?"), ("classify", "vegetables, animals")],
    ids=["caption", "ask", "classify"],
)
def test_the_curl_of_a_batch_gives_its_table(
    page_backend, bundled_pictures, run_shell, tmp_path, task, words
):
    (tmp_path / "my photos").mkdir()
    for name, path in bundled_pictures.items():
        (tmp_path / "my photos" / name).write_bytes(path.read_bytes())
    what = {"labels": words.split(", ")} if task == "classify" else {"words": words}
    said = run_shell(
        lambda address: BatchSnippets(task=task, folder="my photos", model="demo", server=address, **what)
    )
    files = [{"path": str(path), "orig_name": name} for name, path in bundled_pictures.items()]
    *_, (_, _, rows, _) = run_batch_with_progress(page_backend, "me", files, None, task, words)
    told = {}
    for line in said.splitlines():
        name, _, answer = line.removeprefix("my photos/").partition(": ")
        answer = json.loads(answer)
        told[name] = answer["labels"][0]["label"] if task == "classify" else answer["text"]
    assert told == {row.image: row.text for row in rows}
