"""Instructor, in the modes that need no tools."""

from typing import Literal

import instructor
import openai
from asking import BASE, KEY, MODEL, PARTS, tell
from pydantic import BaseModel


class Seen(BaseModel):
    shape: Literal["circle", "square"]


client = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)
seen = [
    instructor.from_openai(client, mode=mode)
    .create(model=MODEL, messages=[{"role": "user", "content": PARTS}], response_model=Seen, max_retries=0)
    .shape
    for mode in (instructor.Mode.JSON_SCHEMA,)
]
tell(seen=seen)
