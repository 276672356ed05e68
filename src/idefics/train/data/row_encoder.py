"""`RowEncoder`: token ids of examples, many at a time, and which of them are learned."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from idefics.errors import BadPrompt, IdeficsError
from idefics.processing.continuations import pieces_from_last_special_token
from idefics.processing.processor import Processor
from idefics.processing.tokenizer import TextPiece
from idefics.train.data.examples import TrainingExample
from idefics.train.data.passages import Passage, PassageLayout
from idefics.train.data.placeholders import PlaceholderExpander

Pieces = tuple[TextPiece, ...]


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """The tokens of an example, each picture of which has one image token.

    Attributes:
        ids: token ids.
        is_target: for each id whether it is learned.
    """

    ids: list[int]
    is_target: list[bool]


@dataclass(frozen=True, slots=True)
class _EncodedPassage:
    """A passage to be tokenized.

    Attributes:
        context: what is before it in the row, from the last special token on; its ids are those of no other text.
        pieces: the passage.
    """

    context: Pieces
    pieces: Pieces


class RowEncoder:
    """Tokenizes examples for one checkpoint.

    Each prompt is tokenized as inference tokenizes it. An answer follows it as the text would be tokenized as a whole;
    where an answer would change the tokens of the prompt's end, it is tokenized apart, as the model has to write it.

    Args:
        processor: of the checkpoint.
        stop_ids: the ids that end an answer.
        expander: of the checkpoint.
    """

    def __init__(
        self, processor: Processor, stop_ids: Collection[int], expander: PlaceholderExpander
    ) -> None:
        self._layout = PassageLayout(processor, stop_ids)
        self._tokenizer, self._image_token_id = processor.tokenizer, processor.image_token_id
        self._prefix_ids = processor.special_prefix_ids()
        self._first_picture, self._next_picture = (
            expander.short_piece(follows_picture=follows_picture) for follows_picture in (False, True)
        )

    def encode(self, examples: Sequence[TrainingExample]) -> list[EncodedExample | IdeficsError]:
        """The tokens of each example, or why it has none."""
        laid_out: list[list[_EncodedPassage] | IdeficsError] = []
        for example in examples:
            try:
                laid_out.append(self._with_contexts(self._layout.lay_out(example)))
            except IdeficsError as error:
                laid_out.append(type(error)(f"{example.name}: {error}"))
        passages = [one for passages in laid_out if isinstance(passages, list) for one in passages]
        # Contexts, and short answers, occur again and again.
        ids_of = self._encode_each(
            {one.context for one in passages} | {one.context + one.pieces for one in passages}
        )
        encoded: list[EncodedExample | IdeficsError] = []
        for example, row in zip(examples, laid_out, strict=True):
            if isinstance(row, IdeficsError):
                encoded.append(row)
                continue
            ids = list(self._prefix_ids)
            is_target = [False] * len(ids)
            for number, passage in enumerate(row):
                new_ids = self._following_ids(passage, ids_of)
                ids += new_ids
                is_target += [number % 2 == 1] * len(new_ids)
            is_target[0] = False  # nothing is before it that it could follow from
            num_pictures = ids.count(self._image_token_id)
            encoded.append(
                EncodedExample(ids, is_target)
                if num_pictures == len(example.pictures)
                else BadPrompt(
                    f"{example.name} has {len(example.pictures)} pictures, but its text places {num_pictures}"
                )
            )
        return encoded

    def _with_contexts(self, passages: Iterable[Passage]) -> list[_EncodedPassage]:
        """Passages with short placeholders for pictures, and with what is before each."""
        before: list[TextPiece] = []
        found, follows_picture = [], False
        for passage in passages:
            pieces = []
            for part in passage:
                is_text = isinstance(part, TextPiece)
                if isinstance(part, TextPiece):
                    pieces.append(part)
                else:
                    pieces.append(self._next_picture if follows_picture else self._first_picture)
                follows_picture = not is_text
            context = pieces_from_last_special_token(self._tokenizer, before)
            found.append(_EncodedPassage(tuple(context), tuple(pieces)))
            before = [*before, *pieces]
        return found

    def _encode_each(self, texts: Collection[Pieces]) -> dict[Pieces, list[int]]:
        """The ids of each text."""
        ordered = list(texts)
        return dict(zip(ordered, self._tokenizer.encode_pieces_batch(ordered), strict=True))

    def _following_ids(self, passage: _EncodedPassage, ids_of: dict[Pieces, list[int]]) -> list[int]:
        """The ids of a passage after those of its context.

        Raises:
            BadPrompt: it cannot be tokenized apart from its context.
        """
        context_ids, whole_ids = ids_of[passage.context], ids_of[passage.context + passage.pieces]
        if whole_ids[: len(context_ids)] == context_ids:
            return whole_ids[len(context_ids) :]
        # A tokenizer may put a space before any text: then the passage's own is left out.
        text = self._tokenizer.decode_bytes(whole_ids, hidden_ids=())
        first, *rest = passage.pieces
        for pieces in (passage.pieces, (TextPiece(first.text.removeprefix(" "), first.trusted), *rest)):
            ids = self._tokenizer.encode_pieces(pieces)
            if self._tokenizer.decode_bytes([*context_ids, *ids], hidden_ids=()) == text:
                return ids
        raise BadPrompt("this tokenizer cannot tell an answer from the prompt before it")
