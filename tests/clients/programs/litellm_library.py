"""LiteLLM's library."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network when it is imported

import litellm
from program_setup import API_KEY, BASE_URL, CONTENT_PARTS, MODEL, NEXT_QUESTION, SHAPE_SCHEMA, print_answers

litellm.telemetry = False


def ask(messages, **more):
    return litellm.completion(
        f"openai/{MODEL}", messages, api_base=BASE_URL, api_key=API_KEY, num_retries=0, **more
    )


asked = [{"role": "user", "content": CONTENT_PARTS}]
first = ask(asked).choices[0].message
then = ask([*asked, first, {"role": "user", "content": NEXT_QUESTION}]).choices[0].message
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(asked, stream=True))
cached = [
    {"role": "user", "content": [{**part, "cache_control": {"type": "ephemeral"}} for part in CONTENT_PARTS]}
]
form = {"type": "json_schema", "json_schema": {"name": "Seen", "schema": SHAPE_SCHEMA, "strict": True}}
seen = ask(cached, response_format=form, tools=[], extra_body={"tools": []}).choices[0].message
print_answers(first=[first.content, streamed], next=[then.content], seen=[seen.content])
