"""Requests as clients write them."""

import base64
import json
from pathlib import Path

import idefics

PICTURES = Path(idefics.__file__).parent / "demo" / "pictures"


def data_uri(name):
    return "data:image/png;base64," + base64.b64encode((PICTURES / f"{name}.png").read_bytes()).decode()


def shown(name, **more):
    return {"type": "image_url", "image_url": {"url": data_uri(name), **more}}


def said(text):
    return {"type": "text", "text": text}


def user(*parts):
    return {"role": "user", "content": list(parts)}


QUESTION = [user(shown("shapes"), said("What is shown?"))]


def chat(messages=QUESTION, **more):
    return {"model": "demo", "messages": messages, **more}


def events(text):
    """The data of a stream's events; the last may be [DONE]."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
