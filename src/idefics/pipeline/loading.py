"""Where and in which precision a model lives, and a folder turned into a processor and an engine."""

from __future__ import annotations

import torch

from idefics import models
from idefics.config import EngineConfig
from idefics.engine.engine import Engine
from idefics.errors import BadSetting
from idefics.models import Checkpoint
from idefics.processing import settings
from idefics.processing.fetch import Fetcher
from idefics.processing.processor import Processor
from idefics.processing.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def processor_for(checkpoint: Checkpoint, fetcher: Fetcher) -> Processor:
    """A checkpoint's tokenizer, template and image settings, as its family reads them."""
    family, folder = checkpoint.family, checkpoint.folder
    tokenizer = Tokenizer.load(folder)
    style = family.prompt(settings.chat_template(folder), tokenizer.added)
    plan = family.images(checkpoint.config, settings.preprocessor(folder))
    return Processor(tokenizer, plan, style, fetcher)


def engine_for(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Engine:
    """A checkpoint's weights on their device, and the engine that runs them."""
    module = models.load_model(checkpoint, dtype=dtype, device=device)
    return Engine(module, EngineConfig())  # type: ignore[arg-type]  # a VLM by its methods


def stop_ids(checkpoint: Checkpoint, processor: Processor) -> frozenset[int]:
    """The ids that end an answer: the checkpoint's own, and the token that ends a turn."""
    style, tokenizer = processor.style, processor.tokenizer
    turn_end = tokenizer.token_id(style.turn_end) if style.turn_end else None
    return frozenset(checkpoint.config.stop_ids) | (frozenset() if turn_end is None else {turn_end})


def device_called(name: str) -> torch.device:
    """The device by its name, or a BadSetting if this machine has none such."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise BadSetting(
            f"device is {name!r}, which this machine does not have: give auto, cpu, cuda or cuda:1"
        ) from None
    return device


def dtype_called(name: str, device: torch.device, stored: str | None) -> torch.dtype:
    """The dtype by its name; "auto" is the stored one, but float32 on a CPU, where halves are computed slowly."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else DTYPES.get(stored or "", torch.bfloat16)
    if name not in DTYPES:
        raise BadSetting(f"dtype is {name!r}; give auto, {', '.join(DTYPES)}")
    return DTYPES[name]
