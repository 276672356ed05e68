"""Cases of `batch.py` about whole runs: what is computed again after a kill, memory, and a Ray cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import PIL.Image

import idefics
from harness import BenchmarkReport


@dataclass(frozen=True)
class BenchmarkSize:
    """Numbers of rounds and rows; small for `--quick`."""

    num_rounds: int = 3
    num_tiled: int = 2
    num_untiled: int = 8
    num_classified: int = 40
    num_shots: int = 8
    num_labels: int = 20
    num_resumed: int = 2_000
    num_flat: int = 100_000
    num_ray: int = 1_000


QUICK_SIZE = BenchmarkSize(
    num_rounds=1,
    num_tiled=2,
    num_untiled=2,
    num_classified=2,
    num_shots=2,
    num_labels=3,
    num_resumed=60,
    num_flat=600,
    num_ray=60,
)


# Each answer is counted in a file, which a kill leaves whole.
COUNTING_PROGRAM = """
import sys
from idefics.batch import answerers

answer, counter = answerers.LocalAnswerer.answer, sys.argv.pop(1)

def counted(self, items):
    with open(counter, "ab", buffering=0) as calls:
        for item in answer(self, items):
            calls.write(b".")
            yield item

answerers.LocalAnswerer.answer = counted
from idefics.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def measure_resume(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Answers that `idefics run` computes if it is killed at half and run again, for each row."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_small_pictures(folder / "pictures", size.num_resumed)
        calls = folder / "calls"
        calls.touch()
        program = [sys.executable, "-c", COUNTING_PROGRAM, str(calls)]
        command = ["run", str(folder / "pictures"), "--model", "demo", "--out", str(folder / "out.jsonl")]
        process = subprocess.Popen([*program, *command], stderr=subprocess.DEVNULL)
        while calls.stat().st_size < size.num_resumed // 2 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        subprocess.run([*program, *command], check=True, stderr=subprocess.DEVNULL)
        num_rows = len((folder / "out.jsonl").read_bytes().splitlines())
        assert num_rows == size.num_resumed, num_rows
        ratio = calls.stat().st_size / size.num_resumed
    case = f"demo, {size.num_resumed:,} rows, killed at half"
    report.add_figure(case, "answers computed for each row", ratio, "", f"{num_rows:,} rows in the output")
    report.add_target(f"{case}: answers computed / rows", ratio, max_value=1.02)


def measure_memory(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Memory of a process while it answers many rows."""
    from idefics.batch.answerers import LocalAnswerer
    from idefics.batch.export import exporter_for
    from idefics.batch.ledger import Ledger
    from idefics.batch.output_file import LedgerExport, OutputFile
    from idefics.batch.run import BatchRun
    from idefics.batch.run_counts import RunCounts
    from idefics.batch.run_settings import RowSelection, RunSettings
    from idefics.batch.sources.inputs import open_source
    from idefics.batch.sources.settings import SourceSettings
    from idefics.batch.text_settings import TextSettings
    from idefics.batch.text_writer import TextWriter

    memory: list[int] = []

    def sample(counts: RunCounts) -> None:
        if counts.num_done % (size.num_flat // 200) == 0:
            memory.append(_resident_bytes())

    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_small_pictures(folder / "pictures", size.num_flat)
        out = folder / "out.jsonl"
        settings = RunSettings(task="caption", model="demo", revision="", fingerprint="demo")
        with Ledger(folder / "ledger") as ledger:
            started = time.perf_counter()
            run = BatchRun(
                open_source([str(folder / "pictures")], SourceSettings()),
                settings,
                None,
                LocalAnswerer(lambda: idefics.load("demo"), "caption", {"max_new_tokens": 2}),
                ledger,
                TextWriter(ledger, settings, TextSettings()),
                LedgerExport(ledger, OutputFile(out, exporter_for(out))),
                RowSelection(),
                on_progress=sample,
            )
            run.run()
            seconds = time.perf_counter() - started
        assert run.counts.num_written == size.num_flat
    after_start = memory[len(memory) // 20]
    case = f"demo, {size.num_flat:,} rows"
    report.add_figure(case, "memory after a twentieth", after_start / 1e6, "MB")
    report.add_figure(case, "memory at its largest after that", max(memory[len(memory) // 20 :]) / 1e6, "MB")
    report.add_figure(case, "rows a second", size.num_flat / seconds, "rows/s", "2 tokens each")
    growth = max(memory[len(memory) // 20 :]) / after_start
    report.add_target(f"{case}: largest memory / after a twentieth", growth, max_value=1.05)


def measure_ray(report: BenchmarkReport, name: str, size: BenchmarkSize) -> None:
    """Rows a second of two engines on a local Ray cluster, and of one engine in this process, one thread each."""
    from idefics.batch.answerers import Answerer, LocalAnswerer, WorkItem
    from idefics.batch.ray_engine import EngineSpec, RayOptions
    from idefics.batch.ray_pool import RayAnswerer
    from idefics.batch.run_settings import fingerprint_checkpoint
    from idefics.weights import safetensors_files

    with TemporaryDirectory() as temporary:
        paths = write_small_pictures(Path(temporary), size.num_ray)
        items = [WorkItem(b"%d" % number, path.read_bytes(), None) for number, path in enumerate(paths)]

    def rows_per_second(answerer: Answerer, items: list[WorkItem]) -> float:
        answers: Iterator[object] = answerer.answer(iter(items))
        for _ in range(len(items) // 5):  # engines start, models load
            next(answers)
        started = time.perf_counter()
        rest = sum(1 for _ in answers)
        return rest / (time.perf_counter() - started)

    local = LocalAnswerer(lambda: idefics.load("demo", threads=1), "caption", {})
    one = rows_per_second(local, items[: len(items) // 2])
    demo = Path(idefics.__file__).parent / "demo" / "idefics3"
    spec = EngineSpec(
        load_keywords={"model": "demo"},
        fingerprint=fingerprint_checkpoint(demo, safetensors_files(demo)),
        shots=(),
        task="caption",
        options={},
    )
    pool = RayAnswerer(RayOptions(address="local", num_engines=2, num_cpus=1), spec)
    try:
        two = rows_per_second(pool, items)
    finally:
        pool.close()
    case = f"demo, {size.num_ray:,} rows, one thread an engine"
    report.add_figure(case, "one engine in this process", one, "rows/s")
    report.add_figure(case, "two engines on Ray", two, "rows/s")
    report.add_target(f"{case}: two engines / twice one", two / (2 * one), min_value=0.9)


def write_small_pictures(folder: Path, count: int) -> list[Path]:
    """Different pictures of 32 x 32 pixels, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:06}.png" for number in range(count)]
    for number, path in enumerate(paths):
        picture = PIL.Image.new("RGB", (32, 32), (number % 256, number // 256 % 256, 200))
        picture.putpixel((number % 32, number // 32 % 32), (number // 65536, 255, 0))
        picture.save(path, compress_level=1)
    return paths


def _resident_bytes() -> int:
    """Memory of this process that no file backs, in bytes."""
    fields = Path("/proc/self/status").read_text().split("RssAnon:")[1].split()
    return int(fields[0]) * 1024
