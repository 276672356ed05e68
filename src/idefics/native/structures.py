"""The structs and constants of `api.h` for ctypes. A change increments `STRUCT_VERSION` in both files."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p

STRUCT_VERSION = 8
FLOAT32, BFLOAT16, INT8, INT4 = range(4)
ACTIVATION_NAMES = ("silu", "gelu", "gelu_pytorch_tanh", "relu")  # by their numbers
MAX_ROWS = 16  # rows of one call of the decode step
FACTOR_BLOCK = 16  # outputs whose second factors lie together
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
    """A Llama layer, its pages of the KV cache, and the index of the cross-attention block before it (-1: none)."""

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
    """A gated cross-attention block: its norms, gates, projections and MLP."""

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


class LowRankTermStruct(Structure):
    """What an adapter adds to a layer's outputs: its factors, float32. All zeros: nothing."""

    _fields_ = (("a", LinearStruct), ("b", c_void_p))


class LowRankTermsStruct(Structure):
    """The terms of an adapter in one stage: of up to three layers with the same inputs."""

    _fields_ = (("terms", LowRankTermStruct * 3),)


class ModelStruct(Structure):
    """A whole decoder: sizes, weights and KV cache; argument of `idefics_decode_new`."""

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
        ("adapter_count", c_int32),
        ("low_rank", POINTER(LowRankTermsStruct)),
    )


class CrossKVStruct(Structure):
    """The image keys and values of a row in one cross-attention block; null without an image."""

    _fields_ = (("keys", c_void_p), ("values", c_void_p))


class StepStruct(Structure):
    """Arguments of `idefics_decode_step`: the inputs of up to `MAX_ROWS` rows, and the address of the logits."""

    _fields_ = (
        ("rows", c_int32),
        ("pages", c_int32),
        ("ids", c_void_p),
        ("positions", c_void_p),
        ("tables", c_void_p),
        ("cross_kvs", c_void_p),
        ("num_features", c_void_p),
        ("adapters", c_void_p),
        ("logits", c_void_p),
    )


class AttentionArgs(Structure):
    """Arguments of the attention functions: addresses of queries, keys, values and output, strides in floats, sizes."""

    _fields_ = (
        *((name, c_void_p) for name in ("q", "k", "v", "out")),
        *(
            (f"{name}_{axis}", c_int64)
            for name in ("query", "key", "value", "out")
            for axis in ("frame", "head", "row")
        ),
        *((name, c_int) for name in ("frames", "heads", "key_heads", "queries", "keys", "size")),
        ("scale", c_float),
        ("causal", c_int),
    )


class DequantizeInt4Args(Structure):
    """Arguments of `idefics_dequantize_int4`: int4 weights with their scales, and the float32 output."""

    _fields_ = (
        *((name, c_void_p) for name in ("levels", "scales", "out")),
        *((name, c_int64) for name in ("outputs", "inputs")),
        *((name, c_int) for name in ("bfloat16", "instruction_set")),
    )


class QuantizeRowsArgs(Structure):
    """Arguments of `idefics_quantize_rows` and `idefics_scale_rows`: inputs, their int8 form, and integer sums."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "levels", "x_scales", "sums", "scales", "bias")),
        *((name, c_int64) for name in ("rows", "inputs", "outputs")),
        ("instruction_set", c_int),
    )


class Int4MatmulArgs(Structure):
    """Arguments of `idefics_int4_matmul`: inputs, buffers for their int8 form, weights, and the output."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "x_levels", "x_scales", "zero_corrections")),
        *((name, c_void_p) for name in ("levels", "scales", "bias", "out")),
        *((name, c_int64) for name in ("rows", "outputs", "inputs")),
        ("bfloat16", c_int),
    )


class MatmulArgs(Structure):
    """Arguments of `idefics_matmul`: inputs, a weight, its bias, what is added, and the output."""

    _fields_ = (
        ("x", c_void_p),
        ("linear", LinearStruct),
        *((name, c_void_p) for name in ("bias", "residual", "out")),
        ("rows", c_int64),
    )


class QkvArgs(Structure):
    """Arguments of `idefics_project_qkv`: inputs, their norm, the projections, the rotation, and the output."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "norm")),
        ("epsilon", c_float),
        *((name, LinearStruct) for name in ("q", "k", "v")),
        *((name, c_void_p) for name in ("cosines", "sines")),
        *((name, c_int32) for name in ("rotated_heads", "size")),
        ("out", c_void_p),
        ("rows", c_int64),
    )


class GatedMlpArgs(Structure):
    """Arguments of `idefics_gated_mlp`: inputs, their norm, the layers, what is added, and the output."""

    _fields_ = (
        *((name, c_void_p) for name in ("x", "norm")),
        ("epsilon", c_float),
        ("mlp", MlpStruct),
        ("activation", c_int32),
        *((name, c_void_p) for name in ("residual", "out")),
        ("rows", c_int64),
    )


class BiasedLinearStruct(Structure):
    """A linear layer with a bias: (O,) float32."""

    _fields_ = (("linear", LinearStruct), ("bias", c_void_p))


class VisionLayerStruct(Structure):
    """A layer of a vision transformer: its norms and linear layers."""

    _fields_ = (
        *((name, c_void_p) for name in ("norm1", "norm1_bias", "norm2", "norm2_bias")),
        *((name, BiasedLinearStruct) for name in ("q", "k", "v", "o", "fc1", "fc2")),
    )


class VisionArgs(Structure):
    """Arguments of `idefics_vision_encode`: patches, which it replaces, the layers and their sizes."""

    _fields_ = (
        ("x", c_void_p),
        ("layers", POINTER(VisionLayerStruct)),
        *((name, c_int64) for name in ("frames", "patches")),
        *((name, c_int32) for name in ("layer_count", "width", "heads", "intermediate_size", "activation")),
        ("epsilon", c_float),
    )
