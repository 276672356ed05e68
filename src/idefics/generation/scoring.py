"""A loaded model and its prompts: how they are made, what they cost, and how likely texts are after them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from torch import Tensor

from idefics.engine.request import Deadline
from idefics.errors import BadPrompt, BadSetting, IdeficsError
from idefics.generation.arguments import is_conversation, require_prompt
from idefics.generation.error_policy import ErrorPolicy
from idefics.generation.loading import LoadedModel
from idefics.generation.prefetch import call_with_deadline
from idefics.messages import Detail, ImageDetail, Message, Picture
from idefics.options import OnError
from idefics.processing.fetch import Fetcher
from idefics.prompt import Prompt
from idefics.validation import (
    reject_unknown_arguments,
    short_repr,
    validate_bool,
    validate_list,
    validate_text,
)

if TYPE_CHECKING:
    from idefics.messages import PictureSource
    from idefics.processing.prompt_items import PromptItem
    from idefics.prompt import ScoringPrompt

    PromptItems = Sequence[PromptItem]
    Conversation = Sequence[Message | Mapping[str, Any]]
EXPECTED_PROMPT = "a list of text and pictures, or of messages"
RAW_PREFILL_ERROR = "{name} goes with a conversation; write the words at the end of a raw prompt"


class ScoringModel(LoadedModel):
    """A loaded model that makes prompts and scores what may follow. `Pipeline` adds answers."""

    @reject_unknown_arguments
    def prompt(
        self,
        items: PromptItems | Conversation,
        *,
        answer_start: str = "",
        continue_final_message: bool = False,
        detail: Detail = "high",
        max_tiles: int | None = None,
    ) -> Prompt:
        """Ids and pictures of a raw prompt or a conversation, for `submit` and `logits`.

        Args:
            items: a list of text and pictures (see `generate`), or of messages (see `chat`).
            answer_start: words that the answer begins with; conversations only.
            continue_final_message: as in `chat`; conversations only.
            detail, max_tiles: how closely pictures are looked at; see `ImageDetail`.
        """
        processor = self.processor.with_image_detail(ImageDetail(detail, max_tiles))
        item_list = validate_list("items", items, EXPECTED_PROMPT, error_type=BadPrompt)
        prefill = _prefill_arguments(answer_start, continue_final_message)
        if is_conversation(item_list):
            return processor.encode_chat(item_list, **prefill)
        if prefill:
            raise BadSetting(RAW_PREFILL_ERROR.format(name=next(iter(prefill))))
        return processor.encode_raw(item_list)

    @reject_unknown_arguments
    def fetching(self, fetcher: Fetcher) -> Self:
        """The same model (nothing is copied) with another fetcher; one for untrusted input bounds pictures."""
        value: object = fetcher
        if not isinstance(value, Fetcher):
            raise BadSetting(f"fetcher is {short_repr(value)}; give a Fetcher of idefics.processing.fetch")
        copied = copy.copy(self)
        copied.processor = copy.copy(self.processor)
        copied.processor.fetcher = fetcher
        return copied

    @reject_unknown_arguments
    def cost(
        self, picture: Picture | PictureSource, *, detail: Detail = "high", max_tiles: int | None = None
    ) -> int:
        """How many tokens of a prompt a picture takes, standing alone; nothing is computed of it but its size.

        Args:
            picture: in any of the forms that `Picture` takes.
            detail, max_tiles: how closely it is looked at; see `ImageDetail`.

        Raises:
            BadPicture: it cannot be opened.
        """
        return self.processor.with_image_detail(ImageDetail(detail, max_tiles)).count_image_tokens(
            Picture.of(picture)
        )

    @reject_unknown_arguments
    def logits(self, prompt: Prompt) -> Tensor:
        """The model's logits after each of a prompt's tokens, in one uncached pass.

        Args:
            prompt: as `prompt` makes it, of N tokens.

        Returns:
            (N, V) float32, V the size of the vocabulary.
        """
        return self.engine.logits(require_prompt(prompt))

    @overload
    def score(
        self,
        items: PromptItems | Conversation,
        endings: Sequence[str],
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        on_error: Literal["raise"] = ...,
        detail: Detail = ...,
        max_tiles: int | None = ...,
        timeout: float | None = ...,
    ) -> tuple[Prompt, list[list[float]]]: ...
    @overload
    def score(
        self,
        items: PromptItems | Conversation,
        endings: Sequence[str],
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        on_error: Literal["return"],
        detail: Detail = ...,
        max_tiles: int | None = ...,
        timeout: float | None = ...,
    ) -> tuple[Prompt, list[list[float] | IdeficsError]]: ...
    @reject_unknown_arguments
    def score(
        self,
        items: PromptItems | Conversation,
        endings: Sequence[str],
        *,
        answer_start: str = "",
        continue_final_message: bool = False,
        on_error: OnError = "raise",
        detail: Detail = "high",
        max_tiles: int | None = None,
        timeout: float | None = None,
    ) -> tuple[Prompt, list[list[float]]] | tuple[Prompt, list[list[float] | IdeficsError]]:
        """How likely each of many texts is after one prompt, read once: log-probabilities of its tokens.

        In a conversation an ending is the answer; in a raw prompt, or after a message that goes on, it follows as it
        stands, its own space included.

        Args:
            items: a list of text and pictures (see `generate`), or of messages (see `chat`).
            endings: the texts.
            answer_start: words that each begins with; conversations only.
            continue_final_message: as in `chat`; conversations only.
            on_error: "raise" the first error about an ending, with its number; or "return" each in the place of its
                numbers, and score the rest. What is wrong with the prompt is raised in any case.
            detail, max_tiles: how closely pictures are looked at; see `ImageDetail`.
            timeout: seconds; where the call takes longer it raises RequestTimeout.

        Returns:
            The prompt shared by all endings, and for each ending one number a token.
        """
        deadline = Deadline.from_timeout(timeout)
        texts = validate_list("endings", endings, "a list of texts", error_type=BadPrompt)
        error_policy = ErrorPolicy("ending", len(texts), on_error)
        is_chat = is_conversation(validate_list("items", items, EXPECTED_PROMPT, error_type=BadPrompt))
        checked_texts = [
            error_policy.call_or_error(index, partial(self._check_continuation, text, is_chat))
            for index, text in enumerate(texts)
        ]
        prompt_arguments: dict[str, Any] = {
            "answer_start": answer_start,
            "continue_final_message": continue_final_message,
            "detail": detail,
            "max_tiles": max_tiles,
        }
        valid_texts = [text for text in checked_texts if isinstance(text, str)]
        if texts and not valid_texts:
            prompt, scores = call_with_deadline(partial(self.prompt, **prompt_arguments), items, deadline), []
        else:
            prompt, continuations = call_with_deadline(
                partial(self.endings, endings=valid_texts, **prompt_arguments), items, deadline
            )
            scores = self.engine.score(prompt, continuations, deadline)
        remaining_scores = iter(scores)
        return prompt, [next(remaining_scores) if isinstance(text, str) else text for text in checked_texts]

    def _check_continuation(self, text: object, is_chat: bool) -> str:
        continuation = validate_text("ending", text, " a dog", allow_blank=True)
        self.processor.check_continuation(continuation, in_chat=is_chat)
        return continuation

    @reject_unknown_arguments
    def endings(
        self,
        items: PromptItems | Conversation,
        endings: Sequence[str],
        *,
        answer_start: str = "",
        continue_final_message: bool = False,
        detail: Detail = "high",
        max_tiles: int | None = None,
    ) -> ScoringPrompt:
        """What `score` asks of the engine: the prompt shared by all endings, and the ids of each.

        Its arguments are those of `score`.
        """
        processor = self.processor.with_image_detail(ImageDetail(detail, max_tiles))
        item_list = validate_list("items", items, EXPECTED_PROMPT, error_type=BadPrompt)
        texts = validate_list("endings", endings, "a list of texts", error_type=BadPrompt)
        for text in texts:
            validate_text("ending", text, " a dog", allow_blank=True)
        prefill = _prefill_arguments(answer_start, continue_final_message)
        if is_conversation(item_list):
            return processor.encode_chat_continuations(item_list, texts, **prefill)
        if prefill:
            raise BadSetting(RAW_PREFILL_ERROR.format(name=next(iter(prefill))))
        return processor.encode_raw_continuations(item_list, texts)


def _prefill_arguments(answer_start: str, continue_final_message: bool) -> dict[str, Any]:
    """How the answer to a conversation begins, as far as it is said.

    Raises:
        BadSetting: it is said in the wrong way.
    """
    validate_text("answer_start", answer_start, "The picture shows", allow_blank=True)
    validate_bool("continue_final_message", continue_final_message)
    arguments = {"answer_start": answer_start, "continue_final_message": continue_final_message}
    return {name: value for name, value in arguments.items() if value}
