"""`LogitsRecord`: what a checkpoint computes for fixed prompts, its settings and a digest of each weight, as JSON.

Records tell a spoilt weight from a right one where nothing else can. They are compared across machines, kernels and
number formats, so that they hold numbers that rounding hardly changes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from idefics import __version__
from idefics.errors import BadSetting, OutputError
from idefics.evaluate.check.processing_checks import ROUND_TRIPS, frames_hash
from idefics.generation.loading import collect_stop_ids

if TYPE_CHECKING:
    from torch import Tensor

    from idefics.config import ModelConfig
    from idefics.evaluate.check.checks import CheckSubject, Rounding
    from idefics.prompt import Prompt

RECORD_VERSION = 2
RECORDS_FOLDER = Path(__file__).parent / "records"
NUM_TOP_TOKENS = 5
DIGEST_CHARACTERS = 16  # of a SHA-256 (hex)


@dataclass(frozen=True, slots=True)
class LogitsRecord:
    """What a checkpoint computed when it was known to be right.

    Attributes:
        model: its name, or that of its folder.
        idefics: the version that wrote the record.
        rounding: of what the log-probabilities were computed with.
        config: the fields of `ModelConfig`, without the dtype.
        processing: the result of `describe_processing`.
        weights: by the model's names: "digest", "dtypes", "rms" and "projections" of `WeightStatistics`; {} where the
            files do not hold the weights (see `CheckSubject.files_hold_weights`).
        prompts: by name: "ids", "logprobs" of the ids after the first, and "top": the likeliest next ids.
    """

    model: str
    idefics: str
    rounding: Rounding
    config: Mapping[str, Any]
    processing: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Any]]
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
    weights = describe_weights(subject) if subject.files_hold_weights else {}
    prompts = {
        name: _describe_prompt(prompt, subject.fixed_logits[name])
        for name, prompt in subject.fixed_prompts.items()
    }
    config, processing = describe_config(subject.checkpoint.config), describe_processing(subject)
    return LogitsRecord(subject.label, __version__, subject.rounding, config, processing, weights, prompts)


def describe_weights(subject: CheckSubject) -> dict[str, dict[str, Any]]:
    """The numbers of `WeightStatistics` that a record holds, for each weight."""
    return {
        name: {
            "digest": one.digest[:DIGEST_CHARACTERS],
            "dtypes": sorted(set(one.dtype_names)),
            "rms": _round(one.rms),
            "projections": [_round(number) for number in one.projections],
        }
        for name, one in sorted(subject.statistics.items())
    }


def describe_config(config: ModelConfig) -> dict[str, Any]:
    """The fields of a configuration as JSON values, without the dtype that the files are stored in."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    del fields["dtype"]
    return fields


def describe_processing(subject: CheckSubject) -> dict[str, Any]:
    """What makes ids of texts and frames of pictures, as JSON values; a digest of what is long."""
    processor = subject.processor
    tokenizer = processor.tokenizer
    described: dict[str, Any] = {
        "vocabulary": _digest(json.dumps(sorted(tokenizer.get_vocab().items()))),
        "text ids": [tokenizer.encode(text, add_special_tokens=True) for text in ROUND_TRIPS],
        "chat template": _digest(processor.prompt_format.chat_template),
        "ids that end an answer": sorted(collect_stop_ids(subject.checkpoint, processor)),
        "pictures": asdict(processor.image_config),
        "frames of a picture": frames_hash(processor.image_config)[1],
    }
    return dict(json.loads(json.dumps(described)))


def _digest(text: str) -> str:
    """The beginning of the SHA-256 (hex) of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARACTERS]


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
