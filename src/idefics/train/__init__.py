"""Fine-tuning: `run` trains an adapter, or a whole small model, on a user's own pictures and texts.

    >>> from idefics import train
    >>> settings = train.TrainSettings(data="photos/", model="demo", out="my-adapter", steps=100)
    >>> train.run(settings)

The names in `__all__` are public. Each is imported when it is first used; importing this package brings no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idefics.train.dry_run import DryRun
    from idefics.train.forecast import Forecast
    from idefics.train.records import SampleRecord, StepRecord, TrainingListener, ValidationRecord
    from idefics.train.settings import TrainSettings
    from idefics.train.training import TrainResult, run

__all__ = [
    "DryRun",
    "Forecast",
    "run",
    "SampleRecord",
    "StepRecord",
    "TrainingListener",
    "TrainResult",
    "TrainSettings",
    "ValidationRecord",
]

_MODULE_BY_NAME = {
    name: module
    for module, names in {
        "idefics.train.dry_run": "DryRun",
        "idefics.train.forecast": "Forecast",
        "idefics.train.records": "SampleRecord StepRecord TrainingListener ValidationRecord",
        "idefics.train.settings": "TrainSettings",
        "idefics.train.training": "TrainResult run",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module 'idefics.train' has no attribute {name!r}")
    return getattr(import_module(_MODULE_BY_NAME[name]), name)


def __dir__() -> list[str]:
    return __all__
