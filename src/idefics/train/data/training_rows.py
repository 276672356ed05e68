"""`read_training_rows`: reads and checks all rows of training data before a model learns any."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal

from idefics.errors import BadSetting, IdeficsError, OutputError
from idefics.generation.loading import collect_stop_ids
from idefics.messages import ImageDetail
from idefics.models import Checkpoint
from idefics.processing.processor import Processor
from idefics.train.data.encoded_rows import EncodedRows
from idefics.train.data.examples import TrainingExample
from idefics.train.data.row_encoder import RowEncoder
from idefics.train.data.sources import read_examples

if TYPE_CHECKING:
    from idefics.train.settings import TrainSettings

ROWS_AT_A_TIME = 512  # tokenized together
MAX_NAMED_ROWS = 10  # that an error message lists


def read_training_rows(
    path: str, checkpoint: Checkpoint, processor: Processor, settings: TrainSettings
) -> EncodedRows:
    """Reads rows to learn, or to validate with, and checks all of them; no pixels are decoded.

    Args:
        path: as `settings.data`.
        checkpoint: of the model that is to learn them.
        processor: of the checkpoint.
        settings: its `max_tokens`, `too_long` and `max_tiles` hold.

    Raises:
        BadSetting: there are no rows, a row cannot be learned or is too long: says how many, and names the first.
        BadPicture, MissingExtra: the data cannot be read at all.
        OutputError: there is no room for copies of pictures that have no file of their own.
    """
    detail = ImageDetail(max_tiles=settings.max_tiles)
    rows = EncodedRows(processor.with_image_detail(detail))
    encoder = RowEncoder(processor, collect_stop_ids(checkpoint, processor), rows.expander)
    text = checkpoint.config.text
    vocab_size = text.vocab_size + text.additional_vocab_size
    errors = RowErrors(path)
    examples = read_examples(path, processor)
    while batch := list(islice(examples, ROWS_AT_A_TIME)):
        planned: list[tuple[TrainingExample, list[int]]] = []
        for one in batch:
            errors.num_rows += 1
            if isinstance(one, str):
                errors.add(one)
                continue
            try:
                planned.append((one, [rows.pictures.add(at.media, at.picture) for at in one.pictures]))
            except OutputError:  # not of this row alone
                raise
            except IdeficsError as error:
                errors.add(f"{one.name}: {error}")
        encoded = encoder.encode([one for one, _ in planned])
        for (example, pictures), result in zip(planned, encoded, strict=True):
            if isinstance(result, IdeficsError):
                errors.add(str(result))
            elif (largest := max(result.ids)) >= vocab_size:
                errors.add(
                    f"{example.name} has the token {largest}, and the model's embedding has {vocab_size:,} tokens: "
                    "leave this row out, or give a model that knows the token"
                )
            else:
                rows.append(example.name, result, pictures)
    errors.raise_if_any()
    if not errors.num_rows:
        raise BadSetting(f"{path} has no rows: give at least one to learn")
    _handle_too_long(path, rows, _longest(processor, settings.max_tokens), settings.too_long)
    return rows


def _handle_too_long(
    path: str, rows: EncodedRows, limit: int | None, too_long: Literal["refuse", "skip"]
) -> None:
    """Refuses or leaves out the rows that have more tokens than `limit`; no row is ever cut.

    Raises:
        BadSetting: they are refused, or all rows are too long.
    """
    found = [] if limit is None else rows.longer_than(limit)
    if not found:
        return
    num_rows = len(rows)
    if too_long == "skip" and len(found) < num_rows:
        rows.leave_out([index for index, _, _ in found])
        return
    named = ", ".join(f"{name} ({length:,})" for _, name, length in found[:MAX_NAMED_ROWS])
    rest = len(found) - MAX_NAMED_ROWS
    more = f" and {rest:,} more" if rest > 0 else ""
    advice = "" if too_long == "skip" else ', or leave these rows out with too_long="skip"'
    raise BadSetting(
        f"{len(found):,} of the {num_rows:,} rows of {path} have more than {limit:,} tokens: {named}{more}: shorten "
        f"them, give their pictures fewer tiles with max_tiles{advice}"
    )


def _longest(processor: Processor, max_tokens: int | None) -> int | None:
    """The longest row in tokens; raises BadSetting if it is more than the model reads."""
    limit = processor.text_limit.max_tokens
    if max_tokens is not None and limit is not None and max_tokens > limit:
        raise BadSetting(f"max_tokens is {max_tokens:,}; this model reads {limit:,}: give at most that")
    return limit if max_tokens is None else max_tokens


class RowErrors:
    """What is wrong with rows: all of them counted, the first ones named, those with one reason together.

    Args:
        path: the data, for the message.

    Attributes:
        num_rows: how many rows were read.
    """

    def __init__(self, path: str) -> None:
        self._path, self.num_rows = path, 0
        self._num_errors, self._names_by_reason = 0, dict[str, list[str]]()

    def add(self, message: str) -> None:
        """Adds the error of a row; the message begins with the row's name, which may be "PATH#NUMBER"."""
        self._num_errors += 1
        if self._num_errors <= MAX_NAMED_ROWS:
            found = re.match(r".*?#\d+", message)
            name = found[0] if found else ""
            self._names_by_reason.setdefault(message.removeprefix(name), []).append(name)

    def raise_if_any(self) -> None:
        """Raises BadSetting if a row has an error."""
        if not self._num_errors:
            return
        rest = self._num_errors - MAX_NAMED_ROWS
        more = f"; and {rest:,} more" if rest > 0 else ""
        messages = [f"{_join_names(names)}{reason}" for reason, names in self._names_by_reason.items()]
        raise BadSetting(
            f"{self._num_errors:,} of the {self.num_rows:,} rows of {self._path} cannot be learned: "
            f"{'; '.join(messages)}{more}"
        )


def _join_names(names: Sequence[str]) -> str:
    """The names of rows of one file, the path once: "rows.jsonl#1, #2"."""
    return ", ".join([*names[:1], *(f"#{name.rpartition('#')[2]}" for name in names[1:])])
