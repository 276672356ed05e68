"""OpenAI's agents, by either of its two models."""

import asyncio

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, set_tracing_disabled
from openai import AsyncOpenAI
from program_setup import API_KEY, BASE_URL, DATA_URI, MODEL, NEXT_QUESTION, QUESTION, print_answers


async def main():
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=BASE_URL, api_key=API_KEY, max_retries=0)
    image = {"type": "input_image", "image_url": DATA_URI, "detail": "auto"}
    asked = [{"role": "user", "content": [image, {"type": "input_text", "text": QUESTION}]}]
    first, then = [], []
    for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
        agent = Agent("painter", model=kind(model=MODEL, openai_client=client))
        result = await Runner.run(agent, asked)
        first.append(result.final_output)
        turns = [*result.to_input_list(), {"role": "user", "content": NEXT_QUESTION}]
        then.append((await Runner.run(agent, turns)).final_output)
        streamed = Runner.run_streamed(agent, asked)
        async for _ in streamed.stream_events():
            pass
        first.append(streamed.final_output)
    print_answers(first=first, next=then)


asyncio.run(main())
