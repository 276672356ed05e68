"""Videos in chats: their frames, for models that were trained with video."""

from dataclasses import replace

import pytest

from idefics.config import VideoProcessorConfig
from idefics.messages import Picture, Video, user
from idefics.server.app import create_app
from idefics.server.settings import Settings
from server.conftest import SyncClient
from server.request_bodies import (
    chat_request,
    image_part,
    parse_events,
    picture_data_uri,
    text_part,
    user_message,
)

PATH = "/v1/chat/completions"
NAMES = ("puppy", "door", "shapes", "picnic")


@pytest.fixture
def video_vlm(vlm, monkeypatch):
    config = vlm.processor.image_config
    video = VideoProcessorConfig(fps=1, max_frames=3, skip_seconds=1.0, longest_edge=config.frame_size)
    monkeypatch.setattr(vlm.processor, "image_config", replace(config, video=video))
    return vlm


@pytest.fixture
def video_client(video_vlm):
    return SyncClient(create_app(video_vlm, Settings(model="demo")))


def video_part(names=NAMES, **more):
    return {"type": "video", "video": [picture_data_uri(name) for name in names], **more}


def video_request(part, **more):
    return chat_request([user_message(part, text_part("What happens?"))], max_tokens=6, **more)


@pytest.mark.parametrize(("names", "fps"), [(NAMES, 2.0), (NAMES[:3], None)])
def test_a_video_is_answered_as_in_python(video_client, video_vlm, names, fps):
    body = video_client.post(PATH, video_request(video_part(names, fps=fps))).json()
    video = Video([Picture(picture_data_uri(name)) for name in names], fps)
    answer = video_vlm.chat([user(video, "What happens?")], max_new_tokens=6)
    assert body["choices"][0]["message"]["content"] == answer.text
    assert body["usage"]["prompt_tokens"] == answer.usage.prompt_tokens


def test_the_card_says_how_many_frames(video_client):
    assert video_client.get("/v1/models/demo").json()["video"] == {"fps": 1, "max_frames": 3}


def test_the_progress_counts_a_video_once_and_admission_its_frames(video_client):
    options = {"stream": True, "stream_options": {"include_progress": True}}
    admission = video_client.app.state.service.admission
    reserved = []
    reserve = admission.reserve
    admission.reserve = lambda slot, **amounts: reserved.append(amounts) or reserve(slot, **amounts)
    events = parse_events(video_client.post(PATH, video_request(video_part(fps=2.0), **options)).text)
    pictures = [
        event["progress"] for event in events[:-1] if event.get("progress", {}).get("stage") == "pictures"
    ]
    assert [(one["done"], one["total"]) for one in pictures] == [(0, 1), (1, 1)]
    assert {"pictures": 4} in reserved


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (video_part(["door"]) | {"video": []}, "video"),
        (video_part(["door"]) | {"video": ["https://example.com/a.png"]}, "no data URI"),
        (video_part(["door"], fps=0), "fps"),
        (video_part(NAMES), "too long"),
        (video_part(["door"]) | {"video": ["data:image/png;base64,AAAA"]}, "picture"),
    ],
)
def test_wrong_videos_are_refused(video_client, part, message):
    refused = video_client.post(PATH, video_request(part))
    assert refused.status_code == 400
    assert message in refused.json()["error"]["message"]


def test_videos_have_a_limit_of_frames_together(video_client):
    part = video_part(["door"], fps=1.0) | {"video": [picture_data_uri("door")] * 70}
    refused = video_client.post(PATH, chat_request([user_message(part, part, text_part("What?"))]))
    assert refused.status_code == 400
    assert "140 frames of videos; the limit is 128" in refused.json()["error"]["message"]


def test_a_model_without_video_says_so(client):
    refused = client.post(PATH, video_request(video_part()))
    assert refused.status_code == 400
    assert "not trained with video" in refused.json()["error"]["message"]
    with_picture = client.post(PATH, chat_request([user_message(image_part("door"), text_part("What?"))]))
    assert with_picture.status_code == 200
