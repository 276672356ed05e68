"""Asks a question about a picture through OpenAI's own client.

Install `openai` and `idefics[serve]`, and start a server with `idefics serve --model demo`. Then, in another terminal:

    python examples/openai_client.py photo.jpg "What is on the table?"
"""

import argparse
import base64
from pathlib import Path

from openai import OpenAI

import idefics

BUNDLED = Path(idefics.__file__).parent / "demo" / "pictures"

parser = argparse.ArgumentParser()
parser.add_argument("picture", nargs="?", type=Path, default=BUNDLED / "shapes.png")
parser.add_argument("question", nargs="?", default="What color is the star?")
parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
parser.add_argument("--model", default="demo")
args = parser.parse_args()

client = OpenAI(base_url=args.base_url, api_key="none")  # or one of the server's keys
data = base64.b64encode(args.picture.read_bytes()).decode()
answer = client.chat.completions.create(
    model=args.model,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
                {"type": "text", "text": args.question},
            ],
        }
    ],
)
print(answer.choices[0].message.content)
