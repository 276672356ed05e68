"""Bodies of requests, and the events of streams."""

import base64
import json
from pathlib import Path

import idefics

PICTURES_FOLDER = Path(idefics.__file__).parent / "demo" / "pictures"


def picture_data_uri(name):
    return (
        "data:image/png;base64," + base64.b64encode((PICTURES_FOLDER / f"{name}.png").read_bytes()).decode()
    )


def image_part(name, **more):
    return {"type": "image_url", "image_url": {"url": picture_data_uri(name), **more}}


def text_part(text):
    return {"type": "text", "text": text}


def user_message(*parts):
    return {"role": "user", "content": list(parts)}


QUESTION_MESSAGES = [user_message(image_part("shapes"), text_part("What is shown?"))]


def chat_request(messages=QUESTION_MESSAGES, **more):
    return {"model": "demo", "messages": messages, **more}


def parse_events(text):
    """The data of all events of a stream; the last may be "[DONE]"."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
