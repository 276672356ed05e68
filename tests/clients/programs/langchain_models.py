"""LangChain's chat model on either route, and its model for plain completions."""

from asking import BASE, KEY, MODEL, NEXT, PARTS, SCHEMA, STORY, tell
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI

first, then, seen = [], [], []
for is_newer in (False, True):
    chat = ChatOpenAI(model=MODEL, base_url=BASE, api_key=KEY, max_retries=0, use_responses_api=is_newer)
    asked = [HumanMessage(PARTS)]
    reply = chat.invoke(asked)
    first.append(reply.text)
    first.append("".join(chunk.text for chunk in chat.stream(asked)))
    then.append(chat.invoke([*asked, reply, HumanMessage(NEXT)]).text)
    formed = chat.with_structured_output({**SCHEMA, "title": "Seen"}, method="json_schema")
    seen.append(formed.invoke(asked)["shape"])
plain = OpenAI(model=MODEL, base_url=BASE, api_key=KEY, max_retries=0, max_tokens=6, temperature=0)
tell(first=first, next=then, seen=seen, story=plain.batch([STORY, STORY]))
