"""Checks of the files of weights, without loading a model: names, shapes, numbers, copies, gates and norms."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from torch import Tensor

from idefics import models, quant
from idefics.errors import format_bytes
from idefics.evaluate.check.checks import CheckOutcome, CheckSubject, ModelCheck, join_names, judge, skipped
from idefics.evaluate.check.weight_statistics import WeightStatistics
from idefics.weights.files import num_weight_bytes
from idefics.weights.tensors import TORCH_NAME_BY_FILE_DTYPE

MIN_COPIED_NUMBERS = 32  # smaller tensors may be equal by chance
MAX_GATE = 10.0
NORM_RANGE = (1e-4, 1e3)
MAX_INNER_RATIO, MAX_OUTER_RATIO = 4.0, 30.0
NORM_WEIGHT = re.compile(r"(norm|layrnorm|layernorm\d?|layer_norm\d?|\.ln)\.weight$")
LAYER_NUMBER = re.compile(r"\.(\d+)\.")


def check_tensors(subject: CheckSubject) -> CheckOutcome:
    """Compares names and shapes in the files with those of the model."""
    found, unread = subject.weight_reading
    module = models.build_on_meta_device(subject.checkpoint)
    if subject.checkpoint.quantization is not None:
        quant.replace_with_empty_quantized(module, subject.checkpoint.quantization)
    wrong = list(_mismatches(found, module.state_dict(keep_vars=True)))
    wrong += [
        f"{one.name} is stored as {dtype}, which no model is loaded in"
        for one in found.values()
        for dtype in one.dtype_names
        if dtype not in TORCH_NAME_BY_FILE_DTYPE
    ]
    size = num_weight_bytes(subject.folder)
    ignored = f", {len(unread)} not needed ({join_names(unread)})" if unread else ""
    return judge(
        f"{len(found)} tensors, {subject.num_parameters:,} parameters, {'/'.join(sorted(subject.stored_dtypes))}, "
        f"{format_bytes(size)}{ignored}",
        "names and shapes of the model",
        wrong,
    )


def _mismatches(found: Mapping[str, WeightStatistics], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """A sentence for each tensor that is missing, unused or of another shape."""
    names_by_id = defaultdict(list)
    for name, tensor in tensors.items():
        names_by_id[id(tensor)].append(name)
    for names in names_by_id.values():
        if not any(name in found for name in names):
            yield f"{names[0]} is missing"
    for name, one in found.items():
        if name not in tensors:
            yield f"{name} is not used by the model"
        elif one.shape != tuple(tensors[name].shape):
            yield f"{name} is {one.shape}, the model has {tuple(tensors[name].shape)}"


def check_finite(subject: CheckSubject) -> CheckOutcome:
    """Looks for NaN, infinite numbers, and matrices of zeros."""
    statistics = subject.statistics.values()
    wrong = [
        f"{one.name} has {one.num_not_finite} numbers that are NaN or infinite"
        for one in statistics
        if one.num_not_finite
    ]
    wrong += [
        f"{one.name} is {one.max_abs:g} everywhere"
        for one in statistics
        if one.is_constant and len(one.shape) > 1 and math.prod(one.shape) >= MIN_COPIED_NUMBERS
    ]
    return judge(f"{len(statistics)} tensors", "all finite, no constant matrix", wrong)


def check_copies(subject: CheckSubject) -> CheckOutcome:
    """Looks for tensors that are equal bit by bit.

    The norms of queries and of keys in one layer get the same gradient where nothing comes between them, so that
    vectors are compared with those of other layers only.
    """
    names_by_content = defaultdict(list)
    for one in subject.statistics.values():
        if not one.is_constant and math.prod(one.shape) >= MIN_COPIED_NUMBERS:
            names_by_content[one.digest].append(one.name)
    is_tied = subject.checkpoint.config.text.tie_word_embeddings
    wrong = [
        f"{join_names(names)} are equal"
        for names in names_by_content.values()
        if len({_layer_of(name) for name in names}) > 1
        and not (is_tied and "lm_head.weight" in names and len(names) == 2)
    ]
    return judge(f"{len(names_by_content)} different tensors", "no two are equal", wrong)


def _layer_of(name: str) -> str:
    """What tells the layers of a model apart: a vector's name up to its number; the whole name without one."""
    number = LAYER_NUMBER.search(name)
    return name[: number.end()] if number and NORM_WEIGHT.search(name) else name


