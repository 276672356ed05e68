"""Turns conversations and raw prompts into `Prompt`s, in four steps:

    lay out     a conversation through its chat template (`chat_prompt`), or the items of a raw prompt (`prompt_items`):
                trusted text, plain text, pictures and videos in order
    expand      each picture into frames and placeholder text (`picture_expansion`)
    tokenize    the text (`tokenizer`), continuations to be scored among it (`continuations`)
    assemble    ids and pictures (`picture_expansion.build_prompt`)

The differences between checkpoints are in `ImageProcessorConfig` and `PromptFormat`. Independent of the models.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from idefics.config import ImageProcessorConfig, PromptFormat
from idefics.errors import BadPrompt, BadSetting, UnsupportedModel
from idefics.messages import ContentPart, ImageDetail, Message, Picture
from idefics.processing.chat_prompt import IMAGE_TOKEN, render_conversation
from idefics.processing.continuations import check_continuation, encode_continuations
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_picture
from idefics.processing.message_parsing import to_messages
from idefics.processing.picture_expansion import (
    FAKE_IMAGE_TOKEN,
    PromptPart,
    build_prompt,
    compute_image_cost,
    expand_pictures,
)
from idefics.processing.prompt_items import parse_item
from idefics.processing.special_tokens import IMAGE_PLACEHOLDER_PATTERN
from idefics.processing.text_limit import TextLimit
from idefics.processing.tokenizer import TextPiece, Tokenizer
from idefics.prompt import PreprocessedImage, Prompt, PromptAdapter, ScoringPrompt

if TYPE_CHECKING:
    from idefics.processing.prompt_items import PromptItem

END_OF_DOCUMENT_TOKEN = "</s>"


class Processor:
    """Makes the prompts of one checkpoint.

    Args:
        tokenizer, image_config, prompt_format: those of the checkpoint.
        fetcher: gets remote pictures, or refuses to; says whether the sender is trusted.
        max_tokens: the longest prompt that the model reads, in tokens; None: no limit.

    Attributes:
        image_placeholder_ids: ids of the tokens that stand for pictures; an answer never holds one.
        image_detail: for pictures that have no detail of their own.
        is_text_trusted: whether special tokens in raw prompts are recognised; never in untrusted input.
        text_limit: refuses texts that cannot fit into `max_tokens` tokens.
        image_token_id, end_of_document_id: those of `picture_expansion.build_prompt`.
        adapter: answers the prompts; None: the model without one.

    Raises:
        UnsupportedModel: the tokenizer lacks the tokens that stand for pictures.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_config: ImageProcessorConfig,
        prompt_format: PromptFormat,
        fetcher: Fetcher,
        max_tokens: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_config = image_config
        self.prompt_format = prompt_format
        self.fetcher = fetcher
        self.text_limit = TextLimit(tokenizer, max_tokens)
        missing = {IMAGE_TOKEN, FAKE_IMAGE_TOKEN} - tokenizer.added_token_contents
        if missing:
            raise UnsupportedModel(
                f"this checkpoint's tokenizer.json has no {' and no '.join(sorted(missing))}"
            )
        self.image_placeholder_ids = frozenset(
            id
            for id, token in tokenizer.added_tokens.items()
            if IMAGE_PLACEHOLDER_PATTERN.fullmatch(token.content)
        )
        self.image_detail = ImageDetail()
        self.is_text_trusted = True
        self.adapter: PromptAdapter | None = None
        self._uses_cross_attention = prompt_format.image_tokens == "cross_attention"
        self.image_token_id = tokenizer.added_token_id(IMAGE_TOKEN)
        self.end_of_document_id = (
            tokenizer.token_to_id(END_OF_DOCUMENT_TOKEN) if self._uses_cross_attention else None
        )

    def with_image_detail(self, image_detail: ImageDetail) -> Processor:
        """The same processor with another `image_detail`; its parts are shared, not copied."""
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
            continue_final_message: the last message is the assistant's, and the answer continues its text.

        Raises:
            BadPrompt, BadPicture: something in the messages is wrong; the error says which.
        """
        return self._encode(self._chat_to_prompt_parts(messages, answer_start, continue_final_message))

    def encode_raw(
        self, items: Sequence[PromptItem], *, add_end_of_utterance_token: bool | None = None
    ) -> Prompt:
        """The prompt that is exactly these texts and pictures. Special tokens are recognised in trusted text.

        Args:
            items: text, and pictures in any form; see `parse_item` for the texts that name a picture.
            add_end_of_utterance_token: whether `<end_of_utterance>` goes between neighbouring texts; None: where the
                checkpoint has it. Only for cross-attention models (Idefics 1).

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
        """As `encode_raw`, but no text is taken for a URL or a file, and pictures may be preprocessed already."""
        return self._encode(self.raw_items_to_prompt_parts(parts, add_end_of_utterance_token))

    def encode_chat_continuations(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        continuations: Sequence[str],
        *,
        answer_start: str = "",
        continue_final_message: bool = False,
    ) -> ScoringPrompt:
        """The prompt of a conversation, and the token ids of each possible answer to score.

        Each answer is tokenized as it would be after the prompt and a space, or directly after the final message where
        that is continued. The other arguments are those of `encode_chat`.

        Args:
            continuations: the answers.

        Returns:
            The prompt that all answers share, and for each answer the ids that follow it.

        Raises:
            BadPrompt: no answers, or a blank one.
        """
        parts = self._chat_to_prompt_parts(messages, answer_start, continue_final_message)
        space = "" if continue_final_message else " "
        return self._encode_continuations(parts, [TextPiece(space + one, False) for one in continuations])

    def encode_raw_continuations(
        self, items: Sequence[PromptItem], continuations: Sequence[str]
    ) -> ScoringPrompt:
        """A raw prompt, and the token ids of each text that may follow it; see `encode_chat_continuations`.

        Each continuation follows the last text directly: it begins with a space of its own where one is needed.
        """
        parts = self.raw_items_to_prompt_parts(self._parse_items(items))
        return self._encode_continuations(parts, [TextPiece(one, self._trusts_text) for one in continuations])

    def check_continuation(self, continuation: str, *, in_chat: bool) -> None:
        """Raises an error if a text cannot be a continuation of any prompt: see `continuations.check_continuation`."""
        piece = TextPiece(continuation, trusted=self._trusts_text and not in_chat)
        check_continuation(self.tokenizer, self.text_limit, piece)

    def count_image_tokens(self, picture: Picture) -> int:
        """How many tokens one picture takes in a prompt of its own; only its size is read."""
        detail = picture.resolve_detail(self.image_detail)
        return compute_image_cost(self, *open_picture(picture, self.fetcher).size, detail).num_tokens

    @property
    def num_raw_prompt_prefix_tokens(self) -> int:
        """How many tokens every raw prompt begins with: special tokens, and those of the format's prefix."""
        return len(self.special_prefix_ids()) + len(self.tokenizer.encode_pieces([self.prefix_piece]))

    @property
    def _trusts_text(self) -> bool:
        """Whether special tokens in the text of raw prompts are recognised, and texts in it may be taken for paths."""
        return self.is_text_trusted and not self.fetcher.untrusted

    @property
    def prefix_piece(self) -> TextPiece:
        """The format's `prompt_prefix`, the first text of every prompt."""
        return TextPiece(self.prompt_format.prompt_prefix, trusted=True)

    def _chat_to_prompt_parts(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        answer_start: str,
        continue_final_message: bool,
    ) -> list[PromptPart]:
        """The parts of a conversation's prompt: the prefix, and the output of the chat template."""
        parts = render_conversation(
            self.prompt_format.chat_template,
            to_messages(messages, untrusted=not self._trusts_text),
            answer_start=answer_start,
            continue_final_message=continue_final_message,
            variables=self.tokenizer.token_by_role,
        )
        return [self.prefix_piece, *parts]

    def _parse_items(self, items: Sequence[PromptItem]) -> list[ContentPart]:
        """The items of a raw prompt as text, pictures and videos; raises BadPrompt if there are none."""
        if isinstance(items, (str, bytes)) or not isinstance(items, Sequence) or not items:
            raise BadPrompt("a raw prompt is a list of text and pictures, at least one")
        return [parse_item(item, untrusted=not self._trusts_text) for item in items]

    def raw_items_to_prompt_parts(
        self, items: Sequence[ContentPart | PreprocessedImage], adds_separators: bool | None = None
    ) -> list[PromptPart]:
        """The parts of a raw prompt, after the prefix; separators are `<end_of_utterance>` between texts."""
        separator = self.prompt_format.turn_end_token
        if not self._uses_cross_attention or separator not in self.tokenizer.added_token_contents:
            separator = ""
        if adds_separators and not separator:
            raise BadSetting(
                "add_end_of_utterance_token is True, but this checkpoint has no such token: leave it out"
            )
        if adds_separators is False:
            separator = ""
        parts: list[PromptPart] = [self.prefix_piece]
        follows_text = False
        for item in items:
            if isinstance(item, str):
                if follows_text and separator:
                    parts.append(TextPiece(separator, trusted=True))
                text = item.strip(" ") if self.prompt_format.strips_text else item
                parts.append(TextPiece(text, self._trusts_text))
            else:
                parts.append(item)
            follows_text = isinstance(item, str)
        return parts

    def _encode(self, parts: Sequence[PromptPart]) -> Prompt:
        """The `Prompt` of a prompt's parts: expands the pictures, tokenizes the text and joins both."""
        pieces, pictures = self._expand_pictures(parts)
        ids = self.tokenizer.encode_pieces(
            pieces, max_tokens=self.text_limit.max_tokens, num_pictures=len(pictures)
        )
        return self.build_prompt(ids, pictures)

    def _encode_continuations(
        self, parts: Sequence[PromptPart], continuations: Sequence[TextPiece]
    ) -> ScoringPrompt:
        """The `ScoringPrompt` of a prompt's parts, with the token ids of each continuation."""
        pieces, pictures = self._expand_pictures(parts)
        ids, continuation_ids = encode_continuations(self.tokenizer, self.text_limit, pieces, continuations)
        return ScoringPrompt(self.build_prompt(ids, pictures), continuation_ids)

    def _expand_pictures(
        self, parts: Sequence[PromptPart]
    ) -> tuple[list[TextPiece], list[PreprocessedImage]]:
        """Expands the pictures, after checking the length of the text, since pictures are expensive."""
        self.text_limit.check(part.text for part in parts if isinstance(part, TextPiece))
        return expand_pictures(parts, self.image_config, self.prompt_format, self.fetcher, self.image_detail)

    def build_prompt(self, ids: Sequence[int], pictures: Sequence[PreprocessedImage]) -> Prompt:
        """The prompt of the ids of a text, its image tokens among them, and the pictures that these stand for."""
        num_tokens_by_image = [
            1 if self._uses_cross_attention else len(picture.frames) * self.image_config.tokens_per_frame
            for picture in pictures
        ]
        all_ids = [*self.special_prefix_ids(), *ids]
        prompt = build_prompt(
            all_ids, pictures, self.image_token_id, num_tokens_by_image, self.end_of_document_id
        )
        return prompt if self.adapter is None else prompt.with_adapter(self.adapter)

    def special_prefix_ids(self) -> list[int]:
        """The special tokens that the post-processor of `tokenizer.json` puts before every text, by their ids."""
        if not self.prompt_format.add_special_tokens:
            return []
        return self.tokenizer.encode("", add_special_tokens=True)
