"""Hugging Face's client, which sends back an earlier answer with all of its empty fields."""

from asking import BASE, KEY, MODEL, NEXT, PARTS, SCHEMA, tell
from huggingface_hub import InferenceClient

client = InferenceClient(base_url=BASE, api_key=KEY)
asked = [{"role": "user", "content": PARTS}]
first = client.chat_completion(asked, model=MODEL).choices[0].message
then = (
    client.chat_completion([*asked, first, {"role": "user", "content": NEXT}], model=MODEL).choices[0].message
)
form = {"type": "json_object", "value": SCHEMA}
seen = (
    client.chat.completions.create(messages=asked, model=MODEL, response_format=form, tools=[])
    .choices[0]
    .message
)
chunks = client.chat_completion(asked, model=MODEL, stream=True)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
tell(first=[first.content, streamed], next=[then.content], seen=[seen.content])
