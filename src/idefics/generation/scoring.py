"""Scores texts as continuations of a prompt: the log-probability of each of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Unpack

from idefics.engine.request import Deadline
from idefics.errors import BadPrompt, IdeficsError
from idefics.generation.arguments import is_conversation
from idefics.generation.error_policy import ErrorPolicy, result_or_error
from idefics.generation.loaded_model import LoadedModel
from idefics.generation.prefetch import call_with_deadline
from idefics.generation.prompts import EXPECTED_PROMPT, ConversationOptions, make_prompt, make_scoring_prompt
from idefics.messages import ImageDetail
from idefics.options import OnError
from idefics.processing.processor import Processor
from idefics.prompt import Prompt, ScoringPrompt
from idefics.validation import validate_list, validate_text

if TYPE_CHECKING:
    from idefics.generation.prompts import Conversation, PromptItems


def score_continuations(
    model: LoadedModel,
    items: PromptItems | Conversation,
    continuations: Sequence[str],
    *,
    image_detail: ImageDetail,
    on_error: OnError,
    timeout: float | None,
    **options: Unpack[ConversationOptions],
) -> tuple[Prompt, list[list[float] | IdeficsError]]:
    """Scores continuations of one prompt; see `Idefics.score`.

    Args:
        model: the model.
        items: a raw prompt or a conversation.
        continuations: the texts to score.
        image_detail: how pictures that do not set their own detail are split into tiles.
        on_error: handles errors about one continuation.
        timeout: seconds until the call fails; None: never.
        **options: conversations only.

    Returns:
        The prompt, and for each continuation the log-probability of each of its tokens, or its error.
    """
    deadline = Deadline.from_timeout(timeout)
    texts = validate_list("continuations", continuations, "a list of texts", error_type=BadPrompt)
    error_policy = ErrorPolicy("continuation", len(texts), on_error)
    item_list = validate_list("items", items, EXPECTED_PROMPT, error_type=BadPrompt)
    check = partial(_check_continuation, model.processor, is_conversation(item_list))
    checked_texts = [
        error_policy.return_or_raise(index, result_or_error(check, text)) for index, text in enumerate(texts)
    ]
    valid_texts = [text for text in checked_texts if isinstance(text, str)]
    processor = model.processor.with_image_detail(image_detail)

    def encode(items: PromptItems | Conversation) -> ScoringPrompt:
        if texts and not valid_texts:  # every text has an error; one of the prompt is raised all the same
            return ScoringPrompt(make_prompt(processor, items, **options), ())
        return make_scoring_prompt(processor, items, valid_texts, **options)

    prompt, continuation_ids = call_with_deadline(encode, item_list, deadline)
    scores = iter(model.engine.score(prompt, continuation_ids, deadline) if continuation_ids else ())
    return prompt, [next(scores) if isinstance(text, str) else text for text in checked_texts]


def _check_continuation(processor: Processor, in_chat: bool, text: object) -> str:
    """Returns a continuation; raises BadPrompt or PromptTooLong if it cannot follow any prompt."""
    continuation = validate_text("continuation", text, " a dog", allow_blank=True)
    processor.check_continuation(continuation, in_chat=in_chat)
    return continuation
