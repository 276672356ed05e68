"""The command `llm`, told of the server in its own file of models."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from program_setup import API_KEY, BASE_URL, MODEL, NEXT_QUESTION, PICTURE, QUESTION, print_answers

with tempfile.TemporaryDirectory() as folder:
    models = [
        {
            "model_id": MODEL,
            "model_name": MODEL,
            "api_base": BASE_URL,
            "api_key_name": "idefics",
            "vision": True,
        }
    ]
    (Path(folder) / "extra-openai-models.yaml").write_text(str(models))  # YAML reads what Python writes here
    (Path(folder) / "keys.json").write_text(f'{{"idefics": "{API_KEY}"}}')

    def ask(*arguments):
        command = [sys.executable, "-m", "llm", "-m", MODEL, *arguments]
        environment = {**os.environ, "LLM_USER_PATH": folder}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    shown = ("-a", str(PICTURE), QUESTION)
    print_answers(
        first=[ask(*shown, "--no-stream"), ask(*shown)], next=[ask("-c", NEXT_QUESTION, "--no-stream")]
    )
