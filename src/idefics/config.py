"""Frozen settings, validated when they are made: an unknown keyword raises UnknownArgument, a value BadSetting.

Three kinds: what a checkpoint is (`ModelConfig` and its parts, which each family reads from config.json), how its
inputs are prepared (`ImageProcessorConfig`, `PromptFormat`), and what the caller chooses (`Sampling`,
`QuantizationConfig`, `EngineConfig`). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from idefics.errors import BadSetting
from idefics.host_memory import DEFAULT_BATCH_ROWS, DEFAULT_ENCODER_CACHE_BYTES, parse_bytes_or_share
from idefics.validation import (
    reject_unknown_fields,
    validate_bool,
    validate_choice,
    validate_list,
    validate_range,
)

Activation = Literal["silu", "gelu", "gelu_pytorch_tanh", "relu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embeddings. The fields after `theta` are Llama 3.1's frequency scaling; factor 1 is none."""

    theta: float = 10000.0
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """A Llama-like decoder.

    Attributes:
        additional_vocab_size: rows of the embedding that are stored in a table of their own (Idefics 1).
        sliding_window: a token attends to this many tokens, itself the last of them (Mistral); None: to all before it.
    """

    vocab_size: int
    additional_vocab_size: int = 0
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    norm_epsilon: float
    max_positions: int
    activation: Activation = "silu"
    rope: RopeConfig = RopeConfig()
    sliding_window: int | None = None
    tie_word_embeddings: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """A vision transformer over square patches. `image_size` and `patch_size` are in pixels."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    norm_epsilon: float
    activation: Activation

    @property
    def patches_per_side(self) -> int:
        """Patches along one side of an `image_size` x `image_size` picture."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ResamplerConfig:
    """The perceiver resampler of Idefics 1: `num_latents` learned queries attend to a picture's patches."""

    depth: int
    num_heads: int
    head_size: int
    num_latents: int
    has_qk_norms: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceiverConfig:
    """The perceiver resampler of Idefics 2: the decoder's width, norm and MLP, and grouped-query attention."""

    depth: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    num_latents: int
    norm_epsilon: float
    activation: Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossAttentionConfig:
    """The gated cross-attention of Idefics 1: one block before every `layer_interval`-th decoder layer.

    `alpha_type`: a block's gates have one number per hidden unit ("vector") or one number ("float").
    """

    layer_interval: int
    has_qk_norms: bool
    alpha_type: Literal["vector", "float"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A checkpoint's architecture, independent of the layout of its config.json.

    Attributes:
        model_type: as in config.json.
        resampler, cross_attention: of cross-attention models (Idefics 1); None elsewhere.
        perceiver: in the connector of Idefics 2; None elsewhere.
        pixel_shuffle_factor: pixel-shuffle factor of the connector (Idefics 3, SmolVLM); 1 elsewhere.
        stop_ids: ids that end an answer, from generation_config.json, else config.json.
        dtype: the dtype that config.json names, or None.
    """

    model_type: str
    text: TextConfig
    vision: VisionConfig
    resampler: ResamplerConfig | None = None
    cross_attention: CrossAttentionConfig | None = None
    perceiver: PerceiverConfig | None = None
    pixel_shuffle_factor: int = 1
    stop_ids: tuple[int, ...] = ()
    dtype: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCacheLayout:
    """The shape of the KV cache that a model needs for each sequence.

    Attributes:
        num_layers: layers with self-attention, numbered from 0.
        num_kv_heads, head_size: shape of one key or value of one token.
        num_cross_attention_layers: layers with cross-attention, numbered from 0; 0 in inline-image models.
        max_positions: the longest sequence that the model reads, in tokens.
        vocab_size: number of logits.
        sliding_window: in self-attention a token attends to this many tokens, itself the last; None: to all before it.
    """

    num_layers: int
    num_kv_heads: int
    head_size: int
    num_cross_attention_layers: int
    max_positions: int
    vocab_size: int
    sliding_window: int | None = None


ResampleFilter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoProcessorConfig:
    """Which frames of a video are sampled, and at which size.

    Attributes:
        fps: frames sampled per second, as long as their number stays within `max_frames`.
        max_frames: at most this many frames per video; a longer video is sampled less often.
        skip_seconds: left out at both ends of a video if more than `max_frames` * `fps` seconds remain, as released.
        longest_edge: a frame's longest edge is first resized to this, up or down, keeping the aspect ratio.
    """

    fps: float
    max_frames: int
    skip_seconds: float
    longest_edge: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProcessorConfig:
    """How a picture becomes frames for the vision tower; all sizes in pixels.

    Attributes:
        frame_size: frames are squares of this side, unless `shortest_edge` is given.
        longest_edge: the longest edge is first resized to this, up or down, keeping the aspect ratio; None: the picture
            is resized directly to the frame.
        shortest_edge: frames keep the picture's own size, except that edges longer than `longest_edge` or shorter than
            this are resized (Idefics 2); None: frames are squares.
        do_image_splitting: cut the resized picture into square tiles and append the whole picture; with
            `shortest_edge`, cut the picture into quarters before they are resized, and append the whole picture.
        resample: Pillow's filter.
        rescale_factor: multiplies each uint8 value (1/255).
        mean, std: then subtracted and divided by, one number per channel.
        tokens_per_frame: how many image tokens one frame takes in the prompt.
        video: how videos are sampled; None where the checkpoint was not trained with video.
    """

    frame_size: int
    longest_edge: int | None
    shortest_edge: int | None = None
    do_image_splitting: bool
    resample: ResampleFilter
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokens_per_frame: int
    video: VideoProcessorConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """How a checkpoint's prompts are written.

    Attributes:
        kind: "base" models continue documents; "chat" models answer turns through the chat template. Tasks word their
            prompts accordingly.
        chat_template: the Jinja chat template; empty for a base checkpoint without one.
        turn_end_token: the token that ends a turn (`<end_of_utterance>`), or "" where the checkpoint has none.
        image_tokens: how a picture is written in the prompt. "cross_attention": one `<image>` between two
            `<fake_token_around_image>`, whose features are read by cross-attention (Idefics 1);
            "inline": one `<image>` per feature row, a fake token before and after every frame (Idefics 2);
            "inline_tiles": one `<image>` per feature row, each tile after its `<row_1_col_1>` (Idefics 3, SmolVLM).
        strips_text: whether raw text items lose the spaces at their ends, as in the processor of Idefics 1.
        prompt_prefix: text before every raw prompt and every rendered template (`<s>` in Idefics 1), or "".
        add_special_tokens: whether the post-processor of `tokenizer.json` adds its own special tokens.
    """

    kind: Literal["base", "chat"]
    chat_template: str
    turn_end_token: str
    image_tokens: Literal["cross_attention", "inline", "inline_tiles"]
    strips_text: bool = False
    prompt_prefix: str = ""
    add_special_tokens: bool = True


@reject_unknown_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: at most this many tokens are generated.
        temperature: 0 is greedy; else logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches p.
        min_p: drop tokens less likely than min_p times the most likely one.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens of the prompt and the
            answer (CTRL, arXiv 1909.05858); 1 is none.
        presence_penalty: subtracted from the logit of each token that the answer already has.
        frequency_penalty: subtracted as many times as the answer already has the token.
        logit_bias: token id -> number added to its logit, -100 to 100; -100 bans the token, 100 forces it.
        num_beams: beams of a beam search; 1 is none. Beam search is greedy: temperature must be 0.
        seed: makes sampling repeatable.
        logprobs: whether the log-probability of each chosen token is returned.
        top_logprobs: how many of the most likely tokens are returned with each chosen one.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    num_beams: int = 1
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        validate_range("max_new_tokens", self.max_new_tokens, 1, 1_000_000)
        validate_range("temperature", self.temperature, 0.0, 5.0)
        validate_range("top_k", self.top_k, 0, 1_000_000)
        validate_range("top_p", self.top_p, 0.0, 1.0)
        validate_range("min_p", self.min_p, 0.0, 1.0)
        validate_range("repetition_penalty", self.repetition_penalty, 0.01, 10.0)
        validate_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        validate_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if not isinstance(self.logit_bias, Mapping):
            raise BadSetting(
                f"logit_bias is {self.logit_bias!r}; give a dict of token ids and numbers from -100 to 100"
            )
        for id, bias in self.logit_bias.items():
            if isinstance(id, bool) or not isinstance(id, int) or id < 0:
                raise BadSetting(f"logit_bias names the token {id!r}; give its id, a whole number from 0")
            validate_range(f"logit_bias of token {id}", bias, -100.0, 100.0)
        validate_range("num_beams", self.num_beams, 1, 64)
        validate_bool("logprobs", self.logprobs)
        validate_range("top_logprobs", self.top_logprobs, 0, 20)
        if self.top_logprobs and not self.logprobs:
            raise BadSetting(f"top_logprobs is {self.top_logprobs} without logprobs: give logprobs=True too")
        if self.seed is not None:
            validate_range("seed", self.seed, 0, 2**63 - 1)
        if self.num_beams > 1:
            if self.temperature > 0:
                raise BadSetting(
                    f"beam search cannot sample (num_beams is {self.num_beams}, temperature {self.temperature}): "
                    "use temperature=0 or num_beams=1"
                )
            for name in ("presence_penalty", "frequency_penalty", "logit_bias", "top_logprobs"):
                if value := getattr(self, name):
                    raise BadSetting(
                        f"beam search has no {name} (num_beams is {self.num_beams}, {name} {value}): "
                        f"use num_beams=1, or leave {name} out"
                    )


KernelMode = Literal["auto", "autotune", "reference"]
QuantKind = Literal["int8", "int4", "fp8", "nf4", "fp4"]
# Modules by the names that checkpoints use. An error in the connector reaches every token of a picture.
CONNECTOR_MODULES = ("connector", "perceiver_resampler")
# All modules outside the decoder's layers: few weights, and sensitive to quantization.
UNQUANTIZED_MODULES = ("vision_model", *CONNECTOR_MODULES, "lm_head")


@reject_unknown_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """Quantization of the weights of linear layers; activations and results stay in floating point.

    Attributes:
        kind: "int8", one scale per output; "int4", one scale per 32 inputs; "fp8", 8-bit floating point, one scale per
            output; "nf4" and "fp4", bitsandbytes' 4-bit types, one scale per 64 weights.
        skip: modules that keep full precision, by their names or those of modules around them; None: the connector,
            and for nf4 and fp4 everything but the decoder's layers. An output head of two tables is never quantized.
        double: whether the scales of nf4 and fp4 are quantized too.
        compute_dtype: dtype of products with nf4 and fp4 weights: "float32", "bfloat16", "float16"; None: the dtype
            that the model is loaded in.
    """

    kind: QuantKind
    skip: tuple[str, ...] | None = None
    double: bool = False
    compute_dtype: str | None = None

    @property
    def skipped(self) -> tuple[str, ...]:
        """The modules that keep full precision: `skip`, or its default for this kind."""
        if self.skip is not None:
            return self.skip
        return CONNECTOR_MODULES if self.kind in ("int8", "int4", "fp8") else UNQUANTIZED_MODULES

    def kind_of(self, name: str) -> QuantKind:
        """The kind of the layer `name`: with "int4", layers outside the decoder's are "int8", as they are sensitive."""
        is_sensitive = any(f".{part}." in f".{name}." for part in UNQUANTIZED_MODULES)
        return "int8" if self.kind == "int4" and is_sensitive else self.kind

    def bits_of(self, name: str) -> int:
        """Bits of each weight of the layer `name`, without the scales."""
        return 8 if self.kind_of(name) in ("int8", "fp8") else 4

    def __post_init__(self) -> None:
        validate_choice("quantize", self.kind, get_args(QuantKind))
        if self.skip is not None:
            skip = validate_list("skip", self.skip, "a list of names of modules", allow_set=True)
            object.__setattr__(self, "skip", tuple(skip))
        if self.compute_dtype is not None:
            validate_choice("compute_dtype", self.compute_dtype, ("float32", "bfloat16", "float16"))


@reject_unknown_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits of the engine.

    Attributes:
        batch_rows: at most this many sequences are decoded in one step.
        encode_frames: at most this many frames go through the vision tower in one step.
        step_tokens: while sequences are being decoded, at most this many prompt tokens are prefilled in one step, so
            that answers keep streaming.
        waiting: at most this many requests wait.
        kv_cache: size of the KV cache in bytes (a whole number), or as a share (below 1) of the memory that is free
            when the engine is made; None: the default of `engine.kv_cache_size`.
        cache_pages: the same in pages of 16 positions; takes precedence over `kv_cache`.
        picture_bytes: size of the cache of encoded pictures in bytes.
        reference: whether decode steps use only PyTorch's plain operations: no kernels, no CUDA graphs.
    """

    batch_rows: int = DEFAULT_BATCH_ROWS
    encode_frames: int = 16
    step_tokens: int = 512
    waiting: int = 1024
    kv_cache: int | float | None = None
    cache_pages: int | None = None
    picture_bytes: int = DEFAULT_ENCODER_CACHE_BYTES
    reference: bool = False

    def __post_init__(self) -> None:
        validate_range("batch_rows", self.batch_rows, 1, 1024)
        validate_range("encode_frames", self.encode_frames, 1, 1024)
        validate_range("step_tokens", self.step_tokens, 1, 1 << 20)
        validate_range("waiting", self.waiting, 1, 1 << 20)
        parse_bytes_or_share("kv_cache", self.kv_cache)
        if self.cache_pages is not None:
            validate_range("cache_pages", self.cache_pages, 2, 1 << 30)
        validate_range("picture_bytes", self.picture_bytes, 0, 1 << 50)
