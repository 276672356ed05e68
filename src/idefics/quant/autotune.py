"""Chooses the matrix-product kernels of a model on a CPU, by the kind of processor or by timing them.

Timing takes some milliseconds. Results are cached in a file in the user's cache folder, by processor, torch version and
shapes; without access to that file the products are timed each time.
"""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import perf_counter_ns
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from idefics.config import KernelMode
from idefics.native import library
from idefics.nn.native_kernels import NativeWeight, can_use_native_weight, native_linear
from idefics.quant.matmul import onednn_linear, w8a8_matmul

MIN_TUNED_WEIGHTS = 2**25  # number of weights; for a smaller model timing takes longer than it saves
TIMED_ROWS, MAX_TIMED_OUTPUTS = 128, 4096  # sizes of a product that is timed: rows as of a prompt
MAX_TIMED_CALLS = 12  # of each product
GIVE_UP_RATIO = 8  # a product that takes this many times as long as the fastest is not timed further
MAX_TIME_RATIO = 0.9  # a product replaces torch's float32 product if it takes less than this part of its time
CACHE_VERSION = 3  # counts changes of the products that are timed: older cached results are not used

LayerShape = tuple[int, int]  # outputs, inputs of a layer


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """Which matrix-product kernels are faster on this machine than torch's in float32.

    Attributes:
        onednn: whether oneDNN's float32 kernel is faster (`onednn_linear`).
        integers: whether int8 kernels are faster, quantising the inputs included (`w8a8_matmul`).
        bfloat16: whether the C kernel for bfloat16 weights is faster, rounding the inputs included (`native_linear`).
    """

    onednn: bool = False
    integers: bool = False
    bfloat16: bool = False


def choose_kernels(model: nn.Module, kernels: KernelMode) -> KernelChoice | None:
    """Chooses the kernels of matrix products for a model on a CPU.

    "auto" chooses by the kind of processor, so that equal processors compute equal numbers; "autotune" times kernels.

    Returns:
        The choice; None: torch's plain products ("reference").
    """
    if kernels == "reference":
        return None
    linears = (module for module in model.modules() if isinstance(module, nn.Linear))
    if sum(layer.weight.numel() for layer in linears) < MIN_TUNED_WEIGHTS:
        return KernelChoice()
    return autotune_kernels(model) if kernels == "autotune" else kernel_choice_by_processor()


def kernel_choice_by_processor() -> KernelChoice:
    """The kernels that are fast on processors of this kind, as measured on some of them.

    torch's float32 products use Intel's MKL, which is several times slower than oneDNN on AMD processors. Products of
    int8 and bfloat16 are fast on processors with instructions for them.
    """
    return KernelChoice(
        onednn=torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available() and _is_amd(),
        integers=torch.cpu._is_vnni_supported(),
        bfloat16=library.best_instruction_set("bfloat16 products") is not None,
    )


def autotune_kernels(model: nn.Module) -> KernelChoice:
    """Chooses kernels by timing them at the two layer shapes that hold most weights, or reads the cached choice."""
    shapes = Counter[LayerShape]()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            shapes[module.out_features, module.in_features] += module.weight.numel()
    largest_shapes = sorted({(min(o, MAX_TIMED_OUTPUTS), i) for (o, i), _ in shapes.most_common(2)})
    key = " | ".join((processor_key(), torch.__version__, str(CACHE_VERSION), str(largest_shapes)))
    cached_choices = _read_cache(path := kernel_choice_cache_file())
    match cached_choices.get(key):
        case {"onednn": bool(onednn), "integers": bool(integers), "bfloat16": bool(bfloat16)}:
            return KernelChoice(onednn, integers, bfloat16)
    choice = time_kernels(largest_shapes)
    _write_cache(path, cached_choices | {key: asdict(choice)})
    return choice


