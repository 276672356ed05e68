"""Conversations and raw prompts into `Prompt`s: joins template, tokenizer and pictures.

Knows where a picture's tokens stand; does not know models. What differs between checkpoints is in its
`ImagePlan` and `PromptStyle`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from idefics.config import ImagePlan, PromptStyle
from idefics.errors import BadPrompt, BadSetting, PromptTooLong, TextTooLong, UnsupportedModel
from idefics.messages import ImageDetail, Message, Part, Picture, Video, Visual
from idefics.processing.chat import IMAGE, render
from idefics.processing.continuations import check_continuation, encode_continuations
from idefics.processing.conversation import to_messages
from idefics.processing.fetch import Fetcher
from idefics.processing.images import open_picture, prepared
from idefics.processing.marks import FAKE, marks, share_fakes
from idefics.processing.prefetch import fetching_ahead
from idefics.processing.prompt_items import to_part
from idefics.processing.sizes import grid, plan_for
from idefics.processing.special_tokens import IMAGE_PLACEHOLDER
from idefics.processing.text_length import TextLimit
from idefics.processing.tokenizer import Piece, Tokenizer
from idefics.processing.video import watch
from idefics.prompt import Prompt, Tiles

if TYPE_CHECKING:
    from idefics.processing.prompt_items import Item

END_OF_DOCUMENT = "</s>"

Endings = tuple[Prompt, tuple[tuple[int, ...], ...]]


class Processor:
    """Makes prompts for one checkpoint.

    Attributes:
        mark_ids: ids of the tokens that stand for pictures; an answer never holds one.
        look: how closely pictures are looked at that do not say it themselves.
        trusts_text: whether special tokens in raw prompts are honoured; never in untrusted input.
        text_limit: refuses texts that cannot fit into `most` tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        plan: ImagePlan,
        style: PromptStyle,
        fetcher: Fetcher,
        most: int | None = None,
    ) -> None:
        self.tokenizer, self.plan, self.style, self.fetcher = tokenizer, plan, style, fetcher
        self.text_limit = TextLimit(tokenizer, most)
        missing = {IMAGE, FAKE} - tokenizer.added
        if missing:
            raise UnsupportedModel(
                f"this checkpoint's tokenizer.json has no {' and no '.join(sorted(missing))}"
            )
        self._image = tokenizer.token_id(IMAGE)
        ids = (tokenizer.token_id(token) for token in tokenizer.added if IMAGE_PLACEHOLDER.fullmatch(token))
        self.mark_ids = frozenset(id for id in ids if id is not None)
        self.look = ImageDetail()
        self.trusts_text = True
        self._end_of_document = tokenizer.token_id(END_OF_DOCUMENT) if style.marks == "beside" else None

    def looking(self, look: ImageDetail) -> Processor:
        """The same processor with another look; nothing is copied."""
        other = copy.copy(self)
        other.look = look
        return other

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        answer_start: str = "",
        continue_final_message: bool = False,
    ) -> Prompt:
        """The prompt for the next answer of a conversation. Special tokens in its text are plain characters.

        Args:
            messages: `Message`s, or dicts as in `to_messages`.
            answer_start: words that the answer begins with.
            continue_final_message: the last message is the assistant's, and the answer goes on with its text.

        Raises:
            BadPrompt, BadPicture: something in the messages is wrong; the error says which.
        """
        prefill = {"answer_start": answer_start, "continue_final_message": continue_final_message}
        pieces, pictures = self._pieces(self._conversation(messages, **prefill))
        return self._prompt(self._encoded(pieces, pictures), pictures)

    def raw(self, items: Sequence[Item], *, add_end_of_utterance_token: bool | None = None) -> Prompt:
        """The prompt that is exactly these texts and pictures. Special tokens are honoured, but in a stranger's text.

        Args:
            items: text, and pictures in any form; see `to_part` for the texts that name a picture.
            add_end_of_utterance_token: whether `<end_of_utterance>` goes between neighbouring texts; None:
                where the checkpoint has it. Only where pictures are read beside the text (Idefics 1).

        Raises:
            BadPrompt: nothing given, or `<image>` written in the text.
            BadPicture: a picture cannot be opened.
            BadSetting: the checkpoint has no `<end_of_utterance>` to add.
        """
        return self.document(self._parts(items), add_end_of_utterance_token=add_end_of_utterance_token)

    def document(
        self, parts: Sequence[Part | Tiles], *, add_end_of_utterance_token: bool | None = None
    ) -> Prompt:
        """As `raw`, but no text is taken for an address or a file, and a picture may be prepared already."""
        pieces, pictures = self._pieces(self._document(parts, add_end_of_utterance_token))
        return self._prompt(self._encoded(pieces, pictures), pictures)

    def chat_endings(
        self, messages: Sequence[Message | Mapping[str, Any]], endings: Sequence[str], **prefill: Any
    ) -> Endings:
        """A conversation once, and the token ids of each answer that it might get.

        Each answer is tokenised as it would be after the prompt and a space, or as it stands after a message that goes
        on; `prefill` are the keywords of `chat`.

        Returns:
            The prompt that all answers share, and for each answer the ids that follow it.

        Raises:
            BadPrompt: no answers, or a blank one.
        """
        pieces, pictures = self._pieces(self._conversation(messages, **prefill))
        space = "" if prefill.get("continue_final_message") else " "
        last = [Piece(space + ending, trusted=False) for ending in endings]
        ids, rests = encode_continuations(self.tokenizer, self.text_limit, pieces, last)
        return self._prompt(self._opening() + ids, pictures), rests

    def raw_endings(self, items: Sequence[Item], endings: Sequence[str]) -> Endings:
        """A raw prompt once, and the token ids of each text that it might end with.

        Each ending continues the last text as it stands: give it its own space where it wants one.
        """
        pieces, pictures = self._pieces(self._document(self._parts(items), None))
        last = [Piece(ending, trusted=self._is_trusted) for ending in endings]
        ids, rests = encode_continuations(self.tokenizer, self.text_limit, pieces, last)
        return self._prompt(self._opening() + ids, pictures), rests

    def check_ending(self, ending: str, *, in_chat: bool) -> None:
        """Raises what is wrong with an ending, whatever the prompt before it: see `encode_continuations`."""
        piece = Piece(ending, trusted=self._is_trusted and not in_chat)
        check_continuation(self.tokenizer, self.text_limit, piece)

    def tokens_of(self, picture: Picture) -> int:
        """What one picture, standing alone, costs in tokens."""
        size = open_picture(picture, self.fetcher).size
        rows, columns = grid(*size, plan_for(*size, self.plan, picture.look(self.look)))
        text = marks(self.style, self.plan.tokens, rows, columns, follows_picture=False)
        return len(self.tokenizer.encode(text, adds_special=False))

    @property
    def _is_trusted(self) -> bool:
        return self.trusts_text and not self.fetcher.strangers

    def _parts(self, items: Sequence[Item]) -> list[Part]:
        """Text that is not trusted names no address and no file, whatever it looks like."""
        return [to_part(item, untrusted=not self._is_trusted) for item in _listed(items)]

    def _conversation(
        self, messages: Sequence[Message | Mapping[str, Any]], **prefill: Any
    ) -> list[Piece | Visual]:
        read = to_messages(messages, untrusted=not self._is_trusted)
        parts = render(self.style.template, read, variables=self.tokenizer.roles, **prefill)
        return [Piece(self.style.start, trusted=True), *parts]

    def _document(
        self, items: Sequence[Part | Tiles], adds_turn_end: bool | None
    ) -> list[Piece | Visual | Tiles]:
        has_turn_end = self.style.marks == "beside" and self.style.turn_end in self.tokenizer.added
        if adds_turn_end and not has_turn_end:
            raise BadSetting(
                "add_end_of_utterance_token is True, but this checkpoint has no such token: leave it out"
            )
        separates = has_turn_end and adds_turn_end is not False
        parts: list[Piece | Visual | Tiles] = [Piece(self.style.start, trusted=True)]
        last: Part | Tiles | None = None
        for part in items:
            if isinstance(part, str):
                text = part.strip(" ") if self.style.strip_items else part
                if separates and isinstance(last, str):
                    parts.append(Piece(self.style.turn_end, trusted=True))
                parts.append(Piece(text, trusted=self._is_trusted))
            else:
                parts.append(part)
            last = part
        return parts

    def _pieces(self, parts: Sequence[Piece | Visual | Tiles]) -> tuple[list[Piece], list[Tiles]]:
        """Pictures opened and prepared where they are not yet, and their marks in their places; videos as both."""
        self.text_limit.check(part.text for part in parts if isinstance(part, Piece))
        fetcher = fetching_ahead(self.fetcher, (part.source for part in parts if isinstance(part, Visual)))
        pieces: list[Piece] = []
        pictures: list[Tiles] = []
        follows_picture = False
        for part in self._watched(parts, fetcher):
            if isinstance(part, Piece):
                pieces.append(part)
            else:
                tiles = part if isinstance(part, Tiles) else self._prepared(part, fetcher)
                pictures.append(tiles)
                text = marks(
                    self.style, self.plan.tokens, tiles.rows, tiles.columns, follows_picture=follows_picture
                )
                pieces.append(Piece(text, trusted=True))
            follows_picture = not isinstance(part, Piece)
        return (share_fakes(pieces) if self.style.marks == "frames" else pieces), pictures

    def _watched(
        self, parts: Iterable[Piece | Visual | Tiles], fetcher: Fetcher
    ) -> Iterator[Piece | Picture | Tiles]:
        for part in parts:
            if isinstance(part, Video):
                yield from watch(part, self.plan, fetcher)
            else:
                yield part

    def _prepared(self, picture: Picture, fetcher: Fetcher) -> Tiles:
        return prepared(picture, self.plan, fetcher, self.look)

    @property
    def num_opening_tokens(self) -> int:
        """How many tokens a raw prompt has before its first text."""
        return len(self._opening()) + len(
            self.tokenizer.encode_pieces([Piece(self.style.start, trusted=True)])
        )

    def _opening(self) -> list[int]:
        """What `tokenizer.json` itself puts before a text, whatever the text begins with."""
        return self.tokenizer.encode("", adds_special=True) if self.style.adds_special else []

    def _encoded(self, pieces: list[Piece], pictures: list[Tiles]) -> list[int]:
        """Ids of a prompt, which are not even looked at where there are more than the model reads."""
        try:
            return self._opening() + self.tokenizer.encode_pieces(
                pieces, max_tokens=self.text_limit.max_tokens
            )
        except TextTooLong:
            raise
        except PromptTooLong as error:
            raise PromptTooLong(error.length, error.limit, len(pictures)) from None

    def _prompt(self, ids: list[int], pictures: list[Tiles]) -> Prompt:
        if not ids:
            raise BadPrompt("the prompt is empty: give some text or a picture")
        positions = [position for position, id in enumerate(ids) if id == self._image]
        beside = self.style.marks == "beside"
        sizes = [1 if beside else len(picture.frames) * self.plan.tokens for picture in pictures]
        if len(positions) != sum(sizes):
            raise BadPrompt(
                f"the text holds {len(positions) - sum(sizes)} {IMAGE} of its own, and the prompt "
                f"{len(pictures)} pictures: put each picture itself in its place instead of writing {IMAGE}"
            )
        following = iter(positions)
        places = tuple(tuple(islice(following, size)) for size in sizes)
        owner = {place: index for index, picture in enumerate(places) for place in picture}
        return Prompt(tuple(ids), tuple(pictures), places, tuple(self._sees(ids, owner)))

    def _sees(self, ids: list[int], owner: Mapping[int, int]) -> list[int]:
        """For each token its latest picture, or -1; a document's end still sees what its document saw."""
        sees, current = [], -1
        for position, id in enumerate(ids):
            current = owner.get(position, current)
            sees.append(current)
            if id == self._end_of_document:
                current = -1
        return sees


def _listed(items: Sequence[Item]) -> Sequence[Item]:
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence) or not items:
        raise BadPrompt("a raw prompt is a list of text and pictures, at least one")
    return items
