"""The outputs of models: named values in a fixed order, without those that were not asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from idefics.compat.kv_cache import KeyValueCache


class ModelOutput(dict[str, Any]):
    """A dict whose entries are also attributes and items of a tuple: `out.logits`, `out["logits"]`, `out[0]`.

    The names are the annotations of the class. Values that are None are attributes, but not entries.
    """

    field_names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.field_names += tuple(cls.__annotations__)

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), **named: Any) -> None:
        values_by_name = {**dict(values), **named}
        if unknown := values_by_name.keys() - set(self.field_names):
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        super().__init__(
            {name: values_by_name[name] for name in self.field_names if values_by_name.get(name) is not None}
        )

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def __getattr__(self, name: str) -> Any:
        if name not in self.field_names:
            raise AttributeError(f"{type(self).__name__} has no {name!r}; it has {', '.join(self)}")
        return self.get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        """The values that are not None, in order."""
        return tuple(self.values())

    def as_return_type(self, return_dict: bool | None) -> Any:
        """The output itself, or with `return_dict=False` the tuple of its values."""
        return self.to_tuple() if return_dict is False else self


class BaseModelOutputWithPast(ModelOutput):
    """The output of a model without a head. B rows, T new tokens, L cached and new tokens, D width.

    Attributes:
        last_hidden_state: (B, T, D), after the last norm.
        past_key_values: for each layer keys and values, (B, h, L, K) each.
        hidden_states: (B, T, D) each: embeddings, then outputs of the layers, the last one after the norm.
        attentions: (B, H, T, L) for each layer.
        image_hidden_states: image features: (B, images, M, D') in Idefics, (frames, M, D) in inline-image models.
    """

    last_hidden_state: Tensor
    past_key_values: KeyValueCache | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    image_hidden_states: Tensor | None


class BaseModelOutputWithPooling(ModelOutput):
    """The output of a vision tower, or of `get_image_features`. P frames, S patches, D' width of the tower.

    Attributes:
        last_hidden_state: (P, S, D').
        pooler_output: in Idefics (P, D'), the class vector after the last norm; from `get_image_features` for each row
            of the batch the (features, D) that replace its image tokens.
        hidden_states: (P, S, D') each: embeddings, then outputs of the layers.
        attentions: (P, H, S, S) for each layer.
    """

    last_hidden_state: Tensor | None
    pooler_output: Any
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class CausalLMOutputWithPast(ModelOutput):
    """The output of a model with a head. V size of the vocabulary, additional tokens included.

    Attributes:
        loss: a scalar, where labels were given.
        logits: (B, T, V).
        past_key_values, hidden_states, attentions, image_hidden_states: as in `BaseModelOutputWithPast`.
    """

    loss: Tensor | None
    logits: Tensor
    past_key_values: KeyValueCache | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    image_hidden_states: Tensor | None


class IdeficsBaseModelOutputWithPast(BaseModelOutputWithPast):
    """The output of `IdeficsModel.forward`."""


class Idefics2BaseModelOutputWithPast(BaseModelOutputWithPast):
    """The output of `Idefics2Model.forward`."""


class Idefics3BaseModelOutputWithPast(BaseModelOutputWithPast):
    """The output of `Idefics3Model.forward`."""


class SmolVLMBaseModelOutputWithPast(BaseModelOutputWithPast):
    """The output of `SmolVLMModel.forward`."""


class IdeficsCausalLMOutputWithPast(CausalLMOutputWithPast):
    """The output of `IdeficsForVisionText2Text.forward`."""


class Idefics2CausalLMOutputWithPast(CausalLMOutputWithPast):
    """The output of `Idefics2ForConditionalGeneration.forward`."""


class Idefics3CausalLMOutputWithPast(CausalLMOutputWithPast):
    """The output of `Idefics3ForConditionalGeneration.forward`."""


class SmolVLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """The output of `SmolVLMForConditionalGeneration.forward`."""
