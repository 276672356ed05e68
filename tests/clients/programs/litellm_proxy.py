"""LiteLLM's proxy between OpenAI's package and the server."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
from program_setup import API_KEY, BASE_URL, CONTENT_PARTS, MODEL, NEXT_QUESTION, print_answers

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
parameters = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": API_KEY}
config = {"model_list": [{"model_name": MODEL, "litellm_params": parameters}]}
Path("config.yaml").write_text(str(config))  # YAML reads what Python writes here
command = [Path(sys.executable).parent / "python", "-c", "from litellm import run_server; run_server()"]
command += ["--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
with subprocess.Popen(command, env=environment, stdout=sys.stderr, stderr=sys.stderr) as proxy:
    try:
        for _ in range(600):
            try:
                httpx.get(f"http://127.0.0.1:{port}/health/liveliness").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=API_KEY, max_retries=0)
        asked = [{"role": "user", "content": CONTENT_PARTS}]
        first = client.chat.completions.create(model=MODEL, messages=asked, tools=[]).choices[0].message
        turns = [*asked, first, {"role": "user", "content": NEXT_QUESTION}]
        then = client.chat.completions.create(model=MODEL, messages=turns).choices[0].message
        chunks = client.chat.completions.create(model=MODEL, messages=asked, stream=True, tools=[])
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        print_answers(first=[first.content, streamed], next=[then.content])
    finally:
        proxy.terminate()
