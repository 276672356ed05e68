"""LlamaIndex's classes for OpenAI's two routes and for servers like it."""

from asking import BASE, KEY, MODEL, NEXT, PICTURE, QUESTION, STORY, tell
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike

asked = ChatMessage(role="user", blocks=[ImageBlock(path=PICTURE), TextBlock(text=QUESTION)])
first, then = [], []
for kind, own in (
    (OpenAIResponses, {"context_window": 2048}),
    (OpenAILike, {"is_chat_model": True, "context_window": 2048}),
):
    llm = kind(model=MODEL, api_base=BASE, api_key=KEY, temperature=0, max_retries=0, **own)
    reply = llm.chat([asked])
    first.append(reply.message.content)
    then.append(llm.chat([asked, reply.message, ChatMessage(role="user", content=NEXT)]).message.content)
    first.append([*llm.stream_chat([asked])][-1].message.content)
plain = OpenAILike(model=MODEL, api_base=BASE, api_key=KEY, temperature=0, max_tokens=6, context_window=2048)
tell(first=first, next=then, story=[plain.complete(STORY).text])
