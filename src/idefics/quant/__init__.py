"""Linear layers in few bits: which ones, what takes their place, and the memory that a model takes then.

Surgery on a model that stands on the meta device: each chosen layer is replaced at the moment its weight arrives, so
that no more than one weight is ever whole. Knows layers by their names; reads no files, chooses no devices.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain

from torch import Tensor, nn

from idefics.config import QuantizationConfig, QuantKind
from idefics.nn.stored import StoredLinear, TokenEmbedding
from idefics.quant.floats import Float8Linear, can_multiply, scaled
from idefics.quant.integers import Int4Linear, Int8Linear, packed_widened
from idefics.quant.measure import Verdict
from idefics.quant.passes import can_multiply_packed, multiply_packed
from idefics.quant.products import cuda_takes, integers, integers_on_cuda, onednn

Make = Callable[[nn.Linear, Tensor], nn.Linear]  # a layer and its weight -> what takes its place


def chosen(model: nn.Module, quantisation: QuantizationConfig) -> list[str]:
    """The names of the layers that are quantised: plain `nn.Linear`, under no part to skip.

    A weight that is tied to a table of tokens stays there as it is. One that is tied to another is not quantised.
    """
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    uses.subtract(id(table.weight) for table in model.modules() if isinstance(table, TokenEmbedding))
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear  # kinds of their own, such as a head of two tables, stay as they are
        and not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
        and uses[id(module.weight)] == 1
        and not any(f".{part}." in f".{name}." for part in quantisation.skipped)
    ]


def hollow(model: nn.Module, quantisation: QuantizationConfig) -> list[str]:
    """Gives a model on the meta device the layers of a checkpoint that is stored in few bits, without their numbers.

    Returns:
        The names of scales that stay as the file has them: the integers beside them were chosen for those.
    """
    exact = []
    for name in chosen(model, quantisation):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        kind = Int8Linear if quantisation.kind_of(name) == "int8" else Int4Linear
        model.set_submodule(name, kind.hollow(layer).train(layer.training))
        exact += [f"{name}.scale"] * (kind is Int4Linear)
    return exact


def packs(model: nn.Module, quantisation: QuantizationConfig) -> Mapping[str, Callable[[Tensor], None]]:
    """For the name of each weight to be quantised what is done with its value: for `idefics.weights.load`.

    Raises:
        MissingExtra: nf4 and fp4 without bitsandbytes.
    """
    names = chosen(model, quantisation)
    makes = {kind: _make(quantisation, kind) for kind in {quantisation.kind_of(name) for name in names}}
    return {
        f"{name}.weight": partial(_replace, model, name, makes[quantisation.kind_of(name)]) for name in names
    }


def stored(model: nn.Module) -> list[str]:
    """Lets a model compute in another dtype than its matrices are stored in: the names of those, tied ones too."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = StoredLinear  # the same parameters, another forward
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, TokenEmbedding))
    ]


def footprint(model: nn.Module, buffers: bool = True) -> int:
    """Bytes that a model's tensors take: tied ones once, quantised ones with their scales.

    Args:
        buffers: whether what is no parameter counts too.
    """
    tensors = chain(model.parameters(), model.buffers() if buffers else ())
    total = sum(tensor.nbytes for tensor in tensors)
    if "bitsandbytes" in sys.modules:  # else none of its layers can be there
        from idefics.quant.blocks import scales

        total += sum(tensor.nbytes for module in model.modules() for tensor in scales(module))
    return total


def tune(model: nn.Module, verdict: Verdict) -> None:
    """Has layers in float32, eight and four bits multiply by what is quickest here."""
    if verdict.onednn:
        stored(model)
    for module in model.modules():
        if verdict.onednn and isinstance(module, StoredLinear):
            module.product = onednn
        if verdict.onednn and isinstance(module, Int4Linear):
            module.product = partial(packed_widened, product=onednn)
        if (
            verdict.integers
            and isinstance(module, Int4Linear)
            and can_multiply_packed(module.levels, module.scale)
        ):
            module.product = multiply_packed
        if verdict.integers and isinstance(module, Int8Linear):
            module.product = integers
        if isinstance(module, Int8Linear) and cuda_takes(module.levels):
            module.product = integers_on_cuda
        if isinstance(module, Float8Linear) and can_multiply(module.levels):
            module.product = scaled


def _make(quantisation: QuantizationConfig, kind: QuantKind) -> Make:
    match kind:
        case "int8":
            return Int8Linear.of
        case "int4":
            return Int4Linear.of
        case "fp8":
            return Float8Linear.of
        case "nf4" | "fp4":
            from idefics.quant.blocks import maker

            return maker(quantisation)


def _replace(model: nn.Module, name: str, make: Make, weight: Tensor) -> None:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    model.set_submodule(name, make(layer, weight).train(layer.training))
