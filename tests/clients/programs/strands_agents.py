"""Strands' agent, shown a picture."""

from asking import BASE, KEY, MODEL, NEXT, PICTURE, QUESTION, tell
from strands import Agent
from strands.models.openai import OpenAIModel

model = OpenAIModel(client_args={"base_url": BASE, "api_key": KEY, "max_retries": 0}, model_id=MODEL)
agent = Agent(model=model, callback_handler=None)
image = {"image": {"format": "png", "source": {"bytes": PICTURE.read_bytes()}}}
first, then = str(agent([image, {"text": QUESTION}])), str(agent(NEXT))
tell(first=[first.strip()], next=[then.strip()])
