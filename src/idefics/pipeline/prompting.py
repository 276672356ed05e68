"""A loaded model and its prompts: how they are made, what they cost, and how likely texts are after them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from torch import Tensor

from idefics.calls import checked_flag, checked_text, in_order, public, short
from idefics.engine.request import Deadline
from idefics.errors import BadPrompt, BadSetting, IdeficsError
from idefics.messages import Detail, ImageDetail, Message, Picture
from idefics.options import OnError
from idefics.pipeline.ahead import made
from idefics.pipeline.arguments import checked_prompt, is_conversation
from idefics.pipeline.failures import Failures
from idefics.pipeline.loading import Loaded
from idefics.processing.fetch import Fetcher
from idefics.prompt import Prompt

if TYPE_CHECKING:
    from idefics.messages import PictureSource
    from idefics.processing.processor import Endings
    from idefics.processing.prompt_items import Item

    Items = Sequence[Item]
    Conversation = Sequence[Message | Mapping[str, Any]]
PROMPT = "a list of text and pictures, or of messages"
RAW_PREFILL = "{name} goes with a conversation; write the words at the end of a raw prompt"


class Prompting(Loaded):
    """A loaded model that makes prompts and scores what may follow. `Pipeline` adds answers."""

    @public
    def prompt(
        self,
        items: Items | Conversation,
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
        processor = self.processor.looking(ImageDetail(detail, max_tiles))
        given = in_order("items", items, PROMPT, error=BadPrompt)
        prefill = _prefill(answer_start, continue_final_message)
        if is_conversation(given):
            return processor.chat(given, **prefill)
        if prefill:
            raise BadSetting(RAW_PREFILL.format(name=next(iter(prefill))))
        return processor.raw(given)

    @public
    def fetching(self, fetcher: Fetcher) -> Self:
        """The same model (nothing is copied) with another fetcher; one for untrusted input bounds pictures."""
        given: object = fetcher
        if not isinstance(given, Fetcher):
            raise BadSetting(f"fetcher is {short(given)}; give a Fetcher of idefics.processing.fetch")
        other = copy.copy(self)
        other.processor = copy.copy(self.processor)
        other.processor.fetcher = fetcher
        return other

    @public
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
        return self.processor.looking(ImageDetail(detail, max_tiles)).tokens_of(Picture.of(picture))

    @public
    def logits(self, prompt: Prompt) -> Tensor:
        """The model's logits after each of a prompt's tokens, in one uncached pass.

        Args:
            prompt: as `prompt` makes it, of N tokens.

        Returns:
            (N, V) float32, V the size of the vocabulary.
        """
        return self.engine.logits(checked_prompt(prompt))

    @overload
    def score(
        self,
        items: Items | Conversation,
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
        items: Items | Conversation,
        endings: Sequence[str],
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        on_error: Literal["return"],
        detail: Detail = ...,
        max_tiles: int | None = ...,
        timeout: float | None = ...,
    ) -> tuple[Prompt, list[list[float] | IdeficsError]]: ...
    @public
    def score(
        self,
        items: Items | Conversation,
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
        deadline = Deadline.of(timeout)
        texts = in_order("endings", endings, "a list of texts", error=BadPrompt)
        failures = Failures("ending", len(texts), on_error)
        in_chat = is_conversation(in_order("items", items, PROMPT, error=BadPrompt))
        checked = [
            failures.attempt(index, partial(self._checked_ending, text, in_chat))
            for index, text in enumerate(texts)
        ]
        how: dict[str, Any] = {
            "answer_start": answer_start,
            "continue_final_message": continue_final_message,
            "detail": detail,
            "max_tiles": max_tiles,
        }
        sound = [text for text in checked if isinstance(text, str)]
        if texts and not sound:
            prompt, scores = made(partial(self.prompt, **how), items, deadline), []
        else:
            prompt, rests = made(partial(self.endings, endings=sound, **how), items, deadline)
            scores = self.engine.score(prompt, rests, deadline)
        following = iter(scores)
        return prompt, [next(following) if isinstance(text, str) else text for text in checked]

    def _checked_ending(self, text: object, in_chat: bool) -> str:
        ending = checked_text("ending", text, " a dog", blank=True)
        self.processor.check_ending(ending, in_chat=in_chat)
        return ending

    @public
    def endings(
        self,
        items: Items | Conversation,
        endings: Sequence[str],
        *,
        answer_start: str = "",
        continue_final_message: bool = False,
        detail: Detail = "high",
        max_tiles: int | None = None,
    ) -> Endings:
        """What `score` asks of the engine: the prompt shared by all endings, and the ids of each.

        Its arguments are those of `score`.
        """
        processor = self.processor.looking(ImageDetail(detail, max_tiles))
        given = in_order("items", items, PROMPT, error=BadPrompt)
        texts = in_order("endings", endings, "a list of texts", error=BadPrompt)
        for text in texts:
            checked_text("ending", text, " a dog", blank=True)
        prefill = _prefill(answer_start, continue_final_message)
        if is_conversation(given):
            return processor.chat_endings(given, texts, **prefill)
        if prefill:
            raise BadSetting(RAW_PREFILL.format(name=next(iter(prefill))))
        return processor.raw_endings(given, texts)


def _prefill(answer_start: str, continue_final_message: bool) -> dict[str, Any]:
    """How the answer to a conversation begins, as far as it is said.

    Raises:
        BadSetting: it is said in the wrong way.
    """
    checked_text("answer_start", answer_start, "The picture shows", blank=True)
    checked_flag("continue_final_message", continue_final_message)
    said = {"answer_start": answer_start, "continue_final_message": continue_final_message}
    return {name: value for name, value in said.items() if value}
