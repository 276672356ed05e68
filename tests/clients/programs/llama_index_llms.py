"""LlamaIndex's classes for OpenAI's two routes and for servers like it."""

from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from program_setup import (
    API_KEY,
    BASE_URL,
    MODEL,
    NEXT_QUESTION,
    PICTURE,
    QUESTION,
    STORY_PROMPT,
    print_answers,
)

asked = ChatMessage(role="user", blocks=[ImageBlock(path=PICTURE), TextBlock(text=QUESTION)])
first, then = [], []
for kind, own in (
    (OpenAIResponses, {"context_window": 2048}),
    (OpenAILike, {"is_chat_model": True, "context_window": 2048}),
):
    llm = kind(model=MODEL, api_base=BASE_URL, api_key=API_KEY, temperature=0, max_retries=0, **own)
    reply = llm.chat([asked])
    first.append(reply.message.content)
    then.append(
        llm.chat([asked, reply.message, ChatMessage(role="user", content=NEXT_QUESTION)]).message.content
    )
    first.append([*llm.stream_chat([asked])][-1].message.content)
plain = OpenAILike(
    model=MODEL, api_base=BASE_URL, api_key=API_KEY, temperature=0, max_tokens=6, context_window=2048
)
print_answers(first=first, next=then, story=[plain.complete(STORY_PROMPT).text])
