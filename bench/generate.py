"""Time to the first token and tokens a second, ours and transformers' on the same weights, in alternating order.

`python bench/generate.py [--model demo]`. The last line is JSON. Ratios of medians within one run are what to trust.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import idefics
from idefics.config import EngineConfig, Sampling
from idefics.engine.engine import Engine
from idefics.engine.request import Request
from idefics.prompt import Prompt
from idefics.weights import find

PICTURE = Path(__file__).parent.parent / "src/idefics/demo/pictures/puppy.png"
ROWS = (1, 8)
NEW_TOKENS = 64
ROUNDS = 5


def bandwidth() -> float:
    """Bytes a second that reading a large tensor reaches with the threads at hand."""
    block = torch.ones(2**27)  # 512 MiB, far beyond any cache
    times = [seconds(block.sum) for _ in range(5)]
    return block.nbytes / min(times)


def seconds(run: Callable[[], Any]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def ours(engine: Engine, prompt: Prompt, rows: int, tokens: int) -> Callable[[], Any]:
    """A call that answers `rows` equal prompts with exactly `tokens` tokens: no id stops them."""
    request = Request(prompt, Sampling(max_new_tokens=tokens))

    def answer() -> None:
        engine.forget()  # the prompt and its picture are read anew, as the rival does
        for handle in [engine.submit(request) for _ in range(rows)]:
            handle.result()

    return answer


def rival(folder: Path, prompt: Prompt, rows: int, tokens: int) -> Callable[[], Any]:
    """The same in transformers."""
    from transformers import AutoModelForImageTextToText, logging

    logging.set_verbosity_error()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    frames = torch.stack([torch.from_numpy(frame) for tiles in prompt.pictures for frame in tiles.frames])
    inputs = {
        "input_ids": torch.tensor([prompt.ids] * rows),
        "attention_mask": torch.ones(rows, len(prompt), dtype=torch.long),
        "pixel_values": frames[None].repeat(rows, 1, 1, 1, 1),
    }
    if model.config.model_type == "idefics":
        sees = torch.tensor(prompt.sees)
        inputs["image_attention_mask"] = (
            (sees[None, :, None] == torch.arange(len(prompt.pictures))).long().repeat(rows, 1, 1)
        )
    settings = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False, "use_cache": True}
    return torch.inference_mode()(lambda: model.generate(**inputs, **settings))


def compare(model: str) -> list[dict[str, Any]]:
    """One row a batch size: medians of ours and the rival's, a round of each in turn."""
    vlm = idefics.load(model, dtype="float32")
    engine = Engine(vlm.engine.model, EngineConfig(batch_rows=max(ROWS)))
    prompt = vlm.prompt([idefics.user(idefics.Picture(PICTURE), "Can you describe this image?")])
    folder, rows_of = find(model), []
    for rows in ROWS:
        runs = {
            (who, tokens): make(rows, tokens)
            for tokens in (1, NEW_TOKENS)
            for who, make in (
                ("ours", lambda rows, tokens: ours(engine, prompt, rows, tokens)),
                ("transformers", lambda rows, tokens: rival(folder, prompt, rows, tokens)),
            )
        }
        times: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
        for key, run in [*runs.items(), *list(runs.items()) * ROUNDS]:
            times[key].append(seconds(run))
        row: dict[str, Any] = {"rows": rows}
        for who in ("ours", "transformers"):
            first, whole = (statistics.median(times[who, tokens][1:]) for tokens in (1, NEW_TOKENS))
            row[who] = {
                "first_token_ms": first * 1e3,
                "tokens_per_second": rows * (NEW_TOKENS - 1) / (whole - first),
            }
        rows_of.append(row)
    return rows_of


def main() -> None:
    """Measures and prints a table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    model = parser.parse_args().model
    warnings.simplefilter("ignore")
    found = compare(model)
    weights = sum(
        parameter.nbytes for parameter in idefics.load(model, dtype="float32").engine.model.parameters()
    )
    limit = bandwidth() / weights
    print(
        f"{model}, float32, {torch.get_num_threads()} threads of {platform.processor() or platform.machine()}"
    )
    print(f"{'rows':>4} {'first token, ms':>28} {'tokens a second':>28} {'ratio':>6}")
    print(f"{'':>4} {'ours':>13} {'transformers':>14} {'ours':>13} {'transformers':>14}")
    for row in found:
        mine, theirs = row["ours"], row["transformers"]
        ratio = mine["tokens_per_second"] / theirs["tokens_per_second"]
        print(
            f"{row['rows']:>4} {mine['first_token_ms']:>13.1f} {theirs['first_token_ms']:>14.1f} "
            f"{mine['tokens_per_second']:>13.1f} {theirs['tokens_per_second']:>14.1f} {ratio:>6.2f}"
        )
    print(f"Reading all weights once a token would allow {limit:.0f} tokens a second at one row.")
    print(
        json.dumps(
            {"model": model, "torch": torch.__version__, "limit_tokens_per_second": limit, "rows": found}
        )
    )


if __name__ == "__main__":
    main()
