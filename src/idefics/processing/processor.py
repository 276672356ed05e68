"""Conversations and raw prompts into `Prompt`s: joins template, tokenizer and pictures.

Knows where a picture's tokens stand; does not know models. What differs between checkpoints is in its
`ImageProcessorConfig` and `PromptFormat`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from idefics.config import ImageProcessorConfig, PromptFormat
from idefics.errors import BadPrompt, BadSetting, PromptTooLong, TextTooLong, UnsupportedModel
from idefics.messages import ContentPart, ImageDetail, Message, Picture, PictureOrVideo, Video
from idefics.processing.chat_prompt import IMAGE_TOKEN, render_conversation
from idefics.processing.continuations import check_continuation, encode_continuations
from idefics.processing.fetch import Fetcher
from idefics.processing.image_placeholders import (
    FAKE_IMAGE_TOKEN,
    image_placeholder_text,
    merge_adjacent_fake_tokens,
)
from idefics.processing.image_processor import open_and_preprocess, open_picture
from idefics.processing.image_sizes import apply_image_detail, compute_tile_grid
from idefics.processing.message_parsing import to_messages
from idefics.processing.prefetch import create_prefetcher
from idefics.processing.prompt_items import parse_item
from idefics.processing.special_tokens import IMAGE_PLACEHOLDER_PATTERN
from idefics.processing.text_limit import TextLimit
from idefics.processing.tokenizer import TextPiece, Tokenizer
from idefics.processing.video import expand_video
from idefics.prompt import PreprocessedImage, Prompt

if TYPE_CHECKING:
    from idefics.processing.prompt_items import PromptItem

END_OF_DOCUMENT_TOKEN = "</s>"

ScoringPrompt = tuple[Prompt, tuple[tuple[int, ...], ...]]


class Processor:
    """Makes prompts for one checkpoint.

    Attributes:
        image_placeholder_ids: ids of the tokens that stand for pictures; an answer never holds one.
        image_detail: how closely pictures are looked at that do not say it themselves.
        is_text_trusted: whether special tokens in raw prompts are honoured; never in untrusted input.
        text_limit: refuses texts that cannot fit into `max_tokens` tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_config: ImageProcessorConfig,
        prompt_format: PromptFormat,
        fetcher: Fetcher,
        max_tokens: int | None = None,
    ) -> None:
        self.tokenizer, self.image_config, self.prompt_format, self.fetcher = (
            tokenizer,
            image_config,
            prompt_format,
            fetcher,
        )
        self.text_limit = TextLimit(tokenizer, max_tokens)
        missing = {IMAGE_TOKEN, FAKE_IMAGE_TOKEN} - tokenizer.added_token_contents
        if missing:
            raise UnsupportedModel(
                f"this checkpoint's tokenizer.json has no {' and no '.join(sorted(missing))}"
            )
        self._image_token_id = tokenizer.token_to_id(IMAGE_TOKEN)
        ids = (
            tokenizer.token_to_id(token)
            for token in tokenizer.added_token_contents
            if IMAGE_PLACEHOLDER_PATTERN.fullmatch(token)
        )
        self.image_placeholder_ids = frozenset(id for id in ids if id is not None)
        self.image_detail = ImageDetail()
        self.is_text_trusted = True
        self._end_of_document_id = (
            tokenizer.token_to_id(END_OF_DOCUMENT_TOKEN)
            if prompt_format.image_tokens == "cross_attention"
            else None
        )

    def with_image_detail(self, image_detail: ImageDetail) -> Processor:
        """The same processor with another look; nothing is copied."""
        other = copy.copy(self)
        other.image_detail = image_detail
        return other

    def encode_chat(
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
        answer_options = {"answer_start": answer_start, "continue_final_message": continue_final_message}
        pieces, pictures = self._expand_pictures(self._render_chat(messages, **answer_options))
        return self._build_prompt(self._encode_pieces(pieces, pictures), pictures)

    def encode_raw(
        self, items: Sequence[PromptItem], *, add_end_of_utterance_token: bool | None = None
    ) -> Prompt:
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
        return self.encode_parts(
            self._parse_items(items), add_end_of_utterance_token=add_end_of_utterance_token
        )

    def encode_parts(
        self,
        parts: Sequence[ContentPart | PreprocessedImage],
        *,
        add_end_of_utterance_token: bool | None = None,
    ) -> Prompt:
        """As `raw`, but no text is taken for an address or a file, and a picture may be prepared already."""
        pieces, pictures = self._expand_pictures(self._lay_out_parts(parts, add_end_of_utterance_token))
        return self._build_prompt(self._encode_pieces(pieces, pictures), pictures)

    def encode_chat_continuations(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        continuations: Sequence[str],
        **answer_options: Any,
    ) -> ScoringPrompt:
        """A conversation once, and the token ids of each answer that it might get.

        Each answer is tokenised as it would be after the prompt and a space, or as it stands after a message that goes
        on; `answer_options` are the keywords of `chat`.

        Returns:
            The prompt that all answers share, and for each answer the ids that follow it.

        Raises:
            BadPrompt: no answers, or a blank one.
        """
        pieces, pictures = self._expand_pictures(self._render_chat(messages, **answer_options))
        space = "" if answer_options.get("continue_final_message") else " "
        continuation_pieces = [TextPiece(space + ending, trusted=False) for ending in continuations]
        ids, continuation_ids = encode_continuations(
            self.tokenizer, self.text_limit, pieces, continuation_pieces
        )
        return self._build_prompt(self._special_prefix_ids() + ids, pictures), continuation_ids

    def encode_raw_continuations(
        self, items: Sequence[PromptItem], continuations: Sequence[str]
    ) -> ScoringPrompt:
        """A raw prompt once, and the token ids of each text that it might end with.

        Each ending continues the last text as it stands: give it its own space where it wants one.
        """
        pieces, pictures = self._expand_pictures(self._lay_out_parts(self._parse_items(items), None))
        continuation_pieces = [TextPiece(ending, trusted=self._is_trusted) for ending in continuations]
        ids, continuation_ids = encode_continuations(
            self.tokenizer, self.text_limit, pieces, continuation_pieces
        )
        return self._build_prompt(self._special_prefix_ids() + ids, pictures), continuation_ids

    def check_continuation(self, continuation: str, *, in_chat: bool) -> None:
        """Raises what is wrong with an ending, whatever the prompt before it: see `encode_continuations`."""
        piece = TextPiece(continuation, trusted=self._is_trusted and not in_chat)
        check_continuation(self.tokenizer, self.text_limit, piece)

    def count_image_tokens(self, picture: Picture) -> int:
        """What one picture, standing alone, costs in tokens."""
        size = open_picture(picture, self.fetcher).size
        rows, columns = compute_tile_grid(
            *size, apply_image_detail(*size, self.image_config, picture.look(self.image_detail))
        )
        text = image_placeholder_text(
            self.prompt_format, self.image_config.tokens_per_frame, rows, columns, follows_picture=False
        )
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    @property
    def _is_trusted(self) -> bool:
        return self.is_text_trusted and not self.fetcher.untrusted

    def _parse_items(self, items: Sequence[PromptItem]) -> list[ContentPart]:
        """Text that is not trusted names no address and no file, whatever it looks like."""
        return [parse_item(item, untrusted=not self._is_trusted) for item in _validate_items(items)]

    def _render_chat(
        self, messages: Sequence[Message | Mapping[str, Any]], **answer_options: Any
    ) -> list[TextPiece | PictureOrVideo]:
        parsed_messages = to_messages(messages, untrusted=not self._is_trusted)
        parts = render_conversation(
            self.prompt_format.chat_template,
            parsed_messages,
            variables=self.tokenizer.token_by_role,
            **answer_options,
        )
        return [TextPiece(self.prompt_format.prompt_prefix, trusted=True), *parts]

    def _lay_out_parts(
        self, items: Sequence[ContentPart | PreprocessedImage], adds_turn_end: bool | None
    ) -> list[TextPiece | PictureOrVideo | PreprocessedImage]:
        has_turn_end = (
            self.prompt_format.image_tokens == "cross_attention"
            and self.prompt_format.turn_end_token in self.tokenizer.added_token_contents
        )
        if adds_turn_end and not has_turn_end:
            raise BadSetting(
                "add_end_of_utterance_token is True, but this checkpoint has no such token: leave it out"
            )
        adds_separators = has_turn_end and adds_turn_end is not False
        parts: list[TextPiece | PictureOrVideo | PreprocessedImage] = [
            TextPiece(self.prompt_format.prompt_prefix, trusted=True)
        ]
        previous: ContentPart | PreprocessedImage | None = None
        for part in items:
            if isinstance(part, str):
                text = part.strip(" ") if self.prompt_format.strips_text else part
                if adds_separators and isinstance(previous, str):
                    parts.append(TextPiece(self.prompt_format.turn_end_token, trusted=True))
                parts.append(TextPiece(text, trusted=self._is_trusted))
            else:
                parts.append(part)
            previous = part
        return parts

    def _expand_pictures(
        self, parts: Sequence[TextPiece | PictureOrVideo | PreprocessedImage]
    ) -> tuple[list[TextPiece], list[PreprocessedImage]]:
        """Pictures opened and prepared where they are not yet, and their marks in their places; videos as both."""
        self.text_limit.check(part.text for part in parts if isinstance(part, TextPiece))
        fetcher = create_prefetcher(
            self.fetcher, (part.source for part in parts if isinstance(part, PictureOrVideo))
        )
        pieces: list[TextPiece] = []
        pictures: list[PreprocessedImage] = []
        follows_picture = False
        for part in self._expand_videos(parts, fetcher):
            if isinstance(part, TextPiece):
                pieces.append(part)
            else:
                image = (
                    part if isinstance(part, PreprocessedImage) else self._preprocess_picture(part, fetcher)
                )
                pictures.append(image)
                text = image_placeholder_text(
                    self.prompt_format,
                    self.image_config.tokens_per_frame,
                    image.rows,
                    image.columns,
                    follows_picture=follows_picture,
                )
                pieces.append(TextPiece(text, trusted=True))
            follows_picture = not isinstance(part, TextPiece)
        return (
            merge_adjacent_fake_tokens(pieces) if self.prompt_format.image_tokens == "inline" else pieces
        ), pictures

    def _expand_videos(
        self, parts: Iterable[TextPiece | PictureOrVideo | PreprocessedImage], fetcher: Fetcher
    ) -> Iterator[TextPiece | Picture | PreprocessedImage]:
        for part in parts:
            if isinstance(part, Video):
                yield from expand_video(part, self.image_config, fetcher)
            else:
                yield part

    def _preprocess_picture(self, picture: Picture, fetcher: Fetcher) -> PreprocessedImage:
        return open_and_preprocess(picture, self.image_config, fetcher, self.image_detail)

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens a raw prompt has before its first text."""
        return len(self._special_prefix_ids()) + len(
            self.tokenizer.encode_pieces([TextPiece(self.prompt_format.prompt_prefix, trusted=True)])
        )

    def _special_prefix_ids(self) -> list[int]:
        """What `tokenizer.json` itself puts before a text, whatever the text begins with."""
        return (
            self.tokenizer.encode("", add_special_tokens=True)
            if self.prompt_format.add_special_tokens
            else []
        )

    def _encode_pieces(self, pieces: list[TextPiece], pictures: list[PreprocessedImage]) -> list[int]:
        """Ids of a prompt, which are not even looked at where there are more than the model reads."""
        try:
            return self._special_prefix_ids() + self.tokenizer.encode_pieces(
                pieces, max_tokens=self.text_limit.max_tokens
            )
        except TextTooLong:
            raise
        except PromptTooLong as error:
            raise PromptTooLong(error.length, error.limit, len(pictures)) from None

    def _build_prompt(self, ids: list[int], pictures: list[PreprocessedImage]) -> Prompt:
        if not ids:
            raise BadPrompt("the prompt is empty: give some text or a picture")
        positions = [position for position, id in enumerate(ids) if id == self._image_token_id]
        is_cross_attention = self.prompt_format.image_tokens == "cross_attention"
        num_tokens_by_image = [
            1 if is_cross_attention else len(picture.frames) * self.image_config.tokens_per_frame
            for picture in pictures
        ]
        if len(positions) != sum(num_tokens_by_image):
            raise BadPrompt(
                f"the text holds {len(positions) - sum(num_tokens_by_image)} {IMAGE_TOKEN} of its own, and the prompt "
                f"{len(pictures)} pictures: put each picture itself in its place instead of writing {IMAGE_TOKEN}"
            )
        remaining_positions = iter(positions)
        image_token_positions = tuple(
            tuple(islice(remaining_positions, size)) for size in num_tokens_by_image
        )
        image_by_position = {
            place: index for index, picture in enumerate(image_token_positions) for place in picture
        }
        return Prompt(
            tuple(ids),
            tuple(pictures),
            image_token_positions,
            tuple(self._image_index_by_token(ids, image_by_position)),
        )

    def _image_index_by_token(self, ids: list[int], image_by_position: Mapping[int, int]) -> list[int]:
        """For each token its latest picture, or -1; a document's end still sees what its document saw."""
        image_index, current_image = [], -1
        for position, id in enumerate(ids):
            current_image = image_by_position.get(position, current_image)
            image_index.append(current_image)
            if id == self._end_of_document_id:
                current_image = -1
        return image_index


def _validate_items(items: Sequence[PromptItem]) -> Sequence[PromptItem]:
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence) or not items:
        raise BadPrompt("a raw prompt is a list of text and pictures, at least one")
    return items
