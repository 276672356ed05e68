"""LangChain's chat model on either route, and its model for plain completions."""

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI
from program_setup import (
    API_KEY,
    BASE_URL,
    CONTENT_PARTS,
    MODEL,
    NEXT_QUESTION,
    SHAPE_SCHEMA,
    STORY_PROMPT,
    print_answers,
)

first, then, seen = [], [], []
for is_newer in (False, True):
    chat = ChatOpenAI(
        model=MODEL, base_url=BASE_URL, api_key=API_KEY, max_retries=0, use_responses_api=is_newer
    )
    asked = [HumanMessage(CONTENT_PARTS)]
    reply = chat.invoke(asked)
    first.append(reply.text)
    first.append("".join(chunk.text for chunk in chat.stream(asked)))
    then.append(chat.invoke([*asked, reply, HumanMessage(NEXT_QUESTION)]).text)
    formed = chat.with_structured_output({**SHAPE_SCHEMA, "title": "Seen"}, method="json_schema")
    seen.append(formed.invoke(asked)["shape"])
plain = OpenAI(model=MODEL, base_url=BASE_URL, api_key=API_KEY, max_retries=0, max_tokens=6, temperature=0)
print_answers(first=first, next=then, seen=seen, story=plain.batch([STORY_PROMPT, STORY_PROMPT]))
