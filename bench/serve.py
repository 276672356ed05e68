"""A server under load: answers a second, time to the first words, the slowest answers, memory; ours and transformers'.

`python bench/serve.py [--model demo smolvlm-256m] [--clients 1 4 16 64] [--answers 64] [--rounds 2]`. Clients ask one
question after another, a third of them with a picture, a third with two, a third in words alone; no two have the same
picture. `transformers serve` gets the same requests, in turns. Weights of SmolVLM are random, its pictures one frame.
`--case long-prompts` asks something else: what others notice of texts that are too long (`long_prompts.py`).
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
from callers import Asked, Failed, Process, body, load, process
from checkpoints import checkpoint, unsplit
from harness import Report, rounds

TOKENS = 16  # of an answer, at most
DEMO = Path(idefics.__file__).parent / "demo" / "idefics3"
RIVAL = "from transformers.cli.transformers import main; main()"


@dataclass(frozen=True)
class Round:
    """What the clients of one round saw.

    Attributes:
        memory: bytes that the server held afterwards.
    """

    seconds: float
    answers: list[Asked]
    memory: int


def ours(folder: Path) -> tuple[str, ...]:
    """`idefics serve`, with room for all who ask."""
    room = ("--requests-at-once", "1024", "--pictures-at-once", "1024")
    return "-m", "idefics", "serve", "--model", str(folder), "--name", str(folder), *room


def theirs(folder: Path) -> tuple[str, ...]:
    """`transformers serve` with the same model, loaded before anyone asks."""
    return "-c", RIVAL, "serve", str(folder)


def servers(folder: Path, report: Report, stack: ExitStack) -> dict[str, Process]:
    """Those that run; one that cannot is named, with what it said."""
    running: dict[str, Process] = {}
    for who, command in {"ours": ours(folder), "transformers serve": theirs(folder)}.items():
        try:
            server = stack.enter_context(process(*command))
            asyncio.run(load(server.url, [body(0, model=str(folder), tokens=1)], 1))
            running[who] = server
        except Failed as error:
            report.figure(f"{folder.name}: cannot be measured", who, 0, "answers/s", str(error)[:200])
    return running


def asked(
    server: Process, folder: Path, clients: int, most: int, fresh: Iterator[int]
) -> Callable[[int], Round]:
    """A round of `most` questions, of which this server has seen none."""

    def run(_: int) -> Round:
        bodies = [body(next(fresh), model=str(folder), tokens=TOKENS) for _ in range(most)]
        seconds, answers = asyncio.run(load(server.url, bodies, clients))
        return Round(seconds, answers, server.memory())

    return run


def measure(folder: Path, report: Report, given: argparse.Namespace) -> None:
    """One model."""
    with ExitStack() as stack:
        running = servers(folder, report, stack)
        fresh = {who: count(1) for who in running}
        for clients in given.clients:
            most = max(given.answers, clients)
            runs = {who: asked(server, folder, clients, most, fresh[who]) for who, server in running.items()}
            _tell(report, f"{folder.name}, {clients} clients", rounds(runs, given.rounds))


def _tell(report: Report, case: str, found: Mapping[str, list[Round]]) -> None:
    rates = {
        who: statistics.median(len(one.answers) / one.seconds for one in all) for who, all in found.items()
    }
    for who, all in found.items():
        answers = [answer for one in all for answer in one.answers]
        report.figure(case, who, rates[who], "answers/s", f"{len(answers)} answers")
        for what, times in (
            ("first words", [a.first for a in answers]),
            ("answer", [a.total for a in answers]),
        ):
            middle, slow, slowest = np.percentile(times, [50, 95, 99])
            note = f"{what}, median; p95 {slow:.3g} s, p99 {slowest:.3g} s"
            report.figure(case, who, float(middle), "s", note)
        report.figure(case, who, max(one.memory for one in all) / 2**20, "MiB", "resident, at most")
    if len(rates) > 1:
        ratio = rates["ours"] / rates["transformers serve"]
        pairs = zip(*(all[-1].answers for all in found.values()), strict=True)
        same = statistics.mean(one.text.strip() == other.text.strip() for one, other in pairs)
        report.figure(case, "ours / transformers serve", ratio, "times", f"{same:.0%} of answers the same")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", choices=["answers", "long-prompts"], default="answers")
    parser.add_argument("--model", nargs="+", default=["demo", "smolvlm-256m"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--answers", type=int, default=64, help="of a round; as many as clients at least")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="the demo checkpoint only, few answers, one round"
    )
    given = parser.parse_args()
    if given.quick:
        given.model, given.clients, given.answers, given.rounds = ["demo"], [1, 2], 3, 1
    report = Report("serve", quick=given.quick)
    if given.case == "long-prompts":
        long_prompts.measure(report, rounds=given.rounds)
        given.model = []
    for name in given.model:
        measure(DEMO if name == "demo" else unsplit(checkpoint(name)), report, given)
    report.close()


if __name__ == "__main__":
    main()
