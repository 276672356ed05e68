"""Where and in which precision a model lives, and a folder turned into a processor and an engine."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Self, get_args

import torch

from idefics import models, weights
from idefics.config import EngineConfig, KernelMode, QuantizationConfig, QuantKind
from idefics.engine.engine import Engine
from idefics.engine.page_pool import PAGE_SIZE
from idefics.errors import BadSetting, format_bytes
from idefics.generation.environment import warn_about_missing_kernels
from idefics.host_memory import parse_memory_size
from idefics.lazy import cached_property
from idefics.models import Checkpoint, WeightStorage
from idefics.nn.attention_backends import (
    get_attention_backend,
    native_or_sdpa_attention,
    sdpa_attention,
    set_attention_backend,
)
from idefics.placement import DeviceLike, DeviceMap, free_memory, raise_out_of_memory, resolve_device
from idefics.processing import checkpoint_settings
from idefics.processing.checkpoint_generation_config import GENERATION_CONFIG_FILE, CheckpointGenerationConfig
from idefics.processing.fetch import Fetcher
from idefics.processing.picture_files import readable_formats
from idefics.processing.processor import Processor
from idefics.processing.structured_output import CompiledGrammar
from idefics.processing.token_bytes import TokenBytes
from idefics.processing.tokenizer import Tokenizer
from idefics.processing.url_policy import UrlPolicy
from idefics.quant import memory_footprint
from idefics.quant.autotune import KernelChoice, choose_kernels
from idefics.structured import OutputConstraint
from idefics.validation import reject_unknown_arguments, validate_bool, validate_choice

log = logging.getLogger(__name__)

MAX_THREADS = 1024
MAX_CACHED_GRAMMARS = 16  # that are kept ready, with megabytes each at most
EMPTY_GENERATION_CONFIG = CheckpointGenerationConfig()
DTYPE_BY_NAME = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LoadedModel:
    """A checkpoint's processor and engine, ready to work."""

    def __init__(
        self,
        processor: Processor,
        engine: Engine,
        stop_ids: frozenset[int],
        generation_config: CheckpointGenerationConfig = EMPTY_GENERATION_CONFIG,
    ) -> None:
        self.processor, self.engine, self.stop_ids, self.generation_config = (
            processor,
            engine,
            stop_ids,
            generation_config,
        )

    @property
    def banned_ids(self) -> frozenset[int]:
        """Ids that no answer holds: those that stand for pictures, and what the checkpoint bans."""
        return self.processor.image_placeholder_ids | self.generation_config.banned_ids(self.stop_ids)

    @cached_property
    def token_bytes(self) -> Callable[[bool | None], TokenBytes]:
        """The model's tokens in bytes, for answers in which not everything may be said, by `skip_special_tokens`."""
        vocab_size, tokenizer = self.engine.model.layout.vocab_size, self.processor.tokenizer

        @lru_cache
        def token_bytes(skip_special_tokens: bool | None) -> TokenBytes:
            hidden_ids = tokenizer.special_tokens.hidden_ids(skip_special_tokens)
            return TokenBytes(tokenizer, vocab_size, self.stop_ids, self.banned_ids, hidden_ids)

        return token_bytes

    @cached_property
    def compile_grammar(self) -> Callable[[OutputConstraint, bool | None], CompiledGrammar]:
        """Gets a form ready, and keeps the last few: an app asks for one again and again, a schema takes 60 ms."""
        return lru_cache(maxsize=MAX_CACHED_GRAMMARS)(
            lambda form, skip: CompiledGrammar(form, token_bytes=self.token_bytes(skip))
        )

    @classmethod
    @reject_unknown_arguments
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        device: DeviceLike = "auto",
        dtype: str | torch.dtype = "auto",
        threads: int | None = None,
        device_map: DeviceLike | Mapping[str, DeviceLike] | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        quantize: QuantKind | QuantizationConfig | None = None,
        attn_implementation: str = "sdpa",
        kv_cache: float | str | None = None,
        batch_rows: int | None = None,
        kernels: KernelMode = "auto",
        revision: str | None = None,
        offline: bool | None = None,
        remote_images: UrlPolicy = "any",
        progress: weights.ProgressCallback | None = None,
    ) -> Self:
        """Finds, downloads if need be, and loads a model by short name ("demo"), folder or hub id.

        Args:
            model: a short name ("demo", "smolvlm-500m"; `idefics models` lists them), a folder or a hub id.
            device: "auto" (CUDA, Apple's, else the CPU) or a torch device.
            dtype: "auto" (the checkpoint's on a GPU; on a CPU weights are stored as in the checkpoint and computed
                with in float32), "float32", "bfloat16" or "float16" (on a CPU computed with in float32 where it is
                slower with halves).
            threads: of the CPU that are used, in the whole process; None: as many as torch takes.
            device_map: in place of `device`: "auto" spreads layers over all GPUs, and over CPU memory what does not
                fit; or where each part lies, by module names, "" for the rest.
            max_memory: with "auto", what may be used of each GPU and of the CPU: {0: "10GiB", "cpu": "30GiB"}.
            quantize: keep the decoder's weights in fewer bits: "int8", "int4", "fp8", "nf4" or "fp4" (these two need
                `idefics[quant]`), or a `QuantizationConfig` that says more.
            attn_implementation: "sdpa", "eager" (plain products and a softmax) or "flash_attention_2".
            kv_cache: memory for keys and values, which also serve prompts that begin alike: bytes ("1GB", 10**9), or a
                share of what is free (0.3). None: what 16,384 tokens take, or the model's longest prompt where that is
                shorter, 512 MiB in any case, but at most 0.3 of what is free; on a GPU 0.6 of what is free.
            batch_rows: so many prompts are answered side by side; None: 8, on a GPU 64.
            kernels: what computes. "auto": the C code, and products by the kind of processor, so that equal processors
                give equal numbers; "autotune": products by what is measured to be quickest here, so that numbers may
                differ between two machines or two days; "reference": torch's plain operations alone, slowly.
            revision: branch, tag or commit on the hub.
            offline: never use the network.
            remote_images: which addresses may be fetched: "any", "public", "off", or hosts ("a.example,*.b.example").
            progress: called with (bytes done, bytes in all) while a model is downloaded.

        Raises:
            ModelError: no such model, not one that this package runs, or its weights do not fit.
            BadSetting: an unknown device, dtype or other word; flash attention where it cannot be.
            OutOfMemory: weights or caches do not fit into what is free, or into a limit of this process or container.
            MissingExtra: "nf4" or "fp4" without bitsandbytes.
        """
        start_time = time.perf_counter()
        if offline is not None:
            validate_bool("offline", offline)
        if threads is not None:
            set_num_threads(threads)
        validate_choice("kernels", kernels, get_args(KernelMode))
        fetcher, placement = Fetcher(policy=remote_images), resolve_device(device, device_map, max_memory)
        main_device = placement.main_device if isinstance(placement, DeviceMap) else placement
        quantization_config = to_quantization_config(quantize)
        folder = weights.find(model, revision=revision, offline=offline, progress=progress)
        checkpoint = models.read_checkpoint(folder)
        checkpoint_bytes = sum(path.stat().st_size for path in weights.weight_files(folder))
        with raise_out_of_memory("the model", checkpoint_bytes, main_device):
            generation_config = read_generation_config(checkpoint)
            module = models.build_on_meta_device(checkpoint)
            is_reference = kernels == "reference"
            kernel_choice = (
                KernelChoice()
                if main_device.type != "cpu" and not is_reference
                else choose_kernels(module, kernels)
            )
            compute_dtype, storage = resolve_dtypes(
                dtype, main_device, checkpoint.config.dtype, kernel_choice or KernelChoice()
            )
            attention_backend = get_attention_backend(attn_implementation, compute_dtype, main_device)
            config = engine_config(main_device, kv_cache, batch_rows, reference=is_reference)
            free_bytes = free_memory(main_device) if main_device.type == "cpu" else None
            if main_device.type == "cpu" and not is_reference:
                warn_about_missing_kernels()
            processor = create_processor(checkpoint, fetcher)
            # Measured again: the imports took memory too.
            with raise_out_of_memory("the model", checkpoint_bytes, main_device):
                models.load_weights(
                    module,
                    folder,
                    checkpoint.family.key_rules,
                    dtype=compute_dtype,
                    device=placement,
                    storage=storage,
                    quantization=quantization_config,
                    checkpoint_quantization=checkpoint.quantization,
                    kernel_choice=kernel_choice,
                    mmap=True,
                )
            set_attention_backend(
                module,
                sdpa_attention
                if attention_backend is native_or_sdpa_attention and is_reference
                else attention_backend,
            )
            if free_bytes is not None:  # weights that stay in the files are not in memory yet
                free_bytes = min(free_bytes - memory_footprint(module), free_memory(main_device))
            engine = Engine(module, config, free_bytes)  # type: ignore[arg-type]  # a VLM by its methods
        log.info(
            "loaded %s from %s in %.2f s: %s",
            model,
            folder,
            time.perf_counter() - start_time,
            _describe_engine(engine),
        )
        return cls(processor, engine, collect_stop_ids(checkpoint, processor), generation_config)

    def close(self) -> None:
        """Ends the model: its memory and its thread are free. What is under way, and every later call, fails.

        Models made from it by `with_shots` and `fetching` are closed too. May be called twice.
        """
        self.engine.close()
        for name in ("token_bytes", "compile_grammar"):
            self.__dict__.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def memory(self) -> int:
        """Bytes that the model's weights take, on whatever devices; pictures and caches come on top."""
        return memory_footprint(self.engine.model)  # type: ignore[arg-type]  # a module


