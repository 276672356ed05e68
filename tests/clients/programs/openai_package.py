"""OpenAI's package: streams and parsed answers by its helpers, which send back what they keep of an answer."""

from typing import Literal

import openai
from program_setup import (
    API_KEY,
    BASE_URL,
    CONTENT_PARTS,
    DATA_URI,
    MODEL,
    NEXT_QUESTION,
    QUESTION,
    STORY_PROMPT,
    print_answers,
)
from pydantic import BaseModel


class Seen(BaseModel):
    shape: Literal["circle", "square"]


client = openai.OpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)
asked = [{"role": "user", "content": CONTENT_PARTS}]
first = client.chat.completions.create(model=MODEL, messages=asked, tools=None, tool_choice="none")
with client.chat.completions.stream(model=MODEL, messages=asked) as stream:
    streamed = stream.get_final_completion().choices[0].message
turns = [*asked, streamed, {"role": "user", "content": NEXT_QUESTION}]
then = client.chat.completions.create(model=MODEL, messages=turns, n=1, service_tier="auto")
parsed = client.chat.completions.parse(model=MODEL, messages=asked, response_format=Seen).choices[0].message
turns = [*asked, parsed, {"role": "user", "content": NEXT_QUESTION}]
client.chat.completions.create(model=MODEL, messages=turns)

parts = [
    {"type": "input_image", "image_url": DATA_URI, "detail": "auto"},
    {"type": "input_text", "text": QUESTION},
]
asked = [{"role": "user", "content": parts}]
response = client.responses.create(model=MODEL, input=asked)
turns = [*asked, *response.output, {"role": "user", "content": NEXT_QUESTION}]
response_then = client.responses.create(model=MODEL, input=turns, tools=[], include=[])
with client.responses.stream(model=MODEL, input=asked, text_format=Seen) as stream:
    response_seen = stream.get_final_response().output_parsed
stories = client.completions.create(
    model=MODEL, prompt=[STORY_PROMPT, STORY_PROMPT], best_of=1, suffix=None, max_tokens=6
)
print_answers(
    first=[first.choices[0].message.content, streamed.content, response.output_text],
    next=[then.choices[0].message.content, response_then.output_text],
    seen=[parsed.parsed.shape, response_seen.shape],
    story=[choice.text for choice in stories.choices],
)
