"""LiteLLM's library."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network when it is imported

import litellm
from asking import BASE, KEY, MODEL, NEXT, PARTS, SCHEMA, tell

litellm.telemetry = False


def ask(messages, **more):
    return litellm.completion(f"openai/{MODEL}", messages, api_base=BASE, api_key=KEY, num_retries=0, **more)


asked = [{"role": "user", "content": PARTS}]
first = ask(asked).choices[0].message
then = ask([*asked, first, {"role": "user", "content": NEXT}]).choices[0].message
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(asked, stream=True))
cached = [{"role": "user", "content": [{**part, "cache_control": {"type": "ephemeral"}} for part in PARTS]}]
form = {"type": "json_schema", "json_schema": {"name": "Seen", "schema": SCHEMA, "strict": True}}
seen = ask(cached, response_format=form, tools=[], extra_body={"tools": []}).choices[0].message
tell(first=[first.content, streamed], next=[then.content], seen=[seen.content])
