"""Instructor, in the modes that need no tools."""

from typing import Literal

import instructor
import openai
from program_setup import API_KEY, BASE_URL, CONTENT_PARTS, MODEL, print_answers
from pydantic import BaseModel


class Seen(BaseModel):
    shape: Literal["circle", "square"]


client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)
seen = [
    instructor.from_openai(client, mode=mode)
    .create(
        model=MODEL, messages=[{"role": "user", "content": CONTENT_PARTS}], response_model=Seen, max_retries=0
    )
    .shape
    for mode in (instructor.Mode.JSON_SCHEMA,)
]
print_answers(seen=seen)
