"""`/v1/models` describes the limits and defaults of the model; `/v1/images/cost` says what a picture costs."""

import io

import numpy as np
import PIL.Image
import pytest

import idefics
from idefics.catalog import find_entry
from idefics.processing.picture_files import UNTRUSTED_IMAGE_FORMATS
from idefics.server.app import create_app
from idefics.server.settings import Settings
from server.conftest import SyncClient
from server.request_bodies import chat_request, image_part, picture_data_uri, text_part, user_message
from server.test_server_openapi import check_against_schema

COST = "/v1/images/cost"


def card_of(vlm, **settings):
    client = SyncClient(create_app(vlm, Settings(**{"model": "demo", **settings})))
    (card,) = client.get("/v1/models").json()["data"]
    assert client.get(f"/v1/models/{card['id']}").json() == card
    return card


def test_the_card_of_the_demo(vlm):
    card = card_of(vlm)
    assert card["version"] == idefics.__version__
    assert (card["family"], card["kind"], card["is_demo"]) == ("Idefics3", "chat", True)
    assert card["num_parameters"] == find_entry("demo").num_parameters
    assert card["max_model_len"] == find_entry("demo").max_positions
    assert card["sampling"] == {
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": 256,
    }
    assert card["tasks"]["ask"] == {"words": "question", "default_words": None, "max_new_tokens": 64}
    assert card["tasks"]["caption"]["words"] is None
    assert "read" not in card["tasks"], "the demo writes no DocTags"
    assert card["explain"] == ["occlusion", "fast"]
    assert card["batches"] is False
    assert card["images"]["remote"] is False
    assert card["video"] is None


def test_the_card_of_a_model_without_tiles():
    card = card_of(idefics.load("demo-idefics1", remote_images="off"), model="demo-idefics1")
    assert (card["family"], card["explain"], card["images"]["max_tiles"]) == ("Idefics", ["occlusion"], 1)
    assert card["num_parameters"] == find_entry("demo-idefics1").num_parameters


def test_the_settings_of_the_server_are_in_the_card(vlm, tmp_path):
    card = card_of(vlm, name="mine", body_megabytes=3, remote_images="public", batches=tmp_path, adapter="x")
    assert card["id"] == "mine"
    assert (card["images"]["max_bytes"], card["images"]["max_body_bytes"]) == (3 << 20, 3 << 20)
    assert card["images"]["remote"] is True
    assert card["batches"] is True
    assert card["is_demo"] is False, "an adapter changes what it knows"
    large = card_of(vlm, body_megabytes=100)
    assert (large["images"]["max_bytes"], large["images"]["max_body_bytes"]) == (20 << 20, 100 << 20)
    assert card_of(vlm, model="some/folder")["is_demo"] is False


def test_the_card_says_how_the_same_model_is_loaded(vlm, tmp_path):
    load = card_of(vlm)["load"]
    assert load == {"model": "demo", "revision": None, "adapter": None, "quantize": None, "dtype": None}
    (tmp_path / "weights").mkdir()
    folder = str(tmp_path / "weights")
    settings = {"model": folder, "revision": "v2", "adapter": folder, "quantize": "int8", "dtype": "float16"}
    card = card_of(vlm, **settings)
    assert (card["id"], card["load"]) == ("weights", settings), "only this machine reaches the server"
    for public in ({"host": "0.0.0.0", "insecure": True}, {"allowed_hosts": "box"}):
        card = card_of(vlm, **settings, **public)
        assert card["load"] == settings | {
            "model": "/path/to/weights",
            "adapter": "/path/to/weights",
        }
        assert str(tmp_path) not in str(card)
    assert card_of(vlm)["needs_key"] is False
    client = SyncClient(create_app(vlm, Settings(model="demo", api_key="key")))
    assert client("GET", "/v1/models", headers={"authorization": "Bearer key"}).json()["data"][0]["needs_key"]


def encoded(format, size=(8, 8)):
    file = io.BytesIO()
    PIL.Image.new("RGB", size).save(file, format)
    return file.getvalue()


def test_every_media_type_of_the_card_is_read_and_no_other(client, vlm):
    media_types = card_of(vlm)["images"]["media_types"]
    assert len(media_types) == len(UNTRUSTED_IMAGE_FORMATS)
    for media_type in media_types:
        file = encoded(media_type.removeprefix("image/"))
        form = {"image": ("picture", file, media_type)}
        assert client("POST", "/v1/images/tasks/caption", files=form).status_code == 200, media_type
    refused = client("POST", "/v1/images/tasks/caption", files={"image": ("picture", encoded("TIFF"))})
    assert refused.status_code == 400


def test_the_limits_of_the_card_are_those_that_hold(client, vlm):
    images = card_of(vlm)["images"]
    parts = [image_part("door")] * (images["max_images"] + 1)
    refused = client.post("/v1/chat/completions", chat_request([user_message(*parts, text_part("What?"))]))
    assert refused.status_code == 400
    assert str(images["max_images"]) in refused.json()["error"]["message"]
    side = int(images["max_pixels"] ** 0.5)
    assert client.post(COST, {"width": side, "height": side}).status_code == 200
    too_large = client.post(COST, {"width": side + 2, "height": side})
    assert too_large.status_code == 400
    assert f"{images['max_pixels']:,}" in too_large.json()["error"]["message"]


@pytest.mark.parametrize("size", [(96, 96), (900, 300), (300, 900), (1, 1)])
@pytest.mark.parametrize("fields", [{}, {"detail": "low"}, {"detail": "auto"}, {"max_tiles": 3}])
def test_the_cost_is_that_of_the_picture_in_a_prompt(client, vlm, size, fields):
    cost = client.post(COST, {"width": size[0], "height": size[1], **fields}).json()
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    prompt = vlm.prompt([pixels], **fields)
    (image,) = prompt.pictures
    assert cost == {
        "object": "image.cost",
        "rows": image.rows,
        "columns": image.columns,
        "tiles": len(image.frames),
        "tokens": vlm.cost(pixels, **fields),
    }


def test_no_picture_costs_more_than_the_card_says(client, vlm):
    images = card_of(vlm)["images"]
    costs = [
        client.post(COST, {"width": width, "height": height}).json()
        for width in (1, 100, 1000, 4000)
        for height in (1, 333, 2000, 4000)
    ]
    assert max(cost["tiles"] for cost in costs) == images["max_tiles"]
    assert max(cost["tokens"] for cost in costs) == images["max_tokens"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"width": 0}, "width"),
        ({"height": 65_536}, "height"),
        ({"detail": "huge"}, "detail"),
        ({"max_tiles": 0}, "max_tiles"),
        ({"image_url": picture_data_uri("door")}, "image_url"),
    ],
)
def test_wrong_sizes_are_refused(client, fields, param):
    refused = client.post(COST, {"width": 10, "height": 10, **fields})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


def test_both_match_their_description(client):
    document = client.get("/openapi.json").json()
    check_against_schema(
        document, COST, "post", client.post(COST, {"width": 10, "height": 10, "model": "demo"})
    )
    check_against_schema(document, "/v1/models", "get", client.get("/v1/models"))
