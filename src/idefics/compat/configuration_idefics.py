"""The configs of Idefics; fields and defaults are those of transformers."""

from __future__ import annotations

from typing import Any

from idefics.compat.configuration import PretrainedConfig
from idefics.errors import UnsupportedModel


class IdeficsVisionConfig(PretrainedConfig):
    """The config of Idefics' vision tower. `embed_dim` is its width."""

    model_type = "idefics_vision"

    embed_dim: int = 768
    image_size: int = 224
    intermediate_size: int = 5120
    patch_size: int = 14
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    attention_dropout: float = 0.0
    initializer_range: float = 0.02
    initializer_factor: float = 1.0


class IdeficsPerceiverConfig(PretrainedConfig):
    """The config of Idefics' resampler. `IdeficsConfig.use_resampler` says whether there is one."""

    model_type = "idefics_perciever"  # spelt so in the checkpoints

    use_resampler: bool = False
    resampler_n_latents: int = 64
    resampler_depth: int = 6
    resampler_n_heads: int = 16
    resampler_head_dim: int = 96
    qk_layer_norms_perceiver: bool = False


class IdeficsConfig(PretrainedConfig):
    """The config of an Idefics model. By default, text and vision layers are frozen in training, as in transformers.

    Raises:
        UnsupportedModel: `num_hidden_layers` is no multiple of `cross_layer_interval`.
    """

    model_type = "idefics"
    parts = {"vision_config": IdeficsVisionConfig, "perceiver_config": IdeficsPerceiverConfig}  # noqa: RUF012

    vocab_size: int = 32000
    additional_vocab_size: int = 0
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    dropout: float = 0.0
    hidden_act: str = "silu"
    initializer_range: float = 0.02
    alpha_initializer: str = "zeros"
    alphas_initializer_range: float = 0.0
    alpha_type: str = "float"
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    cross_layer_interval: int = 1
    qk_layer_norms: bool = False
    freeze_text_layers: bool = True
    freeze_text_module_exceptions: list[str] = []  # noqa: RUF012 (every config has its own)
    freeze_lm_head: bool = False
    freeze_vision_layers: bool = True
    freeze_vision_module_exceptions: list[str] = []  # noqa: RUF012
    use_resampler: bool = False
    vision_config: IdeficsVisionConfig = None  # type: ignore[assignment]
    perceiver_config: IdeficsPerceiverConfig = None  # type: ignore[assignment]
    max_position_embeddings: int = 2048

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        # Flat config.json files of 2023 have the fields of the parts at the top.
        for name in vars(self).keys() - self.fields.keys():
            part = self.vision_config if name.startswith("vision_") else self.perceiver_config
            if (field := name.removeprefix("vision_")) in part.fields:
                setattr(part, field, vars(self).pop(name))
        if self.num_hidden_layers % self.cross_layer_interval:
            raise UnsupportedModel(
                f"num_hidden_layers is {self.num_hidden_layers} and cross_layer_interval "
                f"{self.cross_layer_interval}: give a multiple of it"
            )
