"""`LogitsRecord`: what a checkpoint computes for fixed prompts, and a digest of each weight, as a JSON file.

Records tell a spoilt weight from a right one where nothing else can. They are compared across machines, kernels and
number formats, so that they hold numbers that rounding hardly changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from idefics import __version__
from idefics.errors import BadSetting, OutputError

if TYPE_CHECKING:
    from torch import Tensor

    from idefics.config import ModelConfig
    from idefics.evaluate.check.subject import CheckSubject
    from idefics.prompt import Prompt

RECORD_VERSION = 1
RECORDS_FOLDER = Path(__file__).parent / "records"
NUM_TOP_TOKENS = 5


@dataclass(frozen=True, slots=True)
class LogitsRecord:
    """What a checkpoint computed when it was known to be right.

    Attributes:
        model: its name, as it was given.
        idefics: the version that wrote the record.
        config: the fields of `ModelConfig`, without the dtype.
        weights: by the model's names: root mean square and `WeightStatistics.projections`; {} for quantised weights.
        prompts: by name: "ids", "logprobs" of the ids after the first, and "top": the likeliest next ids.
    """

    model: str
    idefics: str
    config: Mapping[str, Any]
    weights: Mapping[str, list[float]]
    prompts: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> LogitsRecord:
        """Reads a record.

        Raises:
            BadSetting: the file cannot be read, or is no record of this version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("record") != RECORD_VERSION:
                raise ValueError("another version")
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadSetting(
                f"{path} is no record of this version ({error}): `idefics check MODEL --record FILE` writes one"
            ) from None

    def write(self, path: Path) -> None:
        """Writes the record, one weight or prompt a line. Raises OutputError if it cannot be written."""
        lines = [f'"record": {RECORD_VERSION}']
        for name, value in asdict(self).items():
            if name in ("weights", "prompts"):
                rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in value.items())
                lines.append(f"{json.dumps(name)}: {{\n{rows}\n}}")
            else:
                lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
        try:
            path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}): give another file") from None


def make_record(subject: CheckSubject) -> LogitsRecord:
    """The record of a checkpoint, as it is now."""
    weights = {} if subject.checkpoint.quantization is not None else weight_digests(subject)
    prompts = {
        name: _describe_prompt(prompt, subject.fixed_logits[name])
        for name, prompt in subject.fixed_prompts.items()
    }
    return LogitsRecord(
        subject.model, __version__, describe_config(subject.checkpoint.config), weights, prompts
    )


def weight_digests(subject: CheckSubject) -> dict[str, list[float]]:
    """Root mean square and projections of each weight."""
    return {
        name: [_round(number) for number in (one.rms, *one.projections)]
        for name, one in sorted(subject.statistics.items())
    }


def describe_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of a configuration as JSON values, without the dtype that the files are stored in."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    del fields["dtype"]
    return fields


def _describe_prompt(prompt: Prompt, logits: Tensor) -> dict[str, Any]:
    """The ids of a prompt, their log-probabilities, and the likeliest ids after it."""
    logprobs = logits.cpu().log_softmax(-1)
    top = logprobs[-1].topk(NUM_TOP_TOKENS)
    return {
        "ids": list(prompt.ids),
        "logprobs": [_round(x) for x in prompt_logprobs(prompt, logits).tolist()],
        "top": [[id, _round(x)] for id, x in zip(top.indices.tolist(), top.values.tolist(), strict=True)],
    }


def prompt_logprobs(prompt: Prompt, logits: Tensor) -> Tensor:
    """(N - 1,) log-probabilities of the ids of a prompt after the first."""
    ids = torch.tensor(prompt.ids[1:])
    return logits.cpu()[:-1].log_softmax(-1).gather(1, ids[:, None])[:, 0]


def _round(number: float) -> float:
    """A number with six significant digits."""
    return float(f"{number:.6g}")