def _describe_engine(engine: Engine) -> str:
    """What computes and how much memory it takes, for the log."""
    model = engine.model
    devices = sorted({str(weight.device) for weight in model.parameters()})
    return (
        f"{type(model).__name__} in {model.dtype} on {', '.join(devices)} with {torch.get_num_threads()} threads; "
        f"decode steps by {engine.model_runner.decode_step}; weights {format_bytes(memory_footprint(model))}; "  # type: ignore[arg-type]
        f"{engine.scheduler.page_pool.num_pages * PAGE_SIZE} tokens of cache; {engine.config}"
    )


def to_quantization_config(quantize: object) -> QuantizationConfig | None:
    """What the keyword `quantize` says: nothing, a kind, or a `QuantizationConfig`."""
    if quantize is None or isinstance(quantize, QuantizationConfig):
        return quantize
    return QuantizationConfig(kind=quantize)  # type: ignore[arg-type]  # which refuses what is no kind


def engine_config(
    device: torch.device,
    kv_cache: float | str | None = None,
    batch_rows: int | None = None,
    *,
    reference: bool = False,
) -> EngineConfig:
    """How much is done at once on a device. A GPU reads its weights as fast for many rows as for one."""
    config = EngineConfig(reference=reference)
    if device.type == "cuda":
        config = replace(
            config, batch_rows=64, encode_frames=32, step_tokens=2048, kv_cache=0.6, picture_bytes=4 << 30
        )
    if kv_cache is not None:
        config = replace(config, kv_cache=parse_memory_size("kv_cache", kv_cache))
    return config if batch_rows is None else replace(config, batch_rows=batch_rows)


