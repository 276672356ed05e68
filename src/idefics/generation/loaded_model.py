"""`LoadedModel`: a checkpoint that is ready to answer; every call of `Idefics` works with one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Self

from idefics.engine.engine import Engine
from idefics.lazy import cached_property
from idefics.messages import ImageDetail
from idefics.processing.checkpoint_generation_config import CheckpointGenerationConfig
from idefics.processing.fetch import Fetcher
from idefics.processing.processor import Processor
from idefics.processing.structured_output import CompiledGrammar
from idefics.processing.token_bytes import TokenBytes
from idefics.quant import memory_footprint
from idefics.structured import OutputConstraint

MAX_CACHED_GRAMMARS = 16  # compiled grammars that are kept, of megabytes each at most
EMPTY_GENERATION_CONFIG = CheckpointGenerationConfig()


class LoadedModel:
    """The processor and the engine of a checkpoint, and what its files say about generation.

    Attributes:
        processor: makes prompts of text and pictures.
        engine: generates token ids.
        stop_ids: ids that end an answer.
        generation_config: the checkpoint's generation_config.json.
    """

    def __init__(
        self,
        processor: Processor,
        engine: Engine,
        stop_ids: frozenset[int],
        generation_config: CheckpointGenerationConfig = EMPTY_GENERATION_CONFIG,
    ) -> None:
        self.processor, self.engine = processor, engine
        self.stop_ids, self.generation_config = stop_ids, generation_config

    @property
    def banned_ids(self) -> frozenset[int]:
        """Ids that no answer contains: image placeholders, and those that the generation config bans."""
        return self.processor.image_placeholder_ids | self.generation_config.banned_ids(self.stop_ids)

    @property
    def memory(self) -> int:
        """Size of the weights in bytes, on all devices."""
        return memory_footprint(self.engine.model)  # type: ignore[arg-type]  # a module

    @cached_property
    def token_bytes(self) -> Callable[[bool | None], TokenBytes]:
        """`token_bytes(skip_special_tokens)`: the bytes of each token's text, for constrained answers; cached."""
        vocab_size, tokenizer = self.engine.model.layout.vocab_size, self.processor.tokenizer

        @lru_cache
        def token_bytes(skip_special_tokens: bool | None) -> TokenBytes:
            hidden_ids = tokenizer.special_ids_by_kind.hidden_ids(skip_special_tokens)
            return TokenBytes(tokenizer, vocab_size, self.stop_ids, self.banned_ids, hidden_ids)

        return token_bytes

    @cached_property
    def compile_grammar(self) -> Callable[[OutputConstraint, bool | None], CompiledGrammar]:
        """`compile_grammar(constraint, skip_special_tokens)`; cached, since applications repeat their schemas."""

        @lru_cache(maxsize=MAX_CACHED_GRAMMARS)
        def compile_grammar(
            constraint: OutputConstraint, skip_special_tokens: bool | None
        ) -> CompiledGrammar:
            return CompiledGrammar(constraint, token_bytes=self.token_bytes(skip_special_tokens))

        return compile_grammar

    def with_fetcher(self, fetcher: Fetcher) -> Self:
        """Returns a model with the same engine (weights are shared) whose processor opens pictures with `fetcher`."""
        model = copy.copy(self)
        model.processor = copy.copy(self.processor)
        model.processor.fetcher = fetcher
        return model

    def processor_for_untrusted_text(self, image_detail: ImageDetail) -> Processor:
        """Returns the processor for the prompts of tasks: special tokens in the caller's text are plain characters.

        Args:
            image_detail: how pictures that do not set their own detail are split into tiles.
        """
        processor = self.processor.with_image_detail(image_detail)
        processor.is_text_trusted = False
        return processor

    def close(self) -> None:
        """Closes the engine, which frees weights and KV cache, and drops the cached grammars. May be called twice."""
        self.engine.close()
        for name in ("token_bytes", "compile_grammar"):
            self.__dict__.pop(name, None)
