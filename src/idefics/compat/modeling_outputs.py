"""What models return: named, in order, and without what was not asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from idefics.compat.kv_cache import KeyValueCache


class ModelOutput(dict[str, Any]):
    """A dict whose entries are attributes too, and that counts like a tuple: `out.logits`, `out["logits"]`, `out[0]`.

    Its names are the annotated ones of its class. Those that are None are attributes only.
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
        """What is there, in order."""
        return tuple(self.values())


class BaseModelOutputWithPast(ModelOutput):
    """Of a model without a head. B rows of T tokens, D width, L tokens with those of the past.

    Attributes:
        last_hidden_state: (B, T, D), after the last norm.
        past_key_values: for each layer keys and values, (B, h, L, K) each.
        hidden_states: (B, T, D) each: the embeddings, then what each layer gives; the last one after the norm.
        attentions: (B, H, T, L) for each layer.
        image_hidden_states: what pictures became before they met the text: (B, pictures, M, D') beside it,
            (frames, M, D) in it.
    """

    last_hidden_state: Tensor
    past_key_values: KeyValueCache | None
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    image_hidden_states: Tensor | None


class BaseModelOutputWithPooling(ModelOutput):
    """Of a vision tower, or of `get_image_features`. P frames, S patches, D' width of the tower.

    Attributes:
        last_hidden_state: (P, S, D').
        pooler_output: (P, D'), the class vector after its norm, in Idefics; from `get_image_features` of the others
            for each row of the batch (vectors, D), what takes the places of its image tokens.
        hidden_states: (P, S, D') each: the embeddings, then what each layer gives.
        attentions: (P, H, S, S) for each layer.
    """

    last_hidden_state: Tensor | None
    pooler_output: Any
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None


class CausalLMOutputWithPast(ModelOutput):
    """Of a model with a head. V vocabulary, additional tokens included.

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
    """Of `IdeficsModel`."""


class Idefics2BaseModelOutputWithPast(BaseModelOutputWithPast):
    """Of `Idefics2Model`."""


class Idefics3BaseModelOutputWithPast(BaseModelOutputWithPast):
    """Of `Idefics3Model`."""


class SmolVLMBaseModelOutputWithPast(BaseModelOutputWithPast):
    """Of `SmolVLMModel`."""


class IdeficsCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Of `IdeficsForVisionText2Text`."""


class Idefics2CausalLMOutputWithPast(CausalLMOutputWithPast):
    """Of `Idefics2ForConditionalGeneration`."""


class Idefics3CausalLMOutputWithPast(CausalLMOutputWithPast):
    """Of `Idefics3ForConditionalGeneration`."""


class SmolVLMCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Of `SmolVLMForConditionalGeneration`."""
