"""Quantisation: chooses the linear layers to quantise, replaces them, and sets the kernels that they compute with.

The model is built on the meta device. Each layer is replaced when its weight is loaded, so that at most one weight is
in memory before it is quantised.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain

from torch import Tensor, nn

from idefics.config import QuantizationConfig
from idefics.nn.native_kernels import can_use_native_weight
from idefics.nn.upcast import TokenEmbedding, UpcastLinear
from idefics.quant.autotune import KernelChoice
from idefics.quant.fp8 import Float8Linear, can_use_fp8_matmul, fp8_matmul
from idefics.quant.linear import Int4Linear, Int8Linear, int4_bfloat16_matmul
from idefics.quant.matmul import (
    can_use_cuda_int8_matmul,
    can_use_w4a8_matmul,
    onednn_linear,
    w4a8_matmul,
    w8a8_matmul,
    w8a8_matmul_cuda,
)

LayerFactory = Callable[
    ..., nn.Linear
]  # a layer, and its weight unless that is loaded later -> the quantised layer


def quantizable_layer_names(model: nn.Module, quantization: QuantizationConfig) -> list[str]:
    """The names of the layers to quantise: each plain `nn.Linear` outside of the modules that `quantization` skips.

    An LM head that is tied to the token embedding is quantised and the embedding is not. Layers that share their weight
    with another layer are not quantised.
    """
    num_uses_by_weight_id = Counter(
        id(weight) for _, weight in model.named_parameters(remove_duplicate=False)
    )
    num_uses_by_weight_id.subtract(
        id(table.weight) for table in model.modules() if isinstance(table, TokenEmbedding)
    )
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear  # not subclasses, such as the LM head with two embeddings
        and not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
        and num_uses_by_weight_id[id(module.weight)] == 1
        and not any(f".{part}." in f".{name}." for part in quantization.skipped)
    ]


def replace_with_empty_quantized(model: nn.Module, quantization: QuantizationConfig) -> list[str]:
    """Replaces the layers of a model on the meta device by quantised ones, for a checkpoint that is quantised already.

    Returns:
        The names of the int4 scales. They keep the file's dtype: the levels were chosen for scales rounded to it.
    """
    scale_names = []
    for name in quantizable_layer_names(model, quantization):
        kind = Int8Linear if quantization.kind_of(name) == "int8" else Int4Linear
        _replace_layer(model, name, kind.empty)
        scale_names += [f"{name}.scale"] * (kind is Int4Linear)
    return scale_names


def quantizers_by_name(
    model: nn.Module, quantization: QuantizationConfig
) -> Mapping[str, Callable[[Tensor], None]]:
    """The functions that quantise a model's weights, by the names of the weights.

    Each takes the value of its weight and replaces the layer by a quantised one; `idefics.weights.load` calls them.

    Raises:
        MissingExtra: nf4 and fp4 without bitsandbytes.
    """
    return {
        f"{name}.weight": partial(_replace_layer, model, name, _layer_factory(quantization, name))
        for name in quantizable_layer_names(model, quantization)
    }


def enable_16bit_weight_storage(model: nn.Module) -> list[str]:
    """Makes a model upcast weights that are stored in 16 bits; returns the names of these weights, tied ones too."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = UpcastLinear  # same parameters, another forward
    return [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, TokenEmbedding))
    ]


def memory_footprint(model: nn.Module, include_buffers: bool = True) -> int:
    """Bytes of a model's parameters, and of its buffers if `include_buffers`: tied ones once, scales included."""
    tensors = chain(model.parameters(), model.buffers() if include_buffers else ())
    total = sum(tensor.nbytes for tensor in tensors)
    if "bitsandbytes" in sys.modules:  # else the model has none of its layers
        from idefics.quant.bnb import quant_state_tensors

        total += sum(tensor.nbytes for module in model.modules() for tensor in quant_state_tensors(module))
    return total


def apply_kernel_choice(model: nn.Module, kernel_choice: KernelChoice) -> None:
    """Sets the functions that compute matrix products in the float32, bfloat16, int8, int4 and fp8 layers of a model.

    On a CPU those in `kernel_choice`; on a GPU int8 and fp8 products wherever a weight supports them. LM heads multiply
    in float32 if they are not quantised: an error in a logit changes a token, one in a hidden state rarely does.
    """
    if kernel_choice.onednn:
        enable_16bit_weight_storage(model)
    for name, module in model.named_modules():
        match module:
            case UpcastLinear():
                module.multiplies_bfloat16 = kernel_choice.bfloat16 and not name.startswith("lm_head")
                module.uses_float32_kernel = kernel_choice.onednn or kernel_choice.bfloat16
                if kernel_choice.onednn:
                    module.linear_function = onednn_linear
            case Int8Linear() if can_use_cuda_int8_matmul(module.levels):
                module.matmul = w8a8_matmul_cuda
            case Int8Linear() if kernel_choice.integers:
                module.matmul = w8a8_matmul
            case Int4Linear() if kernel_choice.bfloat16 and can_use_native_weight(
                module.levels, module.scale
            ):
                module.matmul = int4_bfloat16_matmul
            case Int4Linear() if kernel_choice.integers and can_use_w4a8_matmul(module.levels, module.scale):
                module.matmul = w4a8_matmul
            case Int4Linear() if kernel_choice.onednn:
                module.matmul = partial(module.default_matmul, linear_function=onednn_linear)
            case Float8Linear() if can_use_fp8_matmul(module.levels):
                module.matmul = fp8_matmul


def _layer_factory(quantization: QuantizationConfig, name: str) -> LayerFactory:
    """The function (layer, weight (O, I)) -> quantised layer, for the layer of this name."""
    match quantization.kind_of(name):
        case "int8":
            return Int8Linear.from_linear
        case "int4":
            return Int4Linear.from_linear
        case "fp8":
            return Float8Linear.from_linear
        case "nf4" | "fp4":
            from idefics.quant.bnb import linear4bit_factory

            return linear4bit_factory(quantization)


def _replace_layer(model: nn.Module, name: str, create_layer: LayerFactory, *weight: Tensor) -> None:
    """Replaces the layer `name` of a model by the one that `create_layer` makes of it, and of its weight if given."""
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    model.set_submodule(name, create_layer(layer, *weight).train(layer.training))
