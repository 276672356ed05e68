"""Pydantic AI's agents on either route."""

from typing import Literal

from asking import BASE, KEY, MODEL, NEXT, PICTURE, QUESTION, tell
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Seen(BaseModel):
    shape: Literal["circle", "square"]


first, then, seen = [], [], []
asked = [BinaryContent(PICTURE.read_bytes(), media_type="image/png"), QUESTION]
for kind in (OpenAIChatModel, OpenAIResponsesModel):
    model = kind(MODEL, provider=OpenAIProvider(base_url=BASE, api_key=KEY))
    result = Agent(model).run_sync(asked)
    first.append(result.output)
    then.append(Agent(model).run_sync(NEXT, message_history=result.all_messages()).output)
    seen.append(Agent(model, output_type=NativeOutput(Seen)).run_sync(asked).output.shape)
tell(first=first, next=then, seen=seen)
