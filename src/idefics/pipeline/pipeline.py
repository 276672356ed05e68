"""Pictures and words in, answers out: joins a checkpoint's processor and the engine.

Knows prompts, sampling and streams. Does not know tasks (they word prompts) nor doors.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack, overload

from torch import Tensor

from idefics.errors import BadPrompt, BadSetting
from idefics.messages import Detail, ImageDetail, Message, Picture
from idefics.options import Options, Wishes
from idefics.pipeline.ahead import ahead
from idefics.pipeline.answering import Reply, Stream
from idefics.pipeline.asking import asking_for
from idefics.pipeline.loading import Loaded
from idefics.prompt import Prompt

if TYPE_CHECKING:
    from idefics.messages import Answer, PictureSource
    from idefics.processing.fetch import Fetcher
    from idefics.processing.processor import Endings, Item, Processor

    Items = Sequence[Item]
    Conversation = Sequence[Message | Mapping[str, Any]]


class Pipeline(Loaded):
    """A loaded model that continues prompts and holds conversations. `Idefics` adds the tasks."""

    def prompt(
        self,
        items: Items | Conversation,
        *,
        answer_start: str = "",
        continue_final_message: bool = False,
        detail: Detail = "high",
        max_tiles: int | None = None,
    ) -> Prompt:
        """Ids and pictures of a raw prompt or a conversation: the low-level door.

        Args:
            items: a list of text and pictures (see `generate`), or of messages (see `chat`).
            answer_start: words that the answer begins with; conversations only.
            continue_final_message: as in `chat`; conversations only.
            detail, max_tiles: how closely pictures are looked at; see `ImageDetail`.
        """
        processor = self.processor.looking(ImageDetail(detail, max_tiles))
        if _is_conversation(items):
            return processor.chat(
                items,  # type: ignore[arg-type]
                answer_start=answer_start,
                continue_final_message=continue_final_message,
            )
        if answer_start or continue_final_message:
            name = "answer_start" if answer_start else "continue_final_message"
            raise BadSetting(f"{name} goes with a conversation; write the words at the end of a raw prompt")
        return processor.raw(items)  # type: ignore[arg-type]

    def fetching(self, fetcher: Fetcher) -> Self:
        """The same model (nothing is copied), whose pictures another fetcher gets: one for strangers bounds them."""
        other = copy.copy(self)
        other.processor = copy.copy(self.processor)
        other.processor.fetcher = fetcher
        return other

    def cost(
        self, picture: Picture | PictureSource, *, detail: Detail = "high", max_tiles: int | None = None
    ) -> int:
        """How many tokens of a prompt a picture takes, standing alone; nothing is computed of it but its size.

        Raises:
            BadPicture: it cannot be opened.
        """
        return self.processor.looking(ImageDetail(detail, max_tiles)).tokens_of(Picture.of(picture))

    def logits(self, prompt: Prompt) -> Tensor:
        """(N, V) float32: the model's logits after each of the prompt's N tokens, in one uncached pass."""
        return self.engine.logits(prompt)

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, but never a prompt
        self,
        items: Items,
        *,
        stream: Literal[False] = ...,
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def generate(
        self,
        items: Sequence[Items],
        *,
        stream: Literal[False] = ...,
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def generate(
        self,
        items: Items,
        *,
        stream: Literal[True],
        add_end_of_utterance_token: bool | None = ...,
        **options: Unpack[Options],
    ) -> Stream: ...
    def generate(
        self,
        items: Items | Sequence[Items],
        *,
        stream: bool = False,
        add_end_of_utterance_token: bool | None = None,
        **options: Unpack[Options],
    ) -> Reply:
        """Continues a raw prompt, exactly as given; or several, and then a list of answers comes back.

        Args:
            items: text and pictures in any order, or a list of such lists. Special tokens in the text are honoured.
            stream: return a `Stream` of text instead; one prompt only.
            add_end_of_utterance_token: whether Idefics 1 puts its `<end_of_utterance>` between neighbouring texts;
                None: where the checkpoint has it.
            **options: see `Options`; greedy and at most 256 new tokens unless told.

        Raises:
            BadRequest: a picture, a prompt or a setting is wrong; the message says which.
        """
        began = time.perf_counter()
        many = bool(items) and isinstance(items[0], (list, tuple))
        prompts: list[Items] = list(items) if many else [items]  # type: ignore[arg-type, list-item]
        make = partial(self._seeing(options).raw, add_end_of_utterance_token=add_end_of_utterance_token)
        return self._reply(make, prompts, many, stream, began, options)

    @overload
    def chat(
        self,
        messages: Conversation,
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        stream: Literal[False] = ...,
        **options: Unpack[Options],
    ) -> Answer: ...
    @overload
    def chat(
        self,
        messages: Sequence[Conversation],
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        stream: Literal[False] = ...,
        **options: Unpack[Options],
    ) -> list[Answer]: ...
    @overload
    def chat(
        self,
        messages: Conversation,
        *,
        answer_start: str = ...,
        continue_final_message: bool = ...,
        stream: Literal[True],
        **options: Unpack[Options],
    ) -> Stream: ...
    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        *,
        answer_start: str = "",
        continue_final_message: bool = False,
        stream: bool = False,
        **options: Unpack[Options],
    ) -> Reply:
        """The next answer of a conversation; or of several, and then a list of answers comes back.

        Args:
            messages: `Message`s or the dicts of the published guides and of OpenAI's API. Special tokens in their text
                are plain characters.
            answer_start: words that the answer begins with; its text goes on after them, its first space included.
            continue_final_message: the last message is the assistant's and its text goes on: that text and the answer's
                are the whole, with the space between them if there is one. Without it such a message is refused.
            stream, options: as in `generate`.
        """
        began = time.perf_counter()
        many = bool(messages) and isinstance(messages[0], (list, tuple))
        conversations: list[Conversation] = list(messages) if many else [messages]  # type: ignore
        make = partial(self._seeing(options).chat, answer_start=answer_start)
        make = partial(make, continue_final_message=continue_final_message)
        continues = bool(answer_start) or continue_final_message
        return self._reply(make, conversations, many, stream, began, options, continues=continues)

    def submit(
        self, prompt: Prompt, *, start: str = "", continues: bool = False, **wishes: Unpack[Wishes]
    ) -> Stream:
        """Asks for the answer to a prompt that is ready, and waits for nothing: the door of a server.

        `prompt` does what takes its time, and may run in any thread; this may run in an event loop. The stream is
        read by a thread (`for text in stream`) or by a task (`async for delta in stream.deltas()`).

        Args:
            start: words that the answer's text begins with.
            continues: whether the text goes on where the prompt ends, and keeps a space at its beginning.

        Raises:
            EngineBusy: as many requests wait as may.
            BadRequest: a setting is wrong, or the prompt can never be answered with them.
        """
        asking = asking_for(self, time.perf_counter(), wishes, start, continues)
        return Stream(asking.submit(prompt, wait=False))

    def score(
        self,
        items: Items | Conversation,
        endings: Sequence[str],
        *,
        answer_start: str = "",
        detail: Detail = "high",
        max_tiles: int | None = None,
    ) -> tuple[Prompt, list[list[float]]]:
        """How likely each of many texts is after one prompt, read once: log-probabilities of its tokens.

        In a conversation an ending is the answer; in a raw prompt it goes on as it stands, its own space included.

        Returns:
            The prompt shared by all endings, and for each ending one number a token.
        """
        prompt, rests = self.endings(
            items, endings, answer_start=answer_start, detail=detail, max_tiles=max_tiles
        )
        return prompt, self.engine.score(prompt, rests)

    def endings(
        self,
        items: Items | Conversation,
        endings: Sequence[str],
        *,
        answer_start: str = "",
        detail: Detail = "high",
        max_tiles: int | None = None,
    ) -> Endings:
        """What `score` asks of the engine: the prompt shared by all endings, and the ids of each."""
        processor = self.processor.looking(ImageDetail(detail, max_tiles))
        if _is_conversation(items):
            return processor.chat_endings(items, endings, answer_start=answer_start)  # type: ignore[arg-type]
        return processor.raw_endings(items, endings)  # type: ignore[arg-type]

    def _seeing(self, options: Options) -> Processor:
        """What makes the prompts of a call; the options that are about pictures go no further."""
        return self.processor.looking(
            ImageDetail(options.pop("detail", "high"), options.pop("max_tiles", None))
        )

    def _reply(
        self,
        make: Callable[[Any], Prompt],
        items: Sequence[Any],
        many: bool,
        stream: bool,
        began: float,
        options: Options,
        start: str = "",
        continues: bool = False,
    ) -> Reply:
        """Answers the prompts that `make` makes of `items`; `start` and `continues` are as in `submit`."""
        if stream and many:
            raise BadSetting(f"stream=True takes one prompt, not {len(items)}: call it once for each")
        asking = asking_for(self, began, options, start, continues)
        if stream:
            return Stream(asking.submit(make(items[0])))
        answers = asking.answers(ahead(make, items))
        return answers if many else answers[0]


def _is_conversation(items: Any) -> bool:
    if not isinstance(items, Sequence) or isinstance(items, (str, bytes)):
        raise BadPrompt(
            f"a prompt is a list of text and pictures or of messages, not a {type(items).__name__}"
        )
    return bool(items) and isinstance(items[0], (Message, Mapping))