def check_gates(subject: CheckSubject) -> CheckOutcome:
    """Looks at the gates of cross-attention layers (Idefics 1)."""
    gates = [one for one in subject.statistics.values() if ".alpha_" in one.name]
    if not gates:
        return skipped("this family has no gates")
    wrong = [
        f"{one.name} is {one.max_abs:g}: tanh of it is 1, which training does not reach"
        for one in gates
        if one.max_abs > MAX_GATE
    ]
    if all(one.max_abs == 0 for one in gates):
        wrong.append("all gates are 0, as before training: pictures are not seen")
    largest = max(one.max_abs for one in gates)
    return judge(f"{len(gates)} gates, the largest {largest:.3g}", f"at most {MAX_GATE:g}, not all 0", wrong)


def check_norms(subject: CheckSubject) -> CheckOutcome:
    """Looks at the size of the weights of norms."""
    norms = [one for one in subject.statistics.values() if NORM_WEIGHT.search(one.name)]
    low, high = NORM_RANGE
    wrong = [
        f"{one.name} has a root mean square of {one.rms:.3g}" for one in norms if not low < one.rms < high
    ]
    smallest, largest = min(one.rms for one in norms), max(one.rms for one in norms)
    return judge(f"{len(norms)} norms, {smallest:.3g} to {largest:.3g}", f"{low:g} to {high:g}", wrong)


def check_siblings(subject: CheckSubject) -> CheckOutcome:
    """Compares the size of each matrix and norm with that in the neighbouring layers."""
    layers_by_kind: dict[str, dict[int, WeightStatistics]] = defaultdict(dict)
    for name, one in subject.statistics.items():
        match = LAYER_NUMBER.search(name)
        if match and name.endswith(".weight") and (len(one.shape) > 1 or NORM_WEIGHT.search(name)):
            kind = LAYER_NUMBER.sub(".n.", name, count=1)
            layers_by_kind[kind][int(match[1])] = one
    largest, wrong = 1.0, []
    for layers in layers_by_kind.values():
        for number, one in layers.items():
            neighbours = [layers[n].rms for n in (number - 1, number + 1) if n in layers and layers[n].rms]
            if not neighbours or not one.rms:
                continue
            # By which factor it lies outside of their range; 1 inside.
            ratio = max(1.0, one.rms / max(neighbours), min(neighbours) / one.rms)
            largest = max(largest, ratio)
            if ratio > (MAX_INNER_RATIO if len(neighbours) > 1 else MAX_OUTER_RATIO):
                wrong.append(
                    f"{one.name}: root mean square {one.rms:.3g}, {ratio:.1f} times off its neighbours"
                )
    return judge(
        f"{len(layers_by_kind)} kinds of weights, the largest step {largest:.2f} times",
        f"{MAX_INNER_RATIO:g} times, first and last layer {MAX_OUTER_RATIO:g}",
        wrong,
    )


WEIGHT_CHECKS = (
    ModelCheck(
        name="tensors",
        shows="every tensor of the files belongs to the model, and the model lacks none",
        tolerance="none: names and shapes are compared",
        run=check_tensors,
    ),
    ModelCheck(
        name="finite numbers",
        shows="no number is NaN or infinite, and no matrix is zeroed",
        tolerance="none",
        run=check_finite,
    ),
    ModelCheck(
        name="copies",
        shows="no layer stands in the place of another one, and the head is not the embedding where it is untied",
        tolerance="none: the stored bytes of two tensors that were trained apart differ",
        run=check_copies,
    ),
    ModelCheck(
        name="gates",
        shows="the gates of Idefics 1 let pictures in",
        tolerance=f"{MAX_GATE:g}: tanh is 1 in float32 from about 9 on",
        run=check_gates,
    ),
    ModelCheck(
        name="norms",
        shows="no norm switches its layer off or blows it up",
        tolerance="four orders of magnitude down and three up: not measured on released checkpoints, so very wide",
        run=check_norms,
    ),
    ModelCheck(
        name="sibling layers",
        shows="no weight has another size than the same weight in the layers before and after it",
        tolerance="a factor outside of the range of both neighbours; first and last layers differ by nature. "
        "Not measured on released checkpoints",
        run=check_siblings,
    ),
)
