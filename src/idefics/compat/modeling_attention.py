"""`set_attn_implementation`: which attention backend each part of a model uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from idefics.compat.configuration import PretrainedConfig
from idefics.errors import BadSetting
from idefics.nn.attention_backends import (
    ATTENTION_BACKENDS,
    AttentionBackend,
    HasAttentionBackend,
    get_attention_backend,
    set_attention_backend,
)

# The config of a part -> the children of the base model that are built from it. The decoder's backend is an attribute
# of the model itself.
PART_MODULES = {
    "text_config": frozenset[str](),
    "vision_config": frozenset({"vision_model"}),
    "perceiver_config": frozenset({"perceiver_resampler", "connector"}),
}


class AttentionImplementationMixin(HasAttentionBackend):
    """Gives a model `set_attn_implementation`, for the whole model or for its parts."""

    config: PretrainedConfig

    @property
    def attn_implementation(self) -> str | None:
        """The attention implementation of the whole model: "sdpa", "eager" or "flash_attention_2"."""
        return self.config._attn_implementation

    @property
    def base_model(self) -> Any:
        """Everything but the head; in a model without a head, itself."""
        raise NotImplementedError

    def set_attn_implementation(self, attn_implementation: str | Mapping[str, str]) -> None:
        """Chooses how attention is computed.

        Args:
            attn_implementation: "sdpa", "eager" or "flash_attention_2"; or one for each part of the model, by the name
                of its config ("vision_config"), and "" for the rest. Parts that are not named keep theirs.

        Raises:
            BadSetting: no such implementation or part, or flash attention without a CUDA device of compute capability
                8.0 (the requirement of FlashAttention-2) and 16-bit weights.
        """
        named = {"": attn_implementation} if isinstance(attn_implementation, str) else {**attn_implementation}
        sub_configs = {name: getattr(self.config, name) for name in self.config.parts}
        if unknown := [name for name in named if name and name not in sub_configs]:
            raise BadSetting(
                f"attn_implementation names {unknown[0]!r}; give {', '.join(sub_configs)}, or '' for the rest"
            )
        if not isinstance(self.config._attn_implementation, str):
            named.setdefault("", "sdpa")
        backends = {name: self._get_backend(one) for name, one in named.items()}
        if "" in named:
            set_attention_backend(self, backends[""])
            for config in (self.config, *sub_configs.values()):
                config._attn_implementation = named[""]
        children = dict(self.base_model.named_children())
        for name in named.keys() & sub_configs.keys():
            sub_configs[name]._attn_implementation = named[name]
            for module in (self, self.base_model) if name == "text_config" else ():
                module.attention_backend = backends[name]
            for child in children.keys() & PART_MODULES[name]:
                set_attention_backend(children[child], backends[name])

    def _get_backend(self, attn_implementation: str) -> AttentionBackend:
        """The attention backend of a name, for the dtype of the weights; raises BadSetting for an unknown name."""
        if attn_implementation not in ATTENTION_BACKENDS:  # in the words of transformers, which callers match
            raise BadSetting(
                f'Specified `attn_implementation="{attn_implementation}"` is not supported: '
                f"give {', '.join(ATTENTION_BACKENDS)}"
            )
        dtype = next((weight.dtype for weight in self.parameters() if weight.is_floating_point()), None)
        return get_attention_backend(attn_implementation, dtype or torch.float32, torch.device("cuda"))
