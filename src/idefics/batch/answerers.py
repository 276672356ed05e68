"""What answers the rows of a batch run: `Answerer`, and `LocalAnswerer` with a model in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from idefics.errors import IdeficsError, ModelClosed
from idefics.generation.token_rows import token_rows
from idefics.messages import Answer, Ranking

if TYPE_CHECKING:
    from idefics import Idefics


PICTURE_CACHE_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A row to be answered.

    Attributes:
        key: identifies its answer.
        media: the bytes of its picture or video.
        prompt: the question or text; None: the task's default.
        more_media: the bytes of further pictures that the prompt refers to.
    """

    key: bytes
    media: bytes
    prompt: str | None
    more_media: tuple[bytes, ...] = ()


class Answerer:
    """Base of what answers rows: a model in this process, or engines elsewhere."""

    def answer(self, items: Iterator[WorkItem]) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Takes items as it can compute them, and yields the key of each with its answer, in any order.

        An answer has the fields "text", "finish", "tokens", "probabilities", "logprobs", "notes" and "seconds", as far
        as they apply; or "error_type" and "error".

        Raises:
            IdeficsError: nothing can be answered any more.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Releases engines; by default nothing: a model belongs to who loads it."""


@dataclass(frozen=True, slots=True)
class LocalAnswerer(Answerer):
    """Answers rows with a model in this process, which is loaded for the first of them.

    Attributes:
        load_model: loads the model, with its few-shot examples.
        task: a key of `TASKS`.
        options: the options of the task.
    """

    load_model: Callable[[], Idefics]
    task: str
    options: dict[str, Any]

    def answer(self, items: Iterator[WorkItem]) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """See `Answerer.answer`."""
        first = next(items, None)
        if first is None:
            return
        vlm = self.load_model()
        # Small: a run computes equal pictures once, and no later row needs them. Those of rows in hand are kept anyway.
        cache = vlm.engine.encoder_cache
        cache.max_bytes = min(cache.max_bytes, PICTURE_CACHE_BYTES)
        rows = (
            {"image": item.media, "prompt": item.prompt, "key": item.key} for item in chain((first,), items)
        )
        for done in vlm.map(rows, self.task, ordered=False, on_error="return", **self.options):
            yield done.row["key"], answer_fields(done.result, vlm)


def answer_fields(result: Answer | Ranking | IdeficsError, vlm: Idefics) -> dict[str, Any]:
    """A result as the fields of an answer, which can be written as JSON; see `Answerer.answer`.

    Raises:
        ModelClosed: the result is this error, which is not about its row.
    """
    if isinstance(result, ModelClosed):
        raise result
    if isinstance(result, IdeficsError):
        return error_fields(result)
    fields: dict[str, Any] = {"text": str(result), "tokens": result.usage.completion_tokens}
    if isinstance(result, Ranking):
        fields |= {"probabilities": {one.label: one.probability for one in result.labels}}
    else:
        fields |= {"finish": result.finish}
        if result.logprobs is not None:
            fields |= {"logprobs": list(token_rows(result, vlm.processor.tokenizer))}
    fields |= {"seconds": round(result.timings.total, 4)}
    if result.notes:
        fields |= {"notes": list(result.notes)}
    return fields


def error_fields(error: Exception) -> dict[str, Any]:
    """An error as the fields of an answer."""
    return {"error_type": type(error).__name__, "error": str(error)}
