"""Frozen settings. Unknown keywords are an UnknownArgument, values outside their range a BadSetting, both at once.

Three kinds: what a checkpoint is (`ModelConfig` and its parts, translated once by each family), how it is fed
(`ImageProcessorConfig`, `PromptFormat`), and what the caller wants (`Sampling`, `EngineConfig`). Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from idefics.errors import BadSetting
from idefics.host_memory import DEFAULT_BATCH_ROWS, DEFAULT_ENCODER_CACHE_BYTES, parse_memory_size
from idefics.validation import reject_unknown_fields, validate_bool, validate_list, validate_range

Activation = Literal["silu", "gelu", "gelu_pytorch_tanh", "relu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary positions. The last four are Llama 3.1's frequency scaling; factor 1 is none."""

    theta: float = 10000.0
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """A Llama-like decoder.

    Attributes:
        additional_vocab_size: rows of the embedding kept in a table of their own (Idefics 1).
        sliding_window: a token attends to so many tokens, itself the last of them (Mistral); None: to all before it.
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
        """Patches along one side of a full picture."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True, kw_only=True)
class ResamplerConfig:
    """The perceiver of Idefics 1: `num_latents` vectors that read a picture's patches."""

    depth: int
    num_heads: int
    head_size: int
    num_latents: int
    has_qk_norms: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PerceiverConfig:
    """The perceiver of Idefics 2: of the decoder's width, with its kind of norm and MLP, and grouped queries."""

    depth: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    num_latents: int
    norm_epsilon: float
    activation: Activation


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossAttentionConfig:
    """The gated cross-attention of Idefics 1: one block before every `layer_interval`-th decoder layer."""

    layer_interval: int
    has_qk_norms: bool
    alpha_type: Literal["vector", "float"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What a checkpoint is, in our own words, whatever layout its config.json had.

    Attributes:
        model_type: the checkpoint's own word for its architecture.
        resampler, cross_attention: only where pictures are read beside the text (Idefics 1).
        perceiver: the connector's (Idefics 2).
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
    """What must be remembered of a sequence while a model answers it.

    Attributes:
        num_layers: layers that call `Attn.self_`, numbered from 0.
        num_kv_heads, head_size: shape of one key or value of one token.
        num_cross_attention_layers: layers that call `Attn.cross`, numbered from 0; 0 where pictures are read in the text.
        max_positions: the longest sequence the model reads.
        vocab_size: number of logits.
        sliding_window: in `Attn.self_` a token attends to so many tokens, itself the last of them; None: to all before it.
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
    """Which frames of a video are looked at, and how large.

    Attributes:
        fps: so many a second, as long as they are no more than
        max_frames: all in all; a longer video is looked at less often.
        skip_seconds: left out at both ends of a video that is longer than `max_frames` allow for.
        longest_edge: a frame's longest edge is first resized to this, up or down, keeping the aspect.
    """

    fps: float
    max_frames: int
    skip_seconds: float
    longest_edge: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProcessorConfig:
    """How a picture becomes frames.

    Attributes:
        frame_size: every frame is side x side pixels, unless `shortest_edge` is given.
        longest_edge: first resize the longest edge to this, up or down, keeping the aspect; None: straight to the frame or
            to the tiles.
        shortest_edge: frames keep the picture's own size, but for edges longer than `longest_edge` or shorter than this (Idefics
            2); None: frames are squares.
        do_image_splitting: cut the resized picture into side x side tiles, the whole picture last; with `shortest_edge`, cut the
            picture into quarters before they are resized, the whole picture last.
        resample: PIL's filter.
        rescale_factor: multiplies each uint8 value (1/255).
        mean, std: then subtracted and divided, one number a channel.
        tokens_per_frame: how many places one frame takes in the prompt.
        video: how a video becomes pictures; None where the checkpoint was not trained with video.
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
    """What a checkpoint wants its prompts to look like.

    Attributes:
        kind: "base" continues documents; "chat" answers turns through the template. Tasks word their prompts by it.
        chat_template: the Jinja chat template; empty for a base checkpoint without one.
        turn_end_token: the token that ends a turn (`<end_of_utterance>`), or "" where the checkpoint has none.
        image_tokens: how a picture is written in the prompt. "cross_attention": one `<image>` between two
            `<fake_token_around_image>`, whose features are read by cross-attention (Idefics 1);
            "inline": one `<image>` per feature row, a fake token before and after every frame (Idefics 2);
            "inline_tiles": one `<image>` per feature row, each tile after its `<row_1_col_1>` (Idefics 3, SmolVLM).
        strips_text: raw text items lose the spaces at their ends (Idefics 1's processor).
        prompt_prefix: text put before a raw prompt and before a rendered template (`<s>` in Idefics 1), or "".
        add_special_tokens: whether `tokenizer.json` itself shall add its own specials (its post-processor).
    """

    kind: Literal["base", "chat"]
    chat_template: str
    turn_end_token: str
    image_tokens: Literal["cross_attention", "inline", "inline_tiles"]
    strips_text: bool
    prompt_prefix: str
    add_special_tokens: bool


