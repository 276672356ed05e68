"""Each adapter is a model of its own: requests choose it by name, and share batches with all others."""

import asyncio

import pytest

import idefics
from idefics import BadSetting
from idefics.server.app import create_app
from idefics.server.settings import Settings
from models.tiny_adapters import write_demo_adapter
from server.conftest import SyncClient, open_client
from server.request_bodies import chat_request, picture_data_uri
from server.test_server_openapi import check_against_schema

PICTURE = {"image_url": picture_data_uri("door")}
NAMES = ("demo", "flags", "plants")


def load(**options):
    """The demo model in float32, in which sums of weights are not rounded to 16 bits."""
    return idefics.load("demo", remote_images="off", dtype="float32", **options)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    write_demo_adapter(folder / "flags", scale=0.1, seed=5)
    write_demo_adapter(folder / "plants", targets=("o_proj", "up_proj"), scale=0.07, seed=6)
    return Settings(model="demo", adapters=f"flags={folder}/flags, plants = {folder}/plants")


@pytest.fixture(scope="module")
def app(settings):
    return create_app(load(adapters=settings.adapter_by_name), settings)


@pytest.fixture(scope="module")
def adapter_client(app):
    return SyncClient(app)


@pytest.fixture(scope="module")
def merged(settings):
    """The models that each name stands for, with the adapter merged in."""
    paths = {"demo": None, **settings.adapter_by_name}
    return {name: load(adapter=path) for name, path in paths.items()}


def test_models_are_listed_with_their_parent(adapter_client):
    listed = adapter_client.get("/v1/models").json()["data"]
    assert [(one["id"], one["root"], one["parent"]) for one in listed] == [
        ("demo", "demo", None),
        ("flags", "flags", "demo"),
        ("plants", "plants", "demo"),
    ]
    assert adapter_client.get("/v1/models/flags").json() == listed[1]
    document = adapter_client.get("/openapi.json").json()
    check_against_schema(document, "/v1/models", "get", adapter_client.get("/v1/models"))


def test_requests_at_once_are_answered_by_the_models_that_they_name(app, merged):
    """Two of each, so that equal prompts meet."""

    async def post_all():
        async with open_client(app) as client:
            requests = [chat_request(model=name, max_tokens=12) for name in NAMES * 2]
            return await asyncio.gather(
                *(client.post("/v1/chat/completions", json=request) for request in requests)
            )

    bodies = [answer.json() for answer in asyncio.run(post_all())]
    assert [body["model"] for body in bodies] == [*NAMES * 2]
    picture = idefics.Picture(picture_data_uri("shapes"))
    message = idefics.Message("user", (picture, "What is shown?"))
    expected = [merged[name].chat([message], max_new_tokens=12).text for name in NAMES]
    assert [body["choices"][0]["message"]["content"] for body in bodies] == expected * 2
    assert len(set(expected)) == 3


@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        (
            "/v1/completions",
            {"prompt": "The door", "max_tokens": 8},
            lambda body: body["choices"][0]["text"],
        ),
        (
            "/v1/completions",
            {"prompt": "The door", "max_tokens": 1, "echo": True, "logprobs": 1},
            lambda body: body["choices"][0]["logprobs"]["token_logprobs"],
        ),
        (
            "/v1/responses",
            {"input": "What is a door?", "max_output_tokens": 16},
            lambda body: body["output"][0]["content"][0]["text"],
        ),
        (
            "/v1/chat/completions",
            chat_request(max_tokens=8, response_format={"type": "json_object"}),
            lambda body: body["choices"][0]["message"]["content"],
        ),
        ("/v1/images/tasks/ask", PICTURE | {"words": "What?", "num_beams": 2}, lambda body: body["text"]),
        (
            "/v1/images/tasks/classify",
            PICTURE | {"labels": ["a door", "a dog"], "calibrated": True},
            lambda body: [row["logprob"] for row in body["labels"]],
        ),
        (
            "/v1/images/tasks/explain",
            PICTURE | {"words": "What?", "answer": "A door", "grid": 4},
            lambda body: [word["log_probability"] for word in body["words"]],
        ),
    ],
    ids=["completion", "echo", "response", "structured", "beams", "classify", "explain"],
)
def test_every_route_takes_the_name(adapter_client, merged, settings, path, body, read):
    for name in ("flags", "demo"):
        answer = adapter_client.post(path, body | {"model": name})
        assert answer.status_code == 200, answer.text
        alone = SyncClient(create_app(merged[name], Settings(model="demo")))
        expected = alone.post(path, body | {"model": "demo"})
        assert read(answer.json()) == pytest.approx(read(expected.json()), abs=2e-3)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/images/tasks/ask"])
def test_an_unknown_name_is_not_found(adapter_client, path):
    body = PICTURE | {"words": "What?"} if "tasks" in path else chat_request()
    answer = adapter_client.post(path, body | {"model": "fruit"})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert error["message"] == "model 'fruit' not found: this server has 'demo', 'flags', 'plants'"


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ("flags", "adapters has 'flags'; give names and folders or hub ids, such as "),
        ("flags=", "adapters has 'flags='; give names"),
        ("=./flags", "adapters has '=./flags'; give names"),
        ("", "adapters has ''; give names"),
        ("a=x,a=y", "adapters has 'a' twice"),
        ("a=x,demo=y", "adapters has 'demo', which is the name of the model itself"),
    ],
)
def test_wrong_settings_are_refused(adapters, message):
    with pytest.raises(BadSetting) as caught:
        Settings(model="demo", adapters=adapters)
    assert str(caught.value).startswith(message)
