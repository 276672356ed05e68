"""`EvaluationAnswerer`: answers the requests of an evaluation: generates a text, or scores labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from idefics.batch.answerers import Answerer, WorkItem, answer_fields
from idefics.batch.ray_engine import EngineSpec
from idefics.engine.handle import RequestHandle
from idefics.engine.request import Request
from idefics.evaluate.request import QUERY_PICTURE, EvaluationRequest, Part, PictureRef
from idefics.generation.call_inputs import NUM_WORKERS
from idefics.generation.generation_call import GenerationCall
from idefics.generation.prompts import make_prompt, make_scoring_prompt
from idefics.generation.streaming import Generation
from idefics.messages import (
    ContentPart,
    LiteralText,
    Message,
    PictureOrVideo,
    RankedLabel,
    Ranking,
    Timings,
    assistant,
    user,
)
from idefics.processing.processor import Processor
from idefics.processing.video import to_picture_or_video
from idefics.tasks.classify import score_labels, softmax
from idefics.tasks.row_window import RowWindow

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.options import GenerationOptions


@dataclass(frozen=True, slots=True)
class PendingLabelScores:
    """Labels that are being scored after one prompt.

    Attributes:
        labels: the texts, in their order.
        is_length_normalized: divide the score of each by its number of tokens.
        handle: the engine's handle of the request.
        start_time: when the prompt was begun, by `time.perf_counter`.
    """

    labels: tuple[str, ...]
    is_length_normalized: bool
    handle: RequestHandle
    start_time: float

    def result(self) -> Ranking:
        """Waits for the scores: the sum of the log-probabilities of each label, in the order of the labels."""
        handle = self.handle.result()
        scores = score_labels(handle.continuation_logprobs, length_normalized=self.is_length_normalized)
        seconds = time.perf_counter() - self.start_time
        rows = zip(self.labels, softmax(scores), scores, strict=True)
        labels = tuple(RankedLabel(*row) for row in rows)
        return Ranking(labels, handle.usage, Timings(0.0, seconds, seconds), handle.request.prompt.notes)


@dataclass(frozen=True, slots=True)
class EvaluationAnswerer(Answerer):
    """Answers the requests of an evaluation with a model in this process; see `batch.answerers.Answerer`.

    An answer has the fields of `idefics run`; that of ranked labels has "label_scores" in the order of the labels in
    place of "probabilities".

    Attributes:
        load_model: loads the model, for the first request.
        options: the options of generation, such as "max_new_tokens"; "timeout" is for ranked labels too.
        labels: those of the suite.
        is_length_normalized: scores of labels are divided by their number of tokens.
    """

    load_model: Callable[[], Idefics]
    options: dict[str, Any]
    labels: tuple[str, ...]
    is_length_normalized: bool

    def answer(self, items: Iterator[WorkItem]) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """See `batch.answerers.Answerer.answer`."""
        first = next(items, None)
        if first is None:
            return
        vlm = self.load_model()
        call = GenerationCall(vlm.loaded_model, cast("GenerationOptions", self.options))

        def submit(item: WorkItem) -> Generation | PendingLabelScores:
            return self._submit(vlm, call, item)

        window = RowWindow(submit, max(1, 2 * vlm.loaded_model.engine.config.batch_rows - NUM_WORKERS))
        with closing(window):
            for _, item, result in window.run(chain((first,), items), ordered=False):
                fields = answer_fields(result, vlm)
                if isinstance(result, Ranking):
                    del fields["probabilities"]
                    best = max(result.labels, key=lambda one: one.logprob)
                    fields |= {
                        "text": best.label,
                        "label_scores": [one.logprob for one in result.labels],
                        "prompt_tokens": result.usage.prompt_tokens,
                    }
                yield item.key, fields

    def _submit(self, vlm: Idefics, call: GenerationCall, item: WorkItem) -> Generation | PendingLabelScores:
        """Makes the prompt of an item and submits it; waits while the engine's queue is full."""
        start_time = time.perf_counter()
        assert item.prompt is not None
        request = EvaluationRequest.from_text(item.prompt, self.labels)
        processor = vlm.loaded_model.processor
        prompt_items = make_prompt_items(request, pictures_by_id(request, item), processor)
        call = call.restart(text_prefix="")
        if not request.labels:
            return call.submit(make_prompt(processor, prompt_items))
        prompt, continuations = make_scoring_prompt(processor, prompt_items, request.continuations)
        scoring = Request(prompt, continuations=continuations, deadline=call.deadline)
        handle = vlm.loaded_model.engine.submit(scoring, wait=True)
        return PendingLabelScores(request.labels, self.is_length_normalized, handle, start_time)


def pictures_by_id(request: EvaluationRequest, item: WorkItem) -> dict[str, PictureOrVideo]:
    """The pictures of an item by the ids that they have in its request."""
    return {QUERY_PICTURE: to_picture_or_video(item.media)} | {
        id: to_picture_or_video(data)
        for id, data in zip(request.further_picture_ids, item.more_media, strict=True)
    }


def make_prompt_items(
    request: EvaluationRequest, pictures: Mapping[str, PictureOrVideo], processor: Processor
) -> list[Message] | list[ContentPart]:
    """The prompt of a request as `Idefics.prompt` takes it, with pictures by their ids in their places."""
    if request.turns[0][0] != "raw":
        return [
            (user if role == "user" else assistant)(*(_content(part, pictures) for part in parts))
            for role, parts in request.turns
        ]
    parts = [_content(part, pictures) for part in request.turns[0][1]]
    bos_token = processor.tokenizer.token_by_role.get("bos_token")
    if request.begins_with_bos and bos_token and not processor.num_raw_prompt_prefix_tokens:
        if isinstance(parts[0], str):
            parts[0] = LiteralText(bos_token + parts[0])
        else:
            parts.insert(0, LiteralText(bos_token))
    return parts


def _content(part: Part, pictures: Mapping[str, PictureOrVideo]) -> ContentPart:
    return pictures[part.id] if isinstance(part, PictureRef) else LiteralText(part)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationEngineSpec(EngineSpec):
    """What an engine on a Ray cluster loads for an evaluation.

    Attributes:
        labels: those of the suite.
        is_length_normalized: scores of labels are divided by their number of tokens.
    """

    labels: tuple[str, ...]
    is_length_normalized: bool

    def create_answerer(self, load_model: Callable[[], Idefics]) -> EvaluationAnswerer:
        """See `EngineSpec.create_answerer`."""
        return EvaluationAnswerer(
            load_model, self.options, labels=self.labels, is_length_normalized=self.is_length_normalized
        )
