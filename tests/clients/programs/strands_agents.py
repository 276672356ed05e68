"""Strands' agent, shown a picture."""

from program_setup import API_KEY, BASE_URL, MODEL, NEXT_QUESTION, PICTURE, QUESTION, print_answers
from strands import Agent
from strands.models.openai import OpenAIModel

model = OpenAIModel(client_args={"base_url": BASE_URL, "api_key": API_KEY, "max_retries": 0}, model_id=MODEL)
agent = Agent(model=model, callback_handler=None)
image = {"image": {"format": "png", "source": {"bytes": PICTURE.read_bytes()}}}
first, then = str(agent([image, {"text": QUESTION}])), str(agent(NEXT_QUESTION))
print_answers(first=[first.strip()], next=[then.strip()])
