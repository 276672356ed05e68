"""One call of `generate`: its settings, its prompts, and what the caller adds to them.

B prompts, n answers or beams of each, R = B * n rows, T ids so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from idefics.compat.generation_config import GenerationConfig
from idefics.compat.generation_runner import GenerationRunner
from idefics.compat.stopping_criteria import StoppingCriterionFn
from idefics.compat.streamers import BaseStreamer, TokenizerLike
from idefics.errors import BadSetting

LogitsProcessorFn = Callable[[Tensor, Tensor], Tensor]  # (R, T) ids, (R, V) scores -> (R, V) scores
# Index of the prompt, ids (T,) so far -> ids that may follow.
PrefixAllowedTokensFn = Callable[[int, Tensor], Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateCall:
    """The checked arguments of one call of `GenerationMixin.generate`, which documents them.

    Attributes:
        runner: the model and the prompts.

    Raises:
        BadSetting: a streamer is given for a beam search, or the prompt is longer than `max_length`.
    """

    config: GenerationConfig
    runner: GenerationRunner
    streamer: BaseStreamer | None
    tokenizer: TokenizerLike | None
    logits_processors: Sequence[LogitsProcessorFn]
    stopping_criteria: Sequence[StoppingCriterionFn]
    prefix_allowed_tokens_fn: PrefixAllowedTokensFn | None
    negative_prompt_ids: Tensor | None
    negative_prompt_attention_mask: Tensor | None

    def __post_init__(self) -> None:
        if self.streamer is not None and self.config.num_beams > 1:
            raise BadSetting(
                f"num_beams is {self.config.num_beams}, and beams are not known before the end: "
                "stream with num_beams=1"
            )
        if self.max_new_tokens < 1:
            raise BadSetting(
                f"max_length is {self.config.max_length}, and the prompt has {self.prompt_length} ids, "
                "which it counts: give max_new_tokens, or a greater max_length"
            )

    @property
    def prompt_length(self) -> int:
        """The number of ids, or embeddings, of a prompt."""
        prompts = self.runner.prompts
        length: int = prompts.model_inputs.get("inputs_embeds", prompts.ids).shape[1]
        return length

    @property
    def max_new_tokens(self) -> int:
        """The largest number of generated ids."""
        config = self.config
        if config.max_new_tokens is not None:
            return config.max_new_tokens
        # The default of `max_length` counts generated ids.
        return config.max_length - (self.prompt_length if config.is_field_set("max_length") else 0)

    @property
    def min_new_tokens(self) -> int:
        """The number of generated ids before which no answer ends; below 1: no such limit."""
        config = self.config
        return (
            config.min_length - self.prompt_length if config.min_new_tokens is None else config.min_new_tokens
        )
