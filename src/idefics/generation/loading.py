"""Loads a checkpoint: finds its folder, reads its small files, loads its weights, and starts an engine.

`LoadedModel` is the result; every call of `Idefics` works with one.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import torch

from idefics import models, weights
from idefics.engine.engine import Engine
from idefics.engine.page_pool import PAGE_SIZE
from idefics.errors import format_bytes
from idefics.generation.adapters import attach_adapters, find_merged_adapter, read_adapters
from idefics.generation.cache_files import open_feature_cache, open_prefix_files
from idefics.generation.environment import warn_once_about_missing_kernels
from idefics.generation.load_settings import (
    LoadSettings,
    choose_engine_config,
    plan_computation,
    set_num_threads,
    to_quantization_config,
)
from idefics.lazy import cached_property
from idefics.messages import ImageDetail
from idefics.models import Checkpoint
from idefics.nn.attention_backends import set_attention_backend
from idefics.placement.devices import (
    DeviceMap,
    allocation_errors_as_out_of_memory,
    free_memory,
    resolve_device,
)
from idefics.processing import checkpoint_settings
from idefics.processing.checkpoint_generation_config import GENERATION_CONFIG_FILE, CheckpointGenerationConfig
from idefics.processing.fetch import Fetcher
from idefics.processing.picture_files import readable_formats
from idefics.processing.processor import Processor
from idefics.processing.structured_output import CompiledGrammar
from idefics.processing.token_bytes import TokenBytes
from idefics.processing.tokenizer import Tokenizer
from idefics.quant import memory_footprint
from idefics.structured import OutputConstraint
from idefics.weights.files import num_weight_bytes

log = logging.getLogger(__name__)


def load_model(model: str | os.PathLike[str], settings: LoadSettings) -> LoadedModel:
    """Finds a checkpoint, downloads it if necessary, and loads it; raises the errors of `Idefics.load`.

    Args:
        model: a short name, a folder or a hub id.
        settings: where and how to load it.
    """
    start_time = time.perf_counter()
    if settings.threads is not None:
        set_num_threads(settings.threads)
    fetcher = Fetcher(policy=settings.remote_images)
    placement = resolve_device(settings.device, settings.device_map, settings.max_memory)
    device = placement.main_device if isinstance(placement, DeviceMap) else placement
    quantization = to_quantization_config(settings.quantize)
    folder = weights.find_checkpoint(
        model, revision=settings.revision, offline=settings.offline, progress=settings.progress
    )
    checkpoint = models.read_checkpoint(folder)
    adapter = find_merged_adapter(model, checkpoint, settings)
    checkpoint_bytes = num_weight_bytes(folder)
    with allocation_errors_as_out_of_memory("the model", checkpoint_bytes, device):
        generation_config = read_generation_config(checkpoint)
        module = models.build_on_meta_device(checkpoint)
        num_parameters = models.count_parameters(module)
        adapters = read_adapters(model, checkpoint, module, settings)
        plan = plan_computation(module, device, checkpoint.config.dtype, settings)
        config = choose_engine_config(device, settings)
        free_bytes = free_memory(device) if device.type == "cpu" else None
        if device.type == "cpu" and not settings.is_reference:
            warn_once_about_missing_kernels()
        processor = create_processor(checkpoint, fetcher)
        # Before the weights are read: an edit of their files meanwhile then changes the key.
        feature_cache = open_feature_cache(checkpoint, plan, placement, quantization, settings, adapter)
        # A second measurement of free memory, for the error message: the imports took some of it.
        with allocation_errors_as_out_of_memory("the model", checkpoint_bytes, device):
            models.load_weights(
                module,
                folder,
                checkpoint.family.key_rules,
                dtype=plan.dtype,
                device=placement,
                storage=plan.storage,
                quantization=quantization,
                checkpoint_quantization=checkpoint.quantization,
                kernel_choice=plan.kernel_choice,
                mmap=True,
                adapter=adapter,
            )
        set_attention_backend(module, plan.attention_backend)
        model_adapters = attach_adapters(module, adapters)
        if free_bytes is not None:  # weights that stay in the files do not take memory yet
            free_bytes = min(free_bytes - memory_footprint(module), free_memory(device))
        engine = Engine(module, config, free_bytes, feature_cache, model_adapters)  # type: ignore[arg-type]  # a VLM
        if feature_cache is not None:
            engine.scheduler.prefix_files = open_prefix_files(feature_cache, engine)
    seconds = time.perf_counter() - start_time
    log.info("loaded %s from %s in %.2f s: %s", model, folder, seconds, _describe_engine(engine))
    stop_ids = collect_stop_ids(checkpoint, processor)
    return LoadedModel(processor, engine, stop_ids, generation_config, checkpoint.family.name, num_parameters)


def create_processor(checkpoint: Checkpoint, fetcher: Fetcher) -> Processor:
    """Creates the processor of a checkpoint from its tokenizer, chat template and image settings.

    Args:
        checkpoint: its folder, config and family.
        fetcher: opens pictures.

    Raises:
        ModelError: one of the files is missing or malformed.
    """
    family, folder = checkpoint.family, checkpoint.folder
    tokenizer = Tokenizer.load(folder)
    text = checkpoint.config.text
    added_tokens = tokenizer.added_tokens_below(text.vocab_size + text.additional_vocab_size)
    prompt_format = family.read_prompt_format(checkpoint_settings.read_chat_template(folder), added_tokens)
    image_config = family.read_image_config(
        checkpoint.config, checkpoint_settings.read_preprocessor_config(folder)
    )
    # Imported and computed now: a process that is forked while another thread does so would deadlock.
    _ = readable_formats(), tokenizer.special_ids_by_kind
    return Processor(tokenizer, image_config, prompt_format, fetcher, text.max_positions)


def read_generation_config(checkpoint: Checkpoint) -> CheckpointGenerationConfig:
    """The fields of a checkpoint's generation_config.json; the defaults if there is no such file."""
    text = checkpoint.config.text
    vocab_size = text.vocab_size + text.additional_vocab_size
    return CheckpointGenerationConfig.from_dict(
        checkpoint_settings.read_json_object(checkpoint.folder / GENERATION_CONFIG_FILE), vocab_size
    )


