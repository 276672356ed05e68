"""Which product computes: by the kind of processor, or by what is quickest on this machine.

The latter is measured once for some milliseconds, and remembered.

What is remembered is a file in the user's cache folder, by processor, version of torch and shapes. Where it
cannot be read or written, the measurement is made again.
"""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import perf_counter_ns
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from idefics.config import Kernels
from idefics.quant.products import integers, onednn

SMALL = 2**25  # weights; a smaller model has answered before a measurement pays
ROWS, OUTPUTS = 128, 4096  # of a product that is timed: as many rows as a prompt, and at most so many outputs
KIND = 2  # of the products that are timed: with other ones, what is remembered is of no use
ROUNDS, HOPELESS = 12, 8  # a product that takes so many times the best one's time is not tried again
CLEARLY = 0.9  # what takes the place of torch's float32 product must take less of its time than this

Shape = tuple[int, int]  # outputs, inputs of a layer


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is quicker here than torch's product in float32, which every machine has.

    Attributes:
        onednn: oneDNN's product in float32.
        integers: the product of eight-bit whole numbers, the rounding of the inputs included.
        halves: products in these dtypes of sixteen bits.
    """

    onednn: bool = False
    integers: bool = False
    halves: tuple[str, ...] = ()


def verdict_for(model: nn.Module, kernels: Kernels) -> Verdict | None:
    """What a model on a CPU computes with: None for torch's own products alone.

    "auto" goes by the processor, so that equal processors compute equal numbers; "autotune" by what is measured here.
    """
    if kernels == "reference":
        return None
    if kernels == "autotune":
        return verdict(model)
    linears = (module for module in model.modules() if isinstance(module, nn.Linear))
    return by_processor() if sum(layer.weight.numel() for layer in linears) >= SMALL else Verdict()


def by_processor() -> Verdict:
    """What is quick on processors of this kind, as measured on some of them.

    Intel's library, which torch computes float32 with, is several times slower than oneDNN on processors of AMD. Whole
    numbers and bfloat16 are quick where there are instructions for their products.
    """
    has = torch.cpu._is_amx_fp16_supported()
    return Verdict(
        onednn=torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available() and _is_amd(),
        integers=torch.cpu._is_vnni_supported(),
        halves=("bfloat16",) * torch.cpu._is_avx512_bf16_supported() + ("float16",) * has,
    )


def verdict(model: nn.Module) -> Verdict:
    """For the widest layers of a model, whose shapes are enough. A small model is not measured."""
    shapes = Counter[Shape]()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            shapes[module.out_features, module.in_features] += module.weight.numel()
    if shapes.total() < SMALL:
        return Verdict()
    widest = sorted({(min(o, OUTPUTS), i) for (o, i), _ in shapes.most_common(2)})
    key = " | ".join((_processor(), torch.__version__, str(KIND), str(widest)))
    known = _read(file := cache_file())
    if (found := _verdict(known.get(key))) is None:
        found = measured(widest)
        _write(file, known | {key: asdict(found)})
    return found


def cache_file() -> Path:
    """Where verdicts are remembered, as the XDG Base Directory Specification has it."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "idefics" / "products.json"


@torch.inference_mode()
def measured(shapes: Sequence[Shape]) -> Verdict:
    """Times every product at these shapes."""
    spent = Counter[str]()  # nanoseconds
    for outputs, inputs in shapes:
        spent.update(_quickest(_products(ROWS, outputs, inputs)))
    best = min(spent["float32"], spent["onednn"])
    return Verdict(
        onednn=spent["onednn"] < CLEARLY * spent["float32"],
        integers=spent["integers"] < CLEARLY * best,
        halves=tuple(name for name in ("bfloat16", "float16") if spent[name] < CLEARLY * best),
    )


def _quickest(products: Mapping[str, Callable[[], object]]) -> dict[str, int]:
    """Nanoseconds of each product's best call.

    In turn, and with one thread: where other programs use the machine, threads wait for one another, and a product of
    several steps waits several times.
    """
    threads, spent = torch.get_num_threads(), dict[str, int]()
    torch.set_num_threads(1)
    try:
        for number in range(ROUNDS):
            for name, product in products.items():
                if number > 1 and spent[name] > HOPELESS * min(spent.values()):
                    continue  # two calls are made in any case: the first one makes ready
                start = perf_counter_ns()
                product()
                took = perf_counter_ns() - start
                spent[name] = min(took, spent.get(name, took))
    finally:
        torch.set_num_threads(threads)
    return spent


def _products(rows: int, outputs: int, inputs: int) -> dict[str, Callable[[], object]]:
    x, weight = torch.ones(rows, inputs), torch.ones(outputs, inputs)
    levels, scale = weight.to(torch.int8), torch.ones(outputs)
    found: dict[str, Callable[[], object]] = {
        "float32": lambda: functional.linear(x, weight),
        "onednn": lambda: functional.linear(x, weight),
        "integers": lambda: integers(x, levels, scale, None),
    }
    if torch.backends.mkldnn.is_available():
        found["onednn"] = lambda: onednn(x, weight, None)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        found[name] = partial(functional.linear, x.to(dtype), weight.to(dtype))
    return found


def _is_amd() -> bool:
    return "AuthenticAMD" in (said_of_processor("vendor_id") or platform.processor())


def said_of_processor(what: str) -> str:
    """What Linux says of the processor, or nothing."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(what):
                return line.partition(":")[2].strip()
    return ""


def _processor() -> str:
    name = said_of_processor("model name") or platform.processor()
    return f"{platform.machine()} {name} {torch.backends.cpu.get_cpu_capability()}"


def _verdict(raw: Any) -> Verdict | None:
    match raw:
        case {"onednn": bool(one), "integers": bool(whole), "halves": [*halves]}:
            return Verdict(one, whole, tuple(str(half) for half in halves))
    return None


def _read(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _write(file: Path, known: dict[str, Any]) -> None:
    """Whole or not at all: two processes may write at once."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as written:
            json.dump(known, written, indent=1)
        Path(written.name).replace(file)
