"""Hugging Face's client, which sends back an earlier answer with all of its empty fields."""

from huggingface_hub import InferenceClient
from program_setup import API_KEY, BASE_URL, CONTENT_PARTS, MODEL, NEXT_QUESTION, SHAPE_SCHEMA, print_answers

client = InferenceClient(base_url=BASE_URL, api_key=API_KEY)
asked = [{"role": "user", "content": CONTENT_PARTS}]
first = client.chat_completion(asked, model=MODEL).choices[0].message
then = (
    client.chat_completion([*asked, first, {"role": "user", "content": NEXT_QUESTION}], model=MODEL)
    .choices[0]
    .message
)
form = {"type": "json_object", "value": SHAPE_SCHEMA}
seen = (
    client.chat.completions.create(messages=asked, model=MODEL, response_format=form, tools=[])
    .choices[0]
    .message
)
chunks = client.chat_completion(asked, model=MODEL, stream=True)
streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
print_answers(first=[first.content, streamed], next=[then.content], seen=[seen.content])