def collect_stop_ids(checkpoint: Checkpoint, processor: Processor) -> frozenset[int]:
    """The ids that end an answer: the stop ids in the checkpoint's files, and the token that ends a chat's turn."""
    prompt_format, tokenizer = processor.prompt_format, processor.tokenizer
    turn_end_id = (
        tokenizer.token_to_id(prompt_format.turn_end_token) if prompt_format.turn_end_token else None
    )
    return frozenset(checkpoint.config.stop_ids) | (frozenset() if turn_end_id is None else {turn_end_id})


def _describe_engine(engine: Engine) -> str:
    """The text for the log: which implementations compute, and how much memory weights and caches take."""
    model = engine.model
    devices = sorted({str(weight.device) for weight in model.parameters()})
    return (
        f"{type(model).__name__} in {model.dtype} on {', '.join(devices)} with {torch.get_num_threads()} threads; "
        f"decode steps by {engine.model_runner.decode_step}; weights {format_bytes(memory_footprint(model))}; "  # type: ignore[arg-type]
        f"{engine.scheduler.page_pool.num_pages * PAGE_SIZE} tokens of cache; {engine.config}"
    )


MAX_CACHED_GRAMMARS = 16  # compiled grammars that are kept, of megabytes each at most
EMPTY_GENERATION_CONFIG = CheckpointGenerationConfig()


@dataclass(eq=False)
class LoadedModel:
    """The processor and the engine of a checkpoint, and what its files say about generation.

    Attributes:
        processor: makes prompts of text and pictures.
        engine: generates token ids.
        stop_ids: ids that end an answer.
        generation_config: the checkpoint's generation_config.json.
        family: the name of the model's family, for people; "" if it is not known.
        num_parameters: of the whole model, whatever its weights are quantized to; 0 if it is not known.
    """

    processor: Processor
    engine: Engine
    stop_ids: frozenset[int]
    generation_config: CheckpointGenerationConfig = EMPTY_GENERATION_CONFIG
    family: str = ""
    num_parameters: int = 0

    @property
    def banned_ids(self) -> frozenset[int]:
        """Ids that no answer contains: image placeholders, and those that the generation config bans in every step."""
        return self.processor.image_placeholder_ids | self.generation_config.banned_ids(self.stop_ids)

    @property
    def memory(self) -> int:
        """Size of the weights in bytes, on all devices, those of adapters included."""
        return memory_footprint(self.engine.model) + self.engine.adapters.num_bytes  # type: ignore[arg-type]  # a module

    @cached_property
    def token_bytes(self) -> Callable[[bool | None], TokenBytes]:
        """A function (`skip_special_tokens`) -> the bytes of each token's text, for constrained answers; cached."""
        vocab_size, tokenizer = self.engine.model.layout.vocab_size, self.processor.tokenizer

        @lru_cache
        def token_bytes(skip_special_tokens: bool | None) -> TokenBytes:
            hidden_ids = tokenizer.special_ids_by_kind.hidden_ids(skip_special_tokens)
            return TokenBytes(tokenizer, vocab_size, self.stop_ids, self.banned_ids, hidden_ids)

        return token_bytes

    @cached_property
    def compile_grammar(self) -> Callable[[OutputConstraint, bool | None], CompiledGrammar]:
        """A function (constraint, `skip_special_tokens`) -> the compiled grammar of structured output.

        It is cached, since applications repeat their schemas.
        """

        @lru_cache(maxsize=MAX_CACHED_GRAMMARS)
        def compile_grammar(
            constraint: OutputConstraint, skip_special_tokens: bool | None
        ) -> CompiledGrammar:
            return CompiledGrammar(constraint, token_bytes=self.token_bytes(skip_special_tokens))

        return compile_grammar

    def store_prefix(self) -> None:
        """Writes the keys and values of the latest prompt up to the end of its last picture, for later processes.

        Nothing is written if the model keeps no encoded pictures in files, or read that beginning from a file.
        """
        prefix_files = self.engine.scheduler.prefix_files
        if prefix_files is not None:
            with self.engine.condition:
                prefix_files.store_missing()

    def with_fetcher(self, fetcher: Fetcher) -> Self:
        """Returns a model with the same engine (weights are shared) whose processor opens pictures with `fetcher`."""
        model = copy.copy(self)
        model.processor = copy.copy(self.processor)
        model.processor.fetcher = fetcher
        return model

    def with_adapter(self, name: str | None) -> Self:
        """Returns a model with the same engine that answers with an adapter; None: without one.

        Raises:
            BadSetting: it has no adapter of that name.
        """
        model = copy.copy(self)
        model.processor = copy.copy(self.processor)
        model.processor.adapter = None if name is None else self.engine.adapters.find(name)
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
