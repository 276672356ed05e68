"""`set_attn_implementation`: which attention backend each part of a model uses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

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
    """A model whose attention backends can be chosen.

    Attributes:
        attn_implementation: that of the decoder: "sdpa", "eager" or "flash_attention_2".
    """

    config: PretrainedConfig
    attn_implementation: str

    @property
    def base_model(self) -> nn.Module:
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
        backends = {name: self._backend(one) for name, one in named.items()}
        if "" in named:
            set_attention_backend(self, backends[""])
            for config in (self.config, *sub_configs.values()):
                config._attn_implementation = named[""]
            self._set_decoder_backend(backends[""], named[""])
        children = dict(self.base_model.named_children())
        for name in named.keys() & sub_configs.keys():
            sub_configs[name]._attn_implementation = named[name]
            if name == "text_config":
                self._set_decoder_backend(backends[name], named.get("", self.attn_implementation))
            for child in children.keys() & PART_MODULES[name]:
                set_attention_backend(children[child], backends[name])

    def _backend(self, attn_implementation: str) -> AttentionBackend:
        if attn_implementation not in ATTENTION_BACKENDS:  # in the words of transformers, which callers match
            raise BadSetting(
                f'Specified `attn_implementation="{attn_implementation}"` is not supported: '
                f"give {', '.join(ATTENTION_BACKENDS)}"
            )
        dtype = next((weight.dtype for weight in self.parameters() if weight.is_floating_point()), None)
        return get_attention_backend(attn_implementation, dtype or torch.float32, torch.device("cuda"))

    def _set_decoder_backend(self, backend: AttentionBackend, attn_implementation: str) -> None:
        """Sets the backend of the decoder, which the models themselves hold, with and without a head."""
        for module in self.modules():
            if isinstance(module, AttentionImplementationMixin):
                module.attention_backend, module.attn_implementation = backend, attn_implementation
