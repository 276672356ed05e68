"""A `Stack` as the C structs that point into its tensors. Copies are made of norms and gates alone."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import POINTER, cast
from itertools import chain

import torch
from torch import Tensor, nn

from idefics.engine.native import structures as c
from idefics.nn.decoder import GatedMLP
from idefics.nn.rope import frequencies
from idefics.nn.stack import Cross, Stack
from idefics.quant.integers import Int4Linear, Int8Linear

STORED = {torch.float32: c.FLOAT32, torch.bfloat16: c.BFLOAT16}


def linears(stack: Stack) -> list[nn.Linear]:
    """All linear layers of a stack."""
    found = list(stack.heads)
    for layer in stack.layers:
        attention = layer.self_attn
        found += [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, *_of_mlp(layer.mlp)]
    for cross in filter(None, stack.crosses):
        found += [cross.q, cross.o, *_of_mlp(cross.mlp)]
    return found


def hooked(stack: Stack) -> nn.Module | None:
    """A module with a hook, which would not run."""
    parts: list[nn.Module] = [*stack.tables, *stack.layers, stack.norm, *linears(stack)]
    for cross in filter(None, stack.crosses):
        parts += [cross.norm, cross.mlp_norm, cross.mlp, *([cross.q_norm] if cross.q_norm else [])]
    modules = chain.from_iterable(part.modules() for part in parts)
    return next((one for one in modules if one._forward_hooks or one._forward_pre_hooks), None)


def lacks(layer: nn.Module) -> str:
    """Why a linear layer or a table cannot be read here; nothing where it can."""
    name = type(layer).__name__
    if not isinstance(layer, nn.Linear | nn.Embedding):
        return f"a layer is of a kind of its own, {name}"
    weight = layer.levels if isinstance(layer, Int8Linear | Int4Linear) else layer.weight
    if type(weight) is not nn.Parameter:
        return f"the weight of a {name} is of a kind of its own, {type(weight).__name__}"
    if weight.device.type != "cpu":
        return f"the weight of a {name} is not on the CPU but on {weight.device}"
    if not weight.is_contiguous():
        return f"the weight of a {name} does not lie in one piece"
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        return f"a {name} has a bias"
    if isinstance(layer, Int8Linear | Int4Linear):
        return "" if layer.scale.dtype in STORED else f"the scale of a {name} is {layer.scale.dtype}"
    return "" if weight.dtype in STORED else f"the weight of a {name} is {weight.dtype}"


class Description:
    """What `native_new` is given.

    Attributes:
        model: the struct, which holds for as long as this object lives.
    """

    def __init__(self, stack: Stack, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        config = stack.config
        self._kept: list[object] = [stack, *keys, *values]
        crosses = [cross for cross in stack.crosses if cross is not None]
        layers = (c.Layer * max(1, len(stack.layers)))()
        number = 0
        for index, (layer, cross) in enumerate(zip(stack.layers, stack.crosses, strict=True)):
            attention = layer.self_attn
            layers[index] = c.Layer(
                norm=self._vector(layer.input_layernorm.weight),
                mlp_norm=self._vector(layer.post_attention_layernorm.weight),
                q=self._linear(attention.q_proj),
                k=self._linear(attention.k_proj),
                v=self._linear(attention.v_proj),
                o=self._linear(attention.o_proj),
                mlp=self._mlp(layer.mlp),
                keys=keys[index].data_ptr(),
                values=values[index].data_ptr(),
                cross=-1 if cross is None else number,
            )
            number += cross is not None
        blocks = (c.Cross * max(1, len(crosses)))(*(self._cross(cross, config.width) for cross in crosses))
        self._kept += [layers, blocks]
        rates = frequencies(config.rope, config.head_size, torch.device("cpu"))
        self.model = c.Model(
            width=config.width,
            heads=config.heads,
            kv_heads=config.kv_heads,
            head_size=config.head_size,
            layer_count=len(stack.layers),
            cross_count=len(crosses),
            table_count=len(stack.tables),
            activation=c.ACTIVATIONS.index(config.activation),
            window=config.window or 0,
            float16=any(pages.dtype == torch.float16 for pages in keys),
            epsilon=config.norm_epsilon,
            frequencies=self._vector(rates),
            norm=self._vector(stack.norm.weight),
            layers=cast(layers, POINTER(c.Layer)),
            crosses=cast(blocks, POINTER(c.Cross)),
            tables=(c.Table * 2)(*map(self._table, stack.tables)),
            heads_=(c.Linear * 2)(*map(self._linear, stack.heads)),
        )

    def _vector(self, values: Tensor) -> int:
        copy = values.detach().float().flatten().contiguous()
        self._kept.append(copy)
        return copy.data_ptr()

    def _gate(self, gate: Tensor, width: int) -> int:
        return self._vector(gate.detach().flatten().float().tanh().expand(width))

    def _linear(self, layer: nn.Linear) -> c.Linear:
        self._kept += [one.data for one in layer.parameters()]  # where they lie now: another may move them
        made = c.Linear(weight=layer.weight.data_ptr(), outputs=layer.out_features, inputs=layer.in_features)
        if isinstance(layer, Int8Linear | Int4Linear):
            made.kind = c.INT8 if isinstance(layer, Int8Linear) else c.INT4
            made.scale, made.scale_kind = layer.scale.data_ptr(), STORED[layer.scale.dtype]
        else:
            made.kind = STORED[layer.weight.dtype]
        return made

    def _mlp(self, mlp: GatedMLP) -> c.Mlp:
        return c.Mlp(*map(self._linear, _of_mlp(mlp)))

    def _table(self, table: nn.Embedding) -> c.Table:
        self._kept.append(table.weight.data)
        return c.Table(table.weight.data_ptr(), STORED[table.weight.dtype], table.num_embeddings)

    def _cross(self, cross: Cross, width: int) -> c.Cross:
        return c.Cross(
            norm=self._vector(cross.norm.weight),
            q_norm=self._vector(cross.q_norm.weight) if cross.q_norm else None,
            mlp_norm=self._vector(cross.mlp_norm.weight),
            gate=self._gate(cross.gate, width),
            mlp_gate=self._gate(cross.mlp_gate, width),
            q=self._linear(cross.q),
            o=self._linear(cross.o),
            mlp=self._mlp(cross.mlp),
        )


def _of_mlp(mlp: GatedMLP) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    return mlp.gate_proj, mlp.up_proj, mlp.down_proj
