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
from idefics.calls import checked_flag, one_of, public
from idefics.config import EngineConfig, Kernels, QuantizationConfig, QuantKind
from idefics.engine.engine import Engine
from idefics.engine.pages import PAGE
from idefics.errors import BadSetting, size_text
from idefics.form import Form
from idefics.host_memory import memory_amount
from idefics.lazy import cached_property
from idefics.models import Checkpoint, Storage
from idefics.nn.kernels import fast, fused, give_kernel, kernel_called
from idefics.pipeline.environment import warn_of_missing_kernels
from idefics.placement import Device, Spread, free_memory, told_of_memory, wanted
from idefics.processing import settings
from idefics.processing.addresses import Policy
from idefics.processing.fetch import Fetcher
from idefics.processing.generation_rules import FILE, GenerationRules
from idefics.processing.guides import Shape
from idefics.processing.picture_files import readable_formats
from idefics.processing.processor import Processor
from idefics.processing.spelling import Spelling
from idefics.processing.tokenizer import Tokenizer
from idefics.quant import footprint
from idefics.quant.measure import Verdict, verdict_for

log = logging.getLogger(__name__)

MOST_THREADS = 1024
FORMS = 16  # that are kept ready, with megabytes each at most
NO_RULES = GenerationRules()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Loaded:
    """A checkpoint's processor and engine, ready to work."""

    def __init__(
        self,
        processor: Processor,
        engine: Engine,
        stop_ids: frozenset[int],
        rules: GenerationRules = NO_RULES,
    ) -> None:
        self.processor, self.engine, self.stop_ids, self.rules = processor, engine, stop_ids, rules

    @property
    def banned_ids(self) -> frozenset[int]:
        """Ids that no answer holds: those that stand for pictures, and what the checkpoint bans."""
        return self.processor.mark_ids | self.rules.banned_ids(self.stop_ids)

    @cached_property
    def spelling(self) -> Callable[[bool | None], Spelling]:
        """The model's tokens in bytes, for answers in which not everything may be said, by `skip_special_tokens`."""
        vocabulary, tokenizer = self.engine.model.layout.vocabulary, self.processor.tokenizer

        @lru_cache
        def spelling(skip_special_tokens: bool | None) -> Spelling:
            hidden = tokenizer.special_tokens.hidden(skip_special_tokens)
            return Spelling(tokenizer, vocabulary, self.stop_ids, self.banned_ids, hidden)

        return spelling

    @cached_property
    def shape(self) -> Callable[[Form, bool | None], Shape]:
        """Gets a form ready, and keeps the last few: an app asks for one again and again, a schema takes 60 ms."""
        return lru_cache(maxsize=FORMS)(lambda form, skip: Shape(form, spelling=self.spelling(skip)))

    @classmethod
    @public
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        device: Device = "auto",
        dtype: str | torch.dtype = "auto",
        threads: int | None = None,
        device_map: Device | Mapping[str, Device] | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
        quantize: QuantKind | QuantizationConfig | None = None,
        attn_implementation: str = "sdpa",
        kv_cache: float | str | None = None,
        batch_rows: int | None = None,
        kernels: Kernels = "auto",
        revision: str | None = None,
        offline: bool | None = None,
        remote_images: Policy = "any",
        progress: weights.Progress | None = None,
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
        began = time.perf_counter()
        if offline is not None:
            checked_flag("offline", offline)
        if threads is not None:
            use_threads(threads)
        one_of("kernels", kernels, get_args(Kernels))
        fetcher, place = Fetcher(policy=remote_images), wanted(device, device_map, max_memory)
        main = place.main if isinstance(place, Spread) else place
        quantisation = quantization(quantize)
        folder = weights.find(model, revision=revision, offline=offline, progress=progress)
        checkpoint = models.read_checkpoint(folder)
        on_disk = sum(path.stat().st_size for path in weights.weight_files(folder))
        with told_of_memory("the model", on_disk, main):
            rules = generation_rules(checkpoint)
            module = models.build(checkpoint)
            is_reference = kernels == "reference"
            quick = Verdict() if main.type != "cpu" and not is_reference else verdict_for(module, kernels)
            computed, storage = dtypes_called(dtype, main, checkpoint.config.dtype, quick or Verdict())
            kernel = kernel_called(attn_implementation, computed, main)
            config = engine_config(main, kv_cache, batch_rows, reference=is_reference)
            free = free_memory(main) if main.type == "cpu" else None
            if main.type == "cpu" and not is_reference:
                warn_of_missing_kernels()
            processor = processor_for(checkpoint, fetcher)
            with told_of_memory("the model", on_disk, main):  # measured again: imports took memory too
                models.fill(
                    module,
                    folder,
                    checkpoint.family.keys,
                    dtype=computed,
                    device=place,
                    storage=storage,
                    quantisation=quantisation,
                    stored=checkpoint.quantisation,
                    verdict=quick,
                    mapped=True,
                )
            give_kernel(module, fused if kernel is fast and is_reference else kernel)
            if free is not None:  # weights that stay in the files are not in memory yet
                free = min(free - footprint(module), free_memory(main))
            engine = Engine(module, config, free)  # type: ignore[arg-type]  # a VLM by its methods
        log.info("loaded %s from %s in %.2f s: %s", model, folder, time.perf_counter() - began, _told(engine))
        return cls(processor, engine, stop_ids(checkpoint, processor), rules)

    def close(self) -> None:
        """Ends the model: its memory and its thread are free. What is under way, and every later call, fails.

        Models made from it by `with_shots` and `fetching` are closed too. May be called twice.
        """
        self.engine.close()
        for name in ("spelling", "shape"):
            self.__dict__.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def memory(self) -> int:
        """Bytes that the model's weights take, on whatever devices; pictures and caches come on top."""
        return footprint(self.engine.model)  # type: ignore[arg-type]  # a module


