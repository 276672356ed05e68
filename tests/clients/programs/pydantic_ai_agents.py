"""Pydantic AI's agents on either route."""

from typing import Literal

from program_setup import API_KEY, BASE_URL, MODEL, NEXT_QUESTION, PICTURE, QUESTION, print_answers
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider


class Seen(BaseModel):
    shape: Literal["circle", "square"]


first, then, seen = [], [], []
asked = [BinaryContent(PICTURE.read_bytes(), media_type="image/png"), QUESTION]
for kind in (OpenAIChatModel, OpenAIResponsesModel):
    model = kind(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=API_KEY))
    result = Agent(model).run_sync(asked)
    first.append(result.output)
    then.append(Agent(model).run_sync(NEXT_QUESTION, message_history=result.all_messages()).output)
    seen.append(Agent(model, output_type=NativeOutput(Seen)).run_sync(asked).output.shape)
print_answers(first=first, next=then, seen=seen)
