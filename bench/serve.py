"""A server under load: answers a second, time to the first words, the slowest answers, memory; ours and transformers'.

`python bench/serve.py [--model demo smolvlm-256m] [--clients 1 4 16 64] [--answers 64] [--rounds 2]`. Clients send one
request after another: a third with one picture, a third with two, a third with text only; no picture occurs twice.
Ours by default, ours in int8 and `transformers serve` get the same requests in alternating rounds. SmolVLM has random
weights and one frame a picture.
`--case long-prompts` measures how texts that are too long affect other requests (`long_prompts.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

import idefics
import long_prompts
from checkpoints import copy_without_image_splitting, get_checkpoint
from harness import BenchmarkReport, run_rounds
from server_clients import RequestFailed, ServerProcess, StreamedAnswer, chat_request, run_load, start_server

MAX_TOKENS = 16  # of an answer, at most
DEMO_FOLDER = Path(idefics.__file__).parent / "demo" / "idefics3"
# Answers a second of 16 clients, relative to transformers serve: a target for SmolVLM-256M.
MIN_SPEEDUP_BY_SERVER = {"ours": 2, "ours int8": 3}
TARGET_CLIENTS = 16
TRANSFORMERS_SERVE_CODE = "from transformers.cli.transformers import main; main()"


@dataclass(frozen=True)
class RoundResult:
    """The results of one round.

    Attributes:
        seconds: duration of the round.
        answers: in the order of the requests.
        resident_bytes: resident memory of the server afterwards.
    """

    seconds: float
    answers: list[StreamedAnswer]
    resident_bytes: int


def idefics_serve_arguments(folder: Path) -> tuple[str, ...]:
    """Arguments of `idefics serve`, with limits that no request of the benchmark reaches."""
    admission_flags = ("--requests-at-once", "1024", "--pictures-at-once", "1024")
    return "-m", "idefics", "serve", "--model", str(folder), "--name", str(folder), *admission_flags


def transformers_serve_arguments(folder: Path) -> tuple[str, ...]:
    """Arguments of `transformers serve` with the same model, loaded at the start."""
    return "-c", TRANSFORMERS_SERVE_CODE, "serve", str(folder)


def start_servers(folder: Path, report: BenchmarkReport, stack: ExitStack) -> dict[str, ServerProcess]:
    """Starts the servers. One that fails is reported with its message."""
    server_by_name: dict[str, ServerProcess] = {}
    for who, command in {
        "ours": idefics_serve_arguments(folder),
        "ours int8": (*idefics_serve_arguments(folder), "--quantize", "int8"),
        "transformers serve": transformers_serve_arguments(folder),
    }.items():
        try:
            server = stack.enter_context(start_server(*command))
            asyncio.run(run_load(server.url, [chat_request(0, model=str(folder), max_tokens=1)], 1))
            server_by_name[who] = server
        except RequestFailed as error:
            report.add_figure(f"{folder.name}: cannot be measured", who, 0, "answers/s", str(error)[:200])
    return server_by_name


def make_round(
    server: ServerProcess, folder: Path, num_clients: int, num_requests: int, unused_indices: Iterator[int]
) -> Callable[[int], RoundResult]:
    """A round of `num_requests` requests that this server has not seen."""

    def run(_: int) -> RoundResult:
        bodies = [
            chat_request(next(unused_indices), model=str(folder), max_tokens=MAX_TOKENS)
            for _ in range(num_requests)
        ]
        seconds, answers = asyncio.run(run_load(server.url, bodies, num_clients))
        return RoundResult(seconds, answers, server.resident_bytes())

    return run


def measure_model(folder: Path, report: BenchmarkReport, arguments: argparse.Namespace) -> None:
    """Measures one model with each number of clients."""
    with ExitStack() as stack:
        server_by_name = start_servers(folder, report, stack)
        unused_indices_by_name = {who: count(1) for who in server_by_name}
        for clients in arguments.clients:
            num_requests = max(arguments.answers, clients)
            runs = {
                who: make_round(server, folder, clients, num_requests, unused_indices_by_name[who])
                for who, server in server_by_name.items()
            }
            speedups = _report_rounds(
                report, f"{folder.name}, {clients} clients", run_rounds(runs, arguments.rounds)
            )
            if clients == TARGET_CLIENTS and folder != DEMO_FOLDER:
                for who, speedup in speedups.items():
                    report.add_target(
                        f"{folder.name}, {clients} clients: {who} / transformers serve",
                        speedup,
                        min_value=MIN_SPEEDUP_BY_SERVER[who],
                    )


def _report_rounds(
    report: BenchmarkReport, case: str, rounds_by_name: Mapping[str, list[RoundResult]]
) -> dict[str, float]:
    """Reports the figures of all servers; returns ours, relative to transformers' where that was measured."""
    answers_per_second = {
        who: statistics.median(len(round_result.answers) / round_result.seconds for round_result in all)
        for who, all in rounds_by_name.items()
    }
    for who, all in rounds_by_name.items():
        answers = [answer for round_result in all for answer in round_result.answers]
        report.add_figure(case, who, answers_per_second[who], "answers/s", f"{len(answers)} answers")
        for measurement, times in (
            ("first words", [a.first_token_seconds for a in answers]),
            ("answer", [a.total_seconds for a in answers]),
        ):
            p50, p95, p99 = np.percentile(times, [50, 95, 99])
            note = f"{measurement}, median; p95 {p95:.3g} s, p99 {p99:.3g} s"
            report.add_figure(case, who, float(p50), "s", note)
        report.add_figure(
            case,
            who,
            max(round_result.resident_bytes for round_result in all) / 2**20,
            "MiB",
            "resident, at most",
        )
    if not (transformers_rounds := rounds_by_name.get("transformers serve")):
        return {}
    transformers_speed = answers_per_second.pop("transformers serve")
    speedups = {who: speed / transformers_speed for who, speed in answers_per_second.items()}
    for who, speedup in speedups.items():
        pairs = zip(rounds_by_name[who][-1].answers, transformers_rounds[-1].answers, strict=True)
        share_equal = statistics.mean(mine.text.strip() == theirs.text.strip() for mine, theirs in pairs)
        report.add_figure(
            case,
            f"{who} / transformers serve",
            speedup,
            "times",
            f"{share_equal:.0%} of answers the same",
        )
    return speedups


def main() -> None:
    """Reads the command line, measures and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=["answers", "long-prompts"], default="answers")
    parser.add_argument("--model", nargs="+", default=["demo", "smolvlm-256m"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--answers", type=int, default=64, help="of a round; as many as clients at least")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="the demo checkpoint only, few answers, one round"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.model, arguments.clients, arguments.answers, arguments.rounds = ["demo"], [1, 2], 3, 1
    report = BenchmarkReport("serve", is_quick=arguments.quick)
    if arguments.case == "long-prompts":
        long_prompts.measure(report, num_rounds=arguments.rounds)
        arguments.model = []
    for name in arguments.model:
        measure_model(
            DEMO_FOLDER if name == "demo" else copy_without_image_splitting(get_checkpoint(name)),
            report,
            arguments,
        )
    report.print_report()


if __name__ == "__main__":
    main()