def _told(engine: Engine) -> str:
    """What computes and how much memory it takes, for the log."""
    model = engine.model
    devices = sorted({str(weight.device) for weight in model.parameters()})
    return (
        f"{type(model).__name__} in {model.dtype} on {', '.join(devices)} with {torch.get_num_threads()} threads; "
        f"decode steps by {engine.runner.decode}; weights {size_text(footprint(model))}; "  # type: ignore[arg-type]
        f"{engine.scheduler.pages.count * PAGE} tokens of cache; {engine.config}"
    )


def quantization(quantize: object) -> QuantizationConfig | None:
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
        config = replace(config, kv_cache=memory_amount("kv_cache", kv_cache))
    return config if batch_rows is None else replace(config, batch_rows=batch_rows)


def processor_for(checkpoint: Checkpoint, fetcher: Fetcher) -> Processor:
    """A checkpoint's tokenizer, template and image settings, as its family reads them."""
    family, folder = checkpoint.family, checkpoint.folder
    tokenizer = Tokenizer.load(folder)
    text = checkpoint.config.text
    known = tokenizer.added_below(text.vocabulary + text.additional_vocabulary)
    style = family.prompt(settings.chat_template(folder), known)
    plan = family.images(checkpoint.config, settings.preprocessor(folder))
    # What every answer imports: a process that is forked while a thread imports it would wait for ever.
    _ = readable_formats(), tokenizer.special_tokens
    return Processor(tokenizer, plan, style, fetcher, text.max_positions)


def generation_rules(checkpoint: Checkpoint) -> GenerationRules:
    """What the checkpoint's generation_config.json asks of every answer."""
    text = checkpoint.config.text
    vocabulary = text.vocabulary + text.additional_vocabulary
    return GenerationRules.read(settings.json_object(checkpoint.folder / FILE), vocabulary)


def stop_ids(checkpoint: Checkpoint, processor: Processor) -> frozenset[int]:
    """The ids that end an answer: the checkpoint's own, and the token that ends a turn."""
    style, tokenizer = processor.style, processor.tokenizer
    turn_end = tokenizer.token_id(style.turn_end) if style.turn_end else None
    return frozenset(checkpoint.config.stop_ids) | (frozenset() if turn_end is None else {turn_end})


def use_threads(count: int) -> None:
    """Has torch compute with so many threads.

    Raises:
        BadSetting: none, or more than any machine has.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_THREADS:
        raise BadSetting(f"threads is {count!r}; give a whole number from 1 to {MOST_THREADS}")
    torch.set_num_threads(count)


def dtypes_called(
    dtype: str | torch.dtype, device: torch.device, stored: str | None, quick: Verdict
) -> tuple[torch.dtype, Storage]:
    """In which dtype is computed, and how matrices are stored.

    "auto" is the checkpoint's on a GPU. On a CPU it is float32 with weights stored as the checkpoint has them: the
    numbers of float32 in half the memory. Sixteen bits by name are stored; they are computed with where this machine
    is quicker with them than with float32.
    """
    name = str(dtype).removeprefix("torch.")
    if name == "auto":
        if device.type == "cpu":
            return torch.float32, "file"
        return DTYPES.get(stored or "", torch.bfloat16), None
    if name not in DTYPES:
        raise BadSetting(f"dtype is {name!r}; give auto, {', '.join(DTYPES)}")
    if device.type == "cpu" and name not in ("float32", *quick.halves):
        return torch.float32, DTYPES[name]
    return DTYPES[name], None
