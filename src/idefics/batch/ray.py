"""`Answer`: a task over the pictures of a Ray Data pipeline. The module can be imported without Ray."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from idefics.batch.answerers import answer_fields, error_fields
from idefics.errors import BadPicture, BadPrompt, BadSetting

if TYPE_CHECKING:
    import numpy as np

    from idefics import Shot

TEXT_COLUMNS = ("text", "finish", "probabilities", "error_type", "error")


class Answer:
    """A class for `Dataset.map_batches` that runs a task over pictures, and adds the answers as columns.

    Each actor of the pipeline loads the model once. The columns that are added have the same types in every block:

    | column | type | value |
    |-|-|-|
    | `text` | string | the answer, or the most probable label; "" for a row that failed |
    | `finish` | string | why the answer ended, such as "stop"; "" for labels |
    | `tokens` | int64 | tokens that were generated |
    | `probabilities` | string | of the labels of `classify`, as a JSON object; "" for other tasks |
    | `error_type`, `error` | string | why the row failed; "" if it did not |

    A row that fails does not end the pipeline.

    Args:
        model: a short name, a folder on all nodes or a hub id, as `idefics.load` takes it.
        task: a key of `TASKS`, such as "caption", "ask" or "classify".
        image_column: the column of pictures: bytes of a file, a path or URL, pixels as `ray.data.read_images` has
            them, or the struct of Hugging Face with "bytes" and "path".
        prompt_column: the column of questions or texts; None: `prompt` for all rows.
        prompt: the question or text of rows that have none of their own; None: the task's default.
        shots: few-shot examples; their files must be on all nodes.
        load_keywords: further arguments of `idefics.load`, such as {"quantize": "int8", "threads": 4}.
        **options: the options of the task, as `Idefics.map` takes them: `max_new_tokens`, `labels` and others.

    Raises:
        IdeficsError: the model cannot be loaded, or an option is wrong.

    Examples:
        >>> ds = ray.data.read_parquet("photos.parquet").repartition(target_num_rows_per_block=16)
        >>> ds = ds.map_batches(
        ...     Answer,
        ...     fn_constructor_kwargs={"model": "smolvlm-256m", "task": "ask", "prompt": "Is it day or night?"},
        ...     batch_size=16,
        ...     compute=ray.data.ActorPoolStrategy(size=4),
        ...     num_gpus=1,
        ... )
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        task: str = "caption",
        *,
        image_column: str = "image",
        prompt_column: str | None = None,
        prompt: str | None = None,
        shots: Sequence[Shot] = (),
        load_keywords: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        import idefics

        self._vlm = idefics.load(model, **(load_keywords or {})).with_shots(list(shots))
        self._task, self._prompt, self._options = task, prompt, options
        self._image_column, self._prompt_column = image_column, prompt_column
        self._results({})  # checks the options now

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with the columns of the answers.

        Args:
            batch: columns as arrays, which is `batch_format="numpy"`, the default.

        Raises:
            BadSetting: the batch has another format, or lacks a column.
        """
        import numpy as np

        if not isinstance(batch, dict):
            raise BadSetting(f'a batch is a {type(batch).__name__}: give map_batches batch_format="numpy"')
        for name in (self._image_column, self._prompt_column):
            if name is not None and name not in batch:
                raise BadSetting(f"the data set has no column {name!r}; it has {', '.join(batch)}")
        prompts = batch[self._prompt_column] if self._prompt_column else None
        answers: list[dict[str, Any]] = []
        row_by_index: dict[int, dict[str, Any]] = {}
        for index, cell in enumerate(batch[self._image_column]):
            try:
                row_by_index[index] = {"image": _picture_source(cell)}
                if prompts is not None:
                    row_by_index[index]["prompt"] = _prompt_of(prompts[index])
                answers.append({})
            except (BadPicture, BadPrompt) as error:
                row_by_index.pop(index, None)
                answers.append(error_fields(error))
        for index, answer in self._results(row_by_index):
            answers[index] = answer
        for answer in answers:
            if "probabilities" in answer:
                answer["probabilities"] = json.dumps(answer["probabilities"], ensure_ascii=False)
        columns = {
            name: np.array([answer.get(name, "") for answer in answers], dtype=np.str_)
            for name in TEXT_COLUMNS
        }
        tokens = np.array([answer.get("tokens", 0) for answer in answers], dtype=np.int64)
        return {**batch, **columns, "tokens": tokens}

    def _results(self, row_by_index: Mapping[int, Any]) -> Iterable[tuple[int, dict[str, Any]]]:
        """The index and the answer of each row, in their order."""
        results = self._vlm.map(
            row_by_index.values(), self._task, prompt=self._prompt, on_error="return", **self._options
        )
        fields = (answer_fields(done.result, self._vlm) for done in results)
        return zip(row_by_index, fields, strict=True)


def _picture_source(cell: Any) -> Any:
    """The picture of a cell, as `Picture` takes it. Raises BadPicture if the cell is empty."""
    if isinstance(cell, Mapping):  # Hugging Face's struct
        cell = cell.get("bytes") or cell.get("path")
    if cell is None or (isinstance(cell, (str, bytes)) and not cell):
        raise BadPicture("the cell of the picture is empty")
    return cell


def _prompt_of(cell: Any) -> str | None:
    """The prompt of a cell; None for the prompt of all rows. Raises BadPrompt if the cell is no text."""
    if cell is None or isinstance(cell, str):
        return cell
    raise BadPrompt(f"the cell of the prompt is {cell!r}: give a text")
