"""The log of a training: JSON lines, which the report is made of, and events for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from idefics import __version__
from idefics.batch.records import compact_json
from idefics.errors import BadSetting, MissingExtra, OutputError
from idefics.train.records import SampleRecord, StepRecord, TrainingListener, ValidationRecord
from idefics.train.settings import TrainSettings

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PACKAGES = ("torch", "numpy", "pillow", "tokenizers", "bitsandbytes", "accelerate")


@dataclass(slots=True)
class TrainingHistory:
    """What the log of a training holds.

    Attributes:
        start: the first line: "started", "settings" and "versions".
        steps, validations, samples: in their order.
    """

    start: dict[str, Any] = field(default_factory=dict)
    steps: list[StepRecord] = field(default_factory=list)
    validations: list[ValidationRecord] = field(default_factory=list)
    samples: list[SampleRecord] = field(default_factory=list)

    def add(self, kind: str, value: dict[str, Any]) -> None:
        """Adds a line of the log: its kind, and its other fields. Raises TypeError if these are not the kind's."""
        value = {name: math.nan if one is None else one for name, one in value.items()}
        if kind == "step":
            self.steps.append(StepRecord(**value))
        elif kind == "validation":
            self.validations.append(ValidationRecord(**value))
        elif kind == "sample":
            self.samples.append(SampleRecord(**value))
        else:
            self.start = value


class JSONLinesLog(TrainingListener):
    """Writes each record as a line of JSON: {"kind": "step", "step": 1, ...}.

    The first line, of the kind "start", has the settings, of a resumed training the latest ones, and the versions.

    Args:
        path: of the file.
        settings: of the training.
        started: when it began, in ISO 8601.
        facts: what else the first line says.
        last_step: training is resumed after this step: an older file is continued, without what followed it.
            None: an older file is replaced.

    Attributes:
        history: all that the file holds.

    Raises:
        OutputError: the file cannot be written.
        BadSetting: the older file is no log of a training.
    """

    def __init__(
        self,
        path: Path,
        settings: TrainSettings,
        started: str,
        *,
        facts: Mapping[str, Any] | None = None,
        last_step: int | None = None,
    ) -> None:
        self.path, self.history = path, TrainingHistory()
        described = describe_settings(settings)
        lines = [] if last_step is None or not path.exists() else self._read(last_step)
        if lines and self.history.start.get("settings") != described:
            self.history.start["settings"] = described
            lines[0] = compact_json({"kind": "start", **self.history.start})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"the log {path} cannot be written ({error.strerror}): give another --out"
            ) from None
        if not lines:
            fixed = {"settings": described, "versions": installed_versions()}
            self._write("start", {"started": started, **(facts or {}), **fixed})

    def _read(self, last_step: int) -> list[str]:
        """The lines of the older file up to a step; adds them to the history. A last line that was cut is left out."""
        kept = []
        lines = self.path.read_text(encoding="utf-8").split("\n")  # texts may have other line separators
        for line in lines[:-1]:
            try:
                value = json.loads(line)
                if value.get("step", 0) <= last_step:
                    self.history.add(value.pop("kind"), value)
                    kept.append(line)
            except (ValueError, TypeError, KeyError, AttributeError):
                raise BadSetting(
                    f"{self.path} is no log of a training: move it elsewhere, or give another --out"
                ) from None
        return kept

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _write(self, kind: str, value: dict[str, Any]) -> None:
        value = {
            name: None if isinstance(one, float) and not math.isfinite(one) else one
            for name, one in value.items()
        }
        self.history.add(kind, value)
        try:
            self._file.write(compact_json({"kind": kind, **value}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"the log {self.path} cannot be written ({error.strerror}): make room, then continue with "
                "resume=True, or begin again if there is no checkpoint"
            ) from None

    def on_step(self, record: StepRecord) -> None:
        """Writes a step."""
        self._write("step", asdict(record))

    def on_validation(self, record: ValidationRecord) -> None:
        """Writes a validation."""
        self._write("validation", asdict(record))

    def on_sample(self, record: SampleRecord) -> None:
        """Writes a sample."""
        self._write("sample", asdict(record))


class TensorBoardLog(TrainingListener):
    """Writes what TensorBoard shows: losses, accuracies, speed, samples.

    Args:
        folder: of the event files, as for `tensorboard --logdir`.

    Raises:
        MissingExtra: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtra("TensorBoard's log", "train") from None
        self._writer: SummaryWriter = SummaryWriter(str(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def _add_scalars(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name.replace("__", "/"), value, step)

    def on_step(self, record: StepRecord) -> None:
        """Writes a step."""
        self._add_scalars(
            record.step,
            train__loss=record.loss,
            train__learning_rate=record.learning_rate,
            train__gradient_norm=record.gradient_norm,
            train__tokens_per_second=record.num_tokens / max(record.seconds, 1e-9),
        )

    def on_validation(self, record: ValidationRecord) -> None:
        """Writes a validation."""
        self._add_scalars(
            record.step,
            validation__loss=record.loss,
            validation__token_accuracy=record.token_accuracy,
            validation__row_accuracy=record.row_accuracy,
        )

    def on_sample(self, record: SampleRecord) -> None:
        """Writes a sample as text."""
        text = f"{record.prompt}\n\nright: {record.reference}\n\nanswer: {record.answer}"
        self._writer.add_text(f"samples/{record.row}", text, record.step)


def describe_settings(settings: TrainSettings) -> dict[str, Any]:
    """The settings as JSON values."""
    values = asdict(settings) | {"out": str(settings.out)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def installed_versions() -> dict[str, str]:
    """The versions of this package and of those that results depend on, where they are installed."""
    versions = {"idefics": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
