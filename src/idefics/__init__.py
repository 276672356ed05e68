"""Ask questions about pictures with the vision-language models of the IDEFICS family, on your own machine.

    >>> import idefics
    >>> vlm = idefics.load("demo")
    >>> print(vlm.ask("photo.jpg", "What is on the table?"))

The names in `__all__` are the public API. Each is imported when it is first used, so that `import idefics` is fast and
does not import torch.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idefics.config import EngineConfig, QuantizationConfig, Sampling
    from idefics.errors import (
        AdapterMismatch,
        BadCall,
        BadPicture,
        BadPrompt,
        BadRequest,
        BadSetting,
        BadVideo,
        BrokenCheckpoint,
        EngineBusy,
        IdeficsError,
        MissingExtra,
        ModelClosed,
        ModelError,
        ModelNotFound,
        OutOfMemory,
        OutputError,
        PartialPictureWarning,
        PromptTooLong,
        RequestTimeout,
        TextTooLong,
        UnknownArgument,
        UnsupportedModel,
        WeightsMismatch,
    )
    from idefics.explain.explanation import ExplainedWord, Explanation
    from idefics.generation.streaming import Stream
    from idefics.messages import (
        Alternative,
        Answer,
        Delta,
        ImageDetail,
        Message,
        Picture,
        RankedLabel,
        Ranking,
        Shot,
        Timings,
        Usage,
        Video,
        assistant,
        user,
    )
    from idefics.options import Options
    from idefics.tasks.idefics_model import Idefics, load
    from idefics.tasks.row_mapping import MapResult, MapResults
    from idefics.tasks.shots import read_shots

__all__ = [
    "__version__",
    "AdapterMismatch",
    "Alternative",
    "Answer",
    "assistant",
    "BadCall",
    "BadPicture",
    "BadPrompt",
    "BadRequest",
    "BadSetting",
    "BadVideo",
    "BrokenCheckpoint",
    "Delta",
    "EngineBusy",
    "EngineConfig",
    "ExplainedWord",
    "Explanation",
    "Idefics",
    "IdeficsError",
    "ImageDetail",
    "load",
    "MapResult",
    "MapResults",
    "Message",
    "MissingExtra",
    "ModelClosed",
    "ModelError",
    "ModelNotFound",
    "Options",
    "OutOfMemory",
    "OutputError",
    "PartialPictureWarning",
    "Picture",
    "PromptTooLong",
    "QuantizationConfig",
    "RankedLabel",
    "Ranking",
    "read_shots",
    "RequestTimeout",
    "Sampling",
    "Shot",
    "Stream",
    "TextTooLong",
    "Timings",
    "UnknownArgument",
    "UnsupportedModel",
    "Usage",
    "user",
    "Video",
    "WeightsMismatch",
]

__version__ = "0.1.0"

# Which module each name is imported from.
_MODULE_BY_NAME = {
    name: module
    for module, names in {
        "idefics.config": "EngineConfig QuantizationConfig Sampling",
        "idefics.errors": (
            "AdapterMismatch BadCall BadPicture BadPrompt BadRequest BadSetting BadVideo BrokenCheckpoint EngineBusy "
            "IdeficsError MissingExtra ModelClosed ModelError ModelNotFound OutOfMemory OutputError "
            "PartialPictureWarning PromptTooLong RequestTimeout TextTooLong UnknownArgument "
            "UnsupportedModel WeightsMismatch"
        ),
        "idefics.explain.explanation": "ExplainedWord Explanation",
        "idefics.generation.streaming": "Stream",
        "idefics.messages": (
            "Alternative Answer assistant Delta ImageDetail Message Picture RankedLabel Ranking Shot "
            "Timings Usage user Video"
        ),
        "idefics.options": "Options",
        "idefics.tasks.idefics_model": "Idefics load",
        "idefics.tasks.row_mapping": "MapResult MapResults",
        "idefics.tasks.shots": "read_shots",
    }.items()
    for name in names.split()
}

# The package logs nothing to the terminal unless the application configures logging.
logging.getLogger("idefics").addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module 'idefics' has no attribute {name!r}")
    return getattr(import_module(_MODULE_BY_NAME[name]), name)


def __dir__() -> list[str]:
    return __all__
