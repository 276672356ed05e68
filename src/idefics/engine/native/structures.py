"""The structs of native.h as ctypes sees them. A change there counts `LAYOUT` up in both."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_float, c_int32, c_void_p

LAYOUT = 2
FLOAT32, BFLOAT16, INT8, INT4 = range(4)
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")  # by their numbers
MOST_ROWS = 16
NO_MEMORY, NO_SUCH_ID = 1, 2


class Linear(Structure):
    """(O, I) weights and what scales them."""

    _fields_ = (
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("kind", c_int32),
        ("scale_kind", c_int32),
        ("outputs", c_int32),
        ("inputs", c_int32),
    )


class Table(Structure):
    """(rows, D) embeddings."""

    _fields_ = (("weight", c_void_p), ("kind", c_int32), ("rows", c_int32))


class Mlp(Structure):
    """gate, up, down."""

    _fields_ = (("gate", Linear), ("up", Linear), ("down", Linear))


class Layer(Structure):
    """A Llama block and its pages."""

    _fields_ = (
        ("norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("q", Linear),
        ("k", Linear),
        ("v", Linear),
        ("o", Linear),
        ("mlp", Mlp),
        ("keys", c_void_p),
        ("values", c_void_p),
        ("cross", c_int32),
    )


class Cross(Structure):
    """A gated block."""

    _fields_ = (
        ("norm", c_void_p),
        ("q_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("gate", c_void_p),
        ("mlp_gate", c_void_p),
        ("q", Linear),
        ("o", Linear),
        ("mlp", Mlp),
    )


class Model(Structure):
    """All that a step reads of a model."""

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
        ("layers", POINTER(Layer)),
        ("crosses", POINTER(Cross)),
        ("tables", Table * 2),
        ("heads_", Linear * 2),
    )


class Seen(Structure):
    """Keys and values of what a row sees in one cross layer."""

    _fields_ = (("keys", c_void_p), ("values", c_void_p))


class Step(Structure):
    """The rows of one step, and where their logits go."""

    _fields_ = (
        ("rows", c_int32),
        ("pages", c_int32),
        ("ids", c_void_p),
        ("positions", c_void_p),
        ("tables", c_void_p),
        ("seen", c_void_p),
        ("places", c_void_p),
        ("logits", c_void_p),
    )
