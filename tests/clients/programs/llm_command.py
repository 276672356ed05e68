"""The command `llm`, told of the server in its own file of models."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from asking import BASE, KEY, MODEL, NEXT, PICTURE, QUESTION, tell

with tempfile.TemporaryDirectory() as folder:
    models = [
        {"model_id": MODEL, "model_name": MODEL, "api_base": BASE, "api_key_name": "idefics", "vision": True}
    ]
    (Path(folder) / "extra-openai-models.yaml").write_text(str(models))  # YAML reads what Python writes here
    (Path(folder) / "keys.json").write_text(f'{{"idefics": "{KEY}"}}')

    def ask(*arguments):
        command = [sys.executable, "-m", "llm", "-m", MODEL, *arguments]
        environment = {**os.environ, "LLM_USER_PATH": folder}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    shown = ("-a", str(PICTURE), QUESTION)
    tell(first=[ask(*shown, "--no-stream"), ask(*shown)], next=[ask("-c", NEXT, "--no-stream")])
