"""The classes of Idefics2, with and without a head."""

from __future__ import annotations

from idefics.compat.configuration_in_text import Idefics2Config
from idefics.compat.construction import as_part, constructor
from idefics.compat.modeling_in_text import (
    InTextBaseModel,
    InTextForConditionalGeneration,
    InTextPreTrainedModel,
)
from idefics.compat.outputs import Idefics2BaseModelOutputWithPast, Idefics2CausalLMOutputWithPast
from idefics.models.idefics2 import Idefics2, Idefics2Body


class Idefics2PreTrainedModel(InTextPreTrainedModel):
    """What the classes of Idefics2 share: inherit from it to put the model together with parts of your own."""

    config_class = Idefics2Config
    model_types = ("idefics2",)


class Idefics2Model(InTextBaseModel, Idefics2PreTrainedModel, Idefics2Body):
    """Idefics2 without a head."""

    output_class = Idefics2BaseModelOutputWithPast

    @constructor
    def __init__(self, config: Idefics2Config) -> None:
        Idefics2Body.__init__(self, config.settings())
        self._begin(config)


class Idefics2ForConditionalGeneration(InTextForConditionalGeneration, Idefics2PreTrainedModel, Idefics2):
    """Idefics2 with its head: continues text in which pictures stand, of their native size."""

    output_class = Idefics2CausalLMOutputWithPast

    @constructor
    def __init__(self, config: Idefics2Config) -> None:
        with as_part():
            body = Idefics2Model(config)
        Idefics2.__init__(self, config.settings(), body)
        self._begin(config)
