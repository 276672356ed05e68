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

from idefics.config import KernelMode
from idefics.quant.int8_matmul import onednn_linear, w8a8_matmul

MIN_TUNED_WEIGHTS = 2**25  # weights; a smaller model has answered before a measurement pays
TIMED_ROWS, MAX_TIMED_OUTPUTS = (
    128,
    4096,
)  # of a product that is timed: as many rows as a prompt, and at most so many outputs
CACHE_VERSION = 2  # of the products that are timed: with other ones, what is remembered is of no use
MAX_TIMED_CALLS, GIVE_UP_RATIO = (
    12,
    8,
)  # a product that takes so many times the best one's time is not tried again
MAX_TIME_RATIO = 0.9  # what takes the place of torch's float32 product must take less of its time than this

LayerShape = tuple[int, int]  # outputs, inputs of a layer


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """What is quicker here than torch's product in float32, which every machine has.

    Attributes:
        onednn: oneDNN's product in float32.
        integers: the product of eight-bit whole numbers, the rounding of the inputs included.
        halves: products in these dtypes of sixteen bits.
    """

    onednn: bool = False
    integers: bool = False
    halves: tuple[str, ...] = ()


def choose_kernels(model: nn.Module, kernels: KernelMode) -> KernelChoice | None:
    """What a model on a CPU computes with: None for torch's own products alone.

    "auto" goes by the processor, so that equal processors compute equal numbers; "autotune" by what is measured here.
    """
    if kernels == "reference":
        return None
    if kernels == "autotune":
        return autotune_kernels(model)
    linears = (module for module in model.modules() if isinstance(module, nn.Linear))
    return (
        kernel_choice_by_processor()
        if sum(layer.weight.numel() for layer in linears) >= MIN_TUNED_WEIGHTS
        else KernelChoice()
    )


def kernel_choice_by_processor() -> KernelChoice:
    """What is quick on processors of this kind, as measured on some of them.

    Intel's library, which torch computes float32 with, is several times slower than oneDNN on processors of AMD. Whole
    numbers and bfloat16 are quick where there are instructions for their products.
    """
    has_amx_fp16 = torch.cpu._is_amx_fp16_supported()
    return KernelChoice(
        onednn=torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available() and _is_amd(),
        integers=torch.cpu._is_vnni_supported(),
        halves=("bfloat16",) * torch.cpu._is_avx512_bf16_supported() + ("float16",) * has_amx_fp16,
    )


def autotune_kernels(model: nn.Module) -> KernelChoice:
    """For the widest layers of a model, whose shapes are enough. A small model is not measured."""
    shapes = Counter[LayerShape]()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            shapes[module.out_features, module.in_features] += module.weight.numel()
    if shapes.total() < MIN_TUNED_WEIGHTS:
        return KernelChoice()
    largest_shapes = sorted({(min(o, MAX_TIMED_OUTPUTS), i) for (o, i), _ in shapes.most_common(2)})
    key = " | ".join((_processor_key(), torch.__version__, str(CACHE_VERSION), str(largest_shapes)))
    cached_choices = _read_cache(path := cache_file())
    if (choice := _parse_kernel_choice(cached_choices.get(key))) is None:
        choice = time_kernels(largest_shapes)
        _write_cache(path, cached_choices | {key: asdict(choice)})
    return choice


def cache_file() -> Path:
    """Where verdicts are remembered, as the XDG Base Directory Specification has it."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "idefics" / "products.json"


@torch.inference_mode()
def time_kernels(shapes: Sequence[LayerShape]) -> KernelChoice:
    """Times every product at these shapes."""
    nanoseconds = Counter[str]()  # nanoseconds
    for outputs, inputs in shapes:
        nanoseconds.update(_best_times(_candidate_matmuls(TIMED_ROWS, outputs, inputs)))
    best_float32 = min(nanoseconds["float32"], nanoseconds["onednn"])
    return KernelChoice(
        onednn=nanoseconds["onednn"] < MAX_TIME_RATIO * nanoseconds["float32"],
        integers=nanoseconds["integers"] < MAX_TIME_RATIO * best_float32,
        halves=tuple(
            name for name in ("bfloat16", "float16") if nanoseconds[name] < MAX_TIME_RATIO * best_float32
        ),
    )


def _best_times(matmuls: Mapping[str, Callable[[], object]]) -> dict[str, int]:
    """Nanoseconds of each product's best call.

    In turn, and with one thread: where other programs use the machine, threads wait for one another, and a product of
    several steps waits several times.
    """
    threads, nanoseconds = torch.get_num_threads(), dict[str, int]()
    torch.set_num_threads(1)
    try:
        for round_index in range(MAX_TIMED_CALLS):
            for name, matmul in matmuls.items():
                if round_index > 1 and nanoseconds[name] > GIVE_UP_RATIO * min(nanoseconds.values()):
                    continue  # two calls are made in any case: the first one makes ready
                start = perf_counter_ns()
                matmul()
                elapsed = perf_counter_ns() - start
                nanoseconds[name] = min(elapsed, nanoseconds.get(name, elapsed))
    finally:
        torch.set_num_threads(threads)
    return nanoseconds


def _candidate_matmuls(rows: int, outputs: int, inputs: int) -> dict[str, Callable[[], object]]:
    x, weight = torch.ones(rows, inputs), torch.ones(outputs, inputs)
    quantized, scale = weight.to(torch.int8), torch.ones(outputs)
    matmuls: dict[str, Callable[[], object]] = {
        "float32": lambda: functional.linear(x, weight),
        "onednn": lambda: functional.linear(x, weight),
        "integers": lambda: w8a8_matmul(x, quantized, scale, None),
    }
    if torch.backends.mkldnn.is_available():
        matmuls["onednn"] = lambda: onednn_linear(x, weight, None)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        matmuls[name] = partial(functional.linear, x.to(dtype), weight.to(dtype))
    return matmuls


def _is_amd() -> bool:
    return "AuthenticAMD" in (read_cpuinfo("vendor_id") or platform.processor())


def read_cpuinfo(field: str) -> str:
    """What Linux says of the processor, or nothing."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    return ""


def _processor_key() -> str:
    name = read_cpuinfo("model name") or platform.processor()
    return f"{platform.machine()} {name} {torch.backends.cpu.get_cpu_capability()}"


def _parse_kernel_choice(raw: Any) -> KernelChoice | None:
    match raw:
        case {"onednn": bool(one), "integers": bool(whole), "halves": [*halves]}:
            return KernelChoice(one, whole, tuple(str(half) for half in halves))
    return None


def _read_cache(file: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def _write_cache(file: Path, choices: dict[str, Any]) -> None:
    """Whole or not at all: two processes may write at once."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as temporary:
            json.dump(choices, temporary, indent=1)
        Path(temporary.name).replace(file)
