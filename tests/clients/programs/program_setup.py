"""What the programs of this folder share: the server's address, the picture, and how they tell what they were answered.

They run in environments of their own, where neither this project nor its test tools are installed.
"""

import base64
import json
import sys
from pathlib import Path

URL, PICTURE = sys.argv[1], Path(sys.argv[2])
BASE_URL = f"{URL}/v1"
API_KEY = "none"
MODEL = "demo"
QUESTION, NEXT_QUESTION, STORY_PROMPT = "What is shown?", "What colour?", "Once upon a time,"
DATA_URI = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
CONTENT_PARTS = [{"type": "image_url", "image_url": {"url": DATA_URI}}, {"type": "text", "text": QUESTION}]
SHAPE_SCHEMA = {
    "type": "object",
    "properties": {"shape": {"type": "string", "enum": ["circle", "square"]}},
    "required": ["shape"],
    "additionalProperties": False,
}


def print_answers(**answers):
    """Prints what was answered, by what was asked: "first", "next" (after the first), "seen" (an object), ..."""
    print("\n" + json.dumps(answers))