@reject_unknown_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: at most so many tokens are generated.
        temperature: 0 is greedy; else logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches p.
        min_p: drop tokens less likely than min_p times the most likely one.
        repetition_penalty: divides positive and multiplies negative logits of tokens already there
            (CTRL, arXiv 1909.05858); 1 is none.
        presence_penalty: subtracted from the logit of each token that the answer has already.
        frequency_penalty: the same, as many times as the answer has it.
        logit_bias: token id -> what is added to its logit, -100 to 100: the ends forbid it or leave nothing else.
        num_beams: beams of a beam search; 1 is none. Beams are greedy: temperature must be 0.
        seed: makes sampling repeatable.
        logprobs: whether the log-probability of each chosen token is kept.
        top_logprobs: of how many of the most likely tokens beside each chosen one.
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
        _validate_logit_bias(self.logit_bias)
        validate_range("num_beams", self.num_beams, 1, 64)
        validate_bool("logprobs", self.logprobs)
        validate_range("top_logprobs", self.top_logprobs, 0, 20)
        if self.top_logprobs and not self.logprobs:
            raise BadSetting(f"top_logprobs is {self.top_logprobs} without logprobs: give logprobs=True too")
        if self.seed is not None:
            validate_range("seed", self.seed, 0, 2**63 - 1)
        if self.num_beams > 1 and self.temperature > 0:
            raise BadSetting(
                f"beam search cannot sample (num_beams is {self.num_beams}, temperature {self.temperature}): "
                "use temperature=0 or num_beams=1"
            )
        if self.num_beams > 1:
            for name in ("presence_penalty", "frequency_penalty", "logit_bias", "top_logprobs"):
                if value := getattr(self, name):
                    raise BadSetting(
                        f"beam search has no {name} (num_beams is {self.num_beams}, {name} {value}): "
                        f"use num_beams=1, or leave {name} out"
                    )


KernelMode = Literal["auto", "autotune", "reference"]
QuantKind = Literal["int8", "int4", "fp8", "nf4", "fp4"]
# What describes a picture or names a token, by the names that checkpoints use: small beside the decoder, and delicate.
UNQUANTIZED_MODULES = ("vision_model", "connector", "perceiver_resampler", "lm_head")
CONNECTOR_MODULES = (
    "connector",
    "perceiver_resampler",
)  # between the two; of these an error reaches every token of a picture


@reject_unknown_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationConfig:
    """In how few bits the weights of linear layers are kept; what is computed with them stays in floating point.

    Attributes:
        kind: "int8", a scale for each output; "int4", a scale for each 32 inputs; "fp8", eight bits of floating point
            and a scale for each output; "nf4" and "fp4", bitsandbytes' kinds of four bits with a scale for each 64
            weights.
        skip: parts of the model that keep full precision, by their names or those of modules around them; None: the
            bridge between vision and text, and for nf4 and fp4 all but the decoder's layers. A head of two tables
            keeps it in any case.
        double: whether the scales of nf4 and fp4 are quantised too.
        compute_dtype: in which products with nf4 and fp4 are computed: "float32", "bfloat16", "float16"; None: the
            dtype that the weights were loaded in.
    """

    kind: QuantKind
    skip: tuple[str, ...] | None = None
    double: bool = False
    compute_dtype: str | None = None

    @property
    def skipped(self) -> tuple[str, ...]:
        """`skip`, or what stands for None."""
        if self.skip is not None:
            return self.skip
        return CONNECTOR_MODULES if self.kind in ("int8", "int4", "fp8") else UNQUANTIZED_MODULES

    def kind_of(self, name: str) -> QuantKind:
        """How a layer is kept: "int4" is for the decoder, what sees and what names tokens has eight bits beside it."""
        delicate = any(f".{part}." in f".{name}." for part in UNQUANTIZED_MODULES)
        return "int8" if self.kind == "int4" and delicate else self.kind

    def bits_of(self, name: str) -> int:
        """Of a layer's weight, scales left aside."""
        return 8 if self.kind_of(name) in ("int8", "fp8") else 4

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in get_args(QuantKind):
            raise BadSetting(f"quantize is {self.kind!r}; give {', '.join(get_args(QuantKind))}")
        if self.skip is not None:
            skip = validate_list("skip", self.skip, "a list of names of modules", allow_set=True)
            object.__setattr__(self, "skip", tuple(skip))
        if self.compute_dtype is not None and str(self.compute_dtype) not in (
            "float32",
            "bfloat16",
            "float16",
        ):
            raise BadSetting(f"compute_dtype is {self.compute_dtype!r}; give float32, bfloat16 or float16")


@reject_unknown_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How much the engine does at once.

    Attributes:
        batch_rows: at most so many prompts are answered side by side.
        encode_frames: at most so many frames go through the vision tower in a step.
        step_tokens: while answers are running, at most so many tokens of prompts are read in a step, so that they flow.
        waiting: at most so many requests wait.
        kv_cache: bytes (a whole number) that keys and values may take, or a share (a number below 1) of the memory
            that is free when the engine is made; None: `engine.memory` says how many.
        cache_pages: the same in pages of 16 positions; goes before `kv_cache`.
        picture_bytes: pictures that have been encoded are kept up to so many bytes.
        reference: whether decode steps are computed by torch's plain operations, and by nothing quicker.
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
        parse_memory_size("kv_cache", self.kv_cache)
        if self.cache_pages is not None:
            validate_range("cache_pages", self.cache_pages, 2, 1 << 30)
        validate_range("picture_bytes", self.picture_bytes, 0, 1 << 50)


def _validate_logit_bias(biases: Mapping[int, float]) -> None:
    if not isinstance(biases, Mapping):
        raise BadSetting(f"logit_bias is {biases!r}; give a dict of token ids and numbers from -100 to 100")
    for id, bias in biases.items():
        if isinstance(id, bool) or not isinstance(id, int) or id < 0:
            raise BadSetting(f"logit_bias names the token {id!r}; give its id, a whole number from 0")
        validate_range(f"logit_bias of token {id}", bias, -100.0, 100.0)