def kernel_choice_cache_file() -> Path:
    """The file in which choices are cached, in the user's cache folder (XDG Base Directory Specification)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "idefics" / "products.json"


@torch.inference_mode()
def time_kernels(shapes: Sequence[LayerShape]) -> KernelChoice:
    """Times each kernel on this machine, and returns those that are faster than torch's.

    Args:
        shapes: (outputs, inputs) of layers; the times of all shapes are added up.
    """
    nanoseconds = Counter[str]()
    for outputs, inputs in shapes:
        nanoseconds.update(_fastest_call_times(_candidate_matmuls(TIMED_ROWS, outputs, inputs)))
    best_float32 = min(nanoseconds["float32"], nanoseconds["onednn"])
    return KernelChoice(
        onednn=nanoseconds["onednn"] < MAX_TIME_RATIO * nanoseconds["float32"],
        integers=nanoseconds["integers"] < MAX_TIME_RATIO * best_float32,
        bfloat16="bfloat16" in nanoseconds and nanoseconds["bfloat16"] < MAX_TIME_RATIO * best_float32,
    )


def _fastest_call_times(matmuls: Mapping[str, Callable[[], object]]) -> dict[str, int]:
    """Times functions: returns the nanoseconds of each one's fastest call, by name.

    The functions are called in turn, with one thread: on a busy machine threads wait for one another, and a product of
    several steps would wait several times.
    """
    threads, nanoseconds = torch.get_num_threads(), dict[str, int]()
    torch.set_num_threads(1)
    try:
        for round_index in range(MAX_TIMED_CALLS):
            for name, matmul in matmuls.items():
                if round_index > 1 and nanoseconds[name] > GIVE_UP_RATIO * min(nanoseconds.values()):
                    continue  # at least two calls: the first one warms up
                start = perf_counter_ns()
                matmul()
                elapsed = perf_counter_ns() - start
                nanoseconds[name] = min(elapsed, nanoseconds.get(name, elapsed))
    finally:
        torch.set_num_threads(threads)
    return nanoseconds


def _candidate_matmuls(rows: int, outputs: int, inputs: int) -> dict[str, Callable[[], object]]:
    """For each kernel a function that computes one product of this shape, by the names that `time_kernels` reads."""
    x, weight = torch.ones(rows, inputs), torch.ones(outputs, inputs)
    quantized, scale = weight.to(torch.int8), torch.ones(outputs)
    matmuls: dict[str, Callable[[], object]] = {
        "float32": lambda: functional.linear(x, weight),
        "onednn": lambda: functional.linear(x, weight),
        "integers": lambda: w8a8_matmul(x, quantized, scale, None),
    }
    if torch.backends.mkldnn.is_available():
        matmuls["onednn"] = lambda: onednn_linear(x, weight, None)
    if can_use_native_weight(half := weight.bfloat16()):
        matmuls["bfloat16"] = lambda: native_linear(x, NativeWeight(half), None)
    return matmuls


def _is_amd() -> bool:
    """Whether the processor is made by AMD."""
    return "AuthenticAMD" in (read_cpuinfo("vendor_id") or platform.processor())


def read_cpuinfo(field: str) -> str:
    """The value of the first line of Linux's /proc/cpuinfo that begins with `field`; "" if there is none."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    return ""


def processor_key() -> str:
    """A text for keys of caches: the processor's name, and the instructions that torch uses on it."""
    name = read_cpuinfo("model name") or platform.processor()
    return f"{platform.machine()} {name} {torch.backends.cpu.get_cpu_capability()}"


def _read_cache(file: Path) -> dict[str, Any]:
    """The cached choices by key; empty if the file cannot be read."""
    with suppress(OSError, ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def _write_cache(file: Path, choices: dict[str, Any]) -> None:
    """Writes the cached choices, replacing the file atomically, as two processes may write at once.

    Without access nothing is written.
    """
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as temporary:
            json.dump(choices, temporary, indent=1)
        Path(temporary.name).replace(file)
