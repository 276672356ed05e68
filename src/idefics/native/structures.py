"""The structs and constants of `api.h` as ctypes sees them. A change there counts `STRUCT_VERSION` up in both."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p

STRUCT_VERSION = 3
FLOAT32, BFLOAT16, INT8, INT4 = range(4)
ACTIVATION_NAMES = ("silu", "gelu", "gelu_pytorch_tanh", "relu")  # by their numbers
MAX_ROWS = 16  # rows of one call of the decode step
GROUP_SIZE = 32  # consecutive inputs of a layer that share a scale
OUT_OF_MEMORY, ID_OUT_OF_RANGE = 1, 2


class LinearStruct(Structure):
    """The weight (O, I) of a linear layer, with its scales if it is quantised."""

    _fields_ = (
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("kind", c_int32),
        ("scale_kind", c_int32),
        ("outputs", c_int32),
        ("inputs", c_int32),
    )


class EmbeddingStruct(Structure):
    """A token embedding: (rows, D), float32 or bfloat16."""

    _fields_ = (("weight", c_void_p), ("kind", c_int32), ("rows", c_int32))


class MlpStruct(Structure):
    """A gated MLP: down(activation(gate(x)) * up(x))."""

    _fields_ = (("gate", LinearStruct), ("up", LinearStruct), ("down", LinearStruct))


class LayerStruct(Structure):
    """A Llama layer and its part of the KV cache."""

    _fields_ = (
        ("norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("q", LinearStruct),
        ("k", LinearStruct),
        ("v", LinearStruct),
        ("o", LinearStruct),
        ("mlp", MlpStruct),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("cross", c_int32),
    )


class CrossLayerStruct(Structure):
    """A gated cross-attention block."""

    _fields_ = (
        ("norm", c_void_p),
        ("q_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("gate", c_void_p),
        ("mlp_gate", c_void_p),
        ("q", LinearStruct),
        ("o", LinearStruct),
        ("mlp", MlpStruct),
    )


class ModelStruct(Structure):
    """Everything that a decode step reads of a model."""

    _fields_ = (
        ("width", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_size", c_int32),
        ("layer_count", c_int32),
        ("cross_count", c_int32),
        ("table_count", c_int32),
        ("activation", c_int32),
        ("window", c_int32),
        ("float16", c_int32),
        ("epsilon", c_float),
        ("frequencies", c_void_p),
        ("norm", c_void_p),
        ("layers", POINTER(LayerStruct)),
        ("crosses", POINTER(CrossLayerStruct)),
        ("tables", EmbeddingStruct * 2),
        ("lm_heads", LinearStruct * 2),
    )


class CrossKVStruct(Structure):
    """The image keys and values of a row in one cross-attention block; null without an image."""

    _fields_ = (("keys", c_void_p), ("values", c_void_p))


class StepStruct(Structure):
    """The inputs of one decode step, and the address of its logits."""

    _fields_ = (
        ("rows", c_int32),
        ("pages", c_int32),
        ("ids", c_void_p),
        ("positions", c_void_p),
        ("tables", c_void_p),
        ("seen", c_void_p),
        ("num_features", c_void_p),
        ("logits", c_void_p),
    )


class AttentionArgs(Structure):
    """Queries, keys, values and the output of vision attention: addresses, strides in floats, sizes."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v", "out")),
        *(
            (f"{name}_{axis}", c_int64)
            for name in ("query", "key", "value", "out")
            for axis in ("frame", "head", "row")
        ),
        *((name, c_int) for name in ("frames", "heads", "key_heads", "queries", "keys", "size")),
        ("scale", c_float),
    )


class DequantizeInt4Args(Structure):
    """int4 weights with their scales, and where the float32 weights go."""

    _fields_ = (
        *((name, c_void_p) for name in ("levels", "scales", "out")),
        *((name, c_int64) for name in ("outputs", "inputs")),
        *((name, c_int) for name in ("bfloat16", "instruction_set")),
    )


class QuantizeRowsArgs(Structure):
    """Inputs of an int8 layer, their int8 form, and the integer products that are scaled afterwards."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "levels", "x_scales", "sums", "scales", "bias")),
        *((name, c_int64) for name in ("rows", "inputs", "outputs")),
        ("instruction_set", c_int),
    )


class Int4MatmulArgs(Structure):
    """Inputs of an int4 layer, their int8 form, its weights, and where the outputs go."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "x_levels", "x_scales", "zero_corrections")),
        *((name, c_void_p) for name in ("levels", "scales", "bias", "out")),
        *((name, c_int64) for name in ("rows", "outputs", "inputs")),
        ("bfloat16", c_int),
    )