def create_processor(checkpoint: Checkpoint, fetcher: Fetcher) -> Processor:
    """A checkpoint's tokenizer, template and image settings, as its family reads them."""
    family, folder = checkpoint.family, checkpoint.folder
    tokenizer = Tokenizer.load(folder)
    text = checkpoint.config.text
    added_tokens = tokenizer.added_tokens_below(text.vocab_size + text.additional_vocab_size)
    prompt_format = family.read_prompt_format(checkpoint_settings.read_chat_template(folder), added_tokens)
    image_config = family.read_image_config(
        checkpoint.config, checkpoint_settings.read_preprocessor_config(folder)
    )
    # What every answer imports: a process that is forked while a thread imports it would wait for ever.
    _ = readable_formats(), tokenizer.special_tokens
    return Processor(tokenizer, image_config, prompt_format, fetcher, text.max_positions)


def read_generation_config(checkpoint: Checkpoint) -> CheckpointGenerationConfig:
    """What the checkpoint's generation_config.json asks of every answer."""
    text = checkpoint.config.text
    vocab_size = text.vocab_size + text.additional_vocab_size
    return CheckpointGenerationConfig.from_dict(
        checkpoint_settings.read_json_object(checkpoint.folder / GENERATION_CONFIG_FILE), vocab_size
    )


def collect_stop_ids(checkpoint: Checkpoint, processor: Processor) -> frozenset[int]:
    """The ids that end an answer: the checkpoint's own, and the token that ends a turn."""
    style, tokenizer = processor.prompt_format, processor.tokenizer
    turn_end_id = tokenizer.token_to_id(style.turn_end_token) if style.turn_end_token else None
    return frozenset(checkpoint.config.stop_ids) | (frozenset() if turn_end_id is None else {turn_end_id})


def set_num_threads(num_threads: int) -> None:
    """Has torch compute with so many threads.

    Raises:
        BadSetting: none, or more than any machine has.
    """
    if (
        isinstance(num_threads, bool)
        or not isinstance(num_threads, int)
        or not 1 <= num_threads <= MAX_THREADS
    ):
        raise BadSetting(f"threads is {num_threads!r}; give a whole number from 1 to {MAX_THREADS}")
    torch.set_num_threads(num_threads)


def resolve_dtypes(
    dtype: str | torch.dtype, device: torch.device, checkpoint_dtype: str | None, kernel_choice: KernelChoice
) -> tuple[torch.dtype, WeightStorage]:
    """In which dtype is computed, and how matrices are stored.

    "auto" is the checkpoint's on a GPU. On a CPU it is float32 with weights stored as the checkpoint has them: the
    numbers of float32 in half the memory. Sixteen bits by name are stored; they are computed with where this machine
    is quicker with them than with float32.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        if device.type == "cpu":
            return torch.float32, "file"
        return DTYPE_BY_NAME.get(checkpoint_dtype or "", torch.bfloat16), None
    if name not in DTYPE_BY_NAME:
        raise BadSetting(f"dtype is {name!r}; give auto, {', '.join(DTYPE_BY_NAME)}")
    if device.type == "cpu" and name not in ("float32", *kernel_choice.halves):
        return torch.float32, DTYPE_BY_NAME[name]
    return DTYPE_BY_NAME[name], None
