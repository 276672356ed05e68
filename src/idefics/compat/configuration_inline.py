"""The configs of Idefics2, Idefics3 and SmolVLM; fields and defaults are those of transformers."""

from __future__ import annotations

from typing import Any

from idefics.compat.configuration import PretrainedConfig


class SiglipVisionConfig(PretrainedConfig):
    """The config of the vision tower of Idefics3 and SmolVLM."""

    hidden_size: int = 1152
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float = 0.0
    initializer_range: float = 0.02


class Idefics2VisionConfig(SiglipVisionConfig):
    """The config of the vision tower of Idefics2."""

    model_type = "idefics2_vision"

    hidden_size: int = 768
    num_attention_heads: int = 12


class Idefics2PerceiverConfig(PretrainedConfig):
    """The config of Idefics2's perceiver. Width and epsilon are the decoder's, unless `rms_norm_eps` is given."""

    model_type = "idefics2_perceiver"

    hidden_act: str = "silu"
    resampler_n_latents: int = 64
    resampler_depth: int = 3
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    num_key_value_heads: int = 4
    attention_dropout: float = 0.0
    initializer_range: float = 0.02


class TextModelConfig(PretrainedConfig):
    """The config of a decoder: the fields that Llama and Mistral share."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    attention_dropout: float = 0.0

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads


class LlamaConfig(TextModelConfig):
    """The config of the decoder of Idefics3 and SmolVLM."""

    model_type = "llama"


class MistralConfig(TextModelConfig):
    """The config of the decoder of Idefics2."""

    model_type = "mistral"

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096


class Idefics2Config(PretrainedConfig):
    """The config of an Idefics2 model."""

    model_type = "idefics2"
    parts = {  # noqa: RUF012
        "text_config": MistralConfig,
        "vision_config": Idefics2VisionConfig,
        "perceiver_config": Idefics2PerceiverConfig,
    }
    default_parts = {  # noqa: RUF012
        "text_config": {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "pad_token_id": 0}
    }

    use_cache: bool = True
    image_token_id: int = 32001
    tie_word_embeddings: bool = False
    vision_config: Idefics2VisionConfig = None  # type: ignore[assignment]
    perceiver_config: Idefics2PerceiverConfig = None  # type: ignore[assignment]
    text_config: MistralConfig = None  # type: ignore[assignment]


class Idefics3Config(PretrainedConfig):
    """The config of an Idefics3 model."""

    model_type = "idefics3"
    parts = {"text_config": LlamaConfig, "vision_config": SiglipVisionConfig}  # noqa: RUF012
    default_parts = {"text_config": {"rms_norm_eps": 1e-5}}  # noqa: RUF012

    use_cache: bool = True
    image_token_id: int = 128257
    tie_word_embeddings: bool = False
    vision_config: SiglipVisionConfig = None  # type: ignore[assignment]
    text_config: LlamaConfig = None  # type: ignore[assignment]
    scale_factor: int = 2
    pad_token_id: int | None = 128002


class SmolVLMConfig(Idefics3Config):
    """The config of a SmolVLM2 model: the fields of Idefics3."""

    model_type = "smolvlm"
