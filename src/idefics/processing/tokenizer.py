"""Encodes text into token ids and decodes them, exactly as a checkpoint's `tokenizer.json` specifies.

Special tokens are recognised in trusted text only; in other text they are plain characters. Independent of chat
templates and pictures.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from idefics.errors import PromptTooLong, UnsupportedModel
from idefics.lazy import cached_property
from idefics.processing.aliased_tokenizer import (
    HUGE_TEXT_CHARACTERS,
    AliasedTokenizer,
    encode_without_gil,
    reject_long_text,
)
from idefics.processing.checkpoint_settings import read_text
from idefics.processing.special_tokens import (
    CONTROL_TOKEN_PREFIXES,
    DeclaredTokens,
    SpecialTokenIds,
    classify_special_tokens,
)
from idefics.processing.text_limit import preserves_non_space_text
from idefics.processing.token_decoder import TokenByteDecoder

if TYPE_CHECKING:
    import tokenizers


class TextPiece(NamedTuple):
    """Part of a prompt's text.

    Attributes:
        text: the characters.
        trusted: whether special tokens in it are recognised. In other text they are plain characters, apart from the
            instruction tokens that some checkpoints' cards tell users to write.
    """

    text: str
    trusted: bool


class Tokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        added_token_contents: the names of the added tokens of `tokenizer.json` (`<image>`, `<s>`).
        added_tokens: id -> added token, with how it is matched in text (`lstrip`, `single_word` and so on).
        token_by_role: tokens by role, such as "bos_token" -> "<s>", as chat templates read them.
        special_ids: ids of the tokens marked special: those that transformers hides with `skip_special_tokens`.
        strips_leading_space: whether decoding drops one space at the very beginning (SentencePiece adds one).
        preserves_non_space_text: whether the bytes of a text's tokens are those of the text, spaces aside.
        absorbs_spaces: whether some added token also matches the surrounding spaces, however many.

    Args:
        text: the content of a `tokenizer.json`. The library raises various exceptions for any other text.
        declared: what the checkpoint's other files say about its special tokens.
    """

    def __init__(self, text: str, declared: DeclaredTokens | None = None) -> None:
        import tokenizers

        self._backend_tokenizer = tokenizers.Tokenizer.from_str(text)
        self._backend_tokenizer.no_truncation()  # training settings that save_pretrained keeps
        self._backend_tokenizer.no_padding()
        self.added_tokens = dict(sorted(self._backend_tokenizer.get_added_tokens_decoder().items()))
        self._added_token_by_id = {id: token.content for id, token in self.added_tokens.items()}
        self.added_token_contents = frozenset(self._added_token_by_id.values())
        self._declared = DeclaredTokens() if declared is None else declared
        self.token_by_role = self._declared.token_by_role
        self.special_ids = frozenset(
            id
            for id, token in self.added_tokens.items()
            if token.special or token.content in self._declared.special_tokens
        )
        file = json.loads(text)
        self._decoder = TokenByteDecoder(self._backend_tokenizer, file["decoder"])
        self.strips_leading_space = self._decoder.strips_leading_space
        self.preserves_non_space_text = preserves_non_space_text(file)
        vocabulary = file["model"].get("vocab")
        own = vocabulary.items() if isinstance(vocabulary, dict) else ()
        self._id_by_control_like_token = {
            token: id for token, id in own if token.startswith(CONTROL_TOKEN_PREFIXES)
        }
        self.absorbs_spaces = any(token["lstrip"] or token["rstrip"] for token in file["added_tokens"])

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads `tokenizer.json` of a checkpoint folder, and what other files there say about its special tokens.

        Raises:
            UnsupportedModel: the file is missing, or one of them is broken.
        """
        path = Path(folder) / "tokenizer.json"
        if not path.exists():
            raise UnsupportedModel(_missing_file_message(path.parent))
        text = read_text(path)
        declared = DeclaredTokens.from_folder(path.parent)
        try:
            return cls(text, declared)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{path}: {error}") from None
        except (ImportError, MemoryError):  # not about the file
            raise
        except Exception as error:  # the library raises bare Exception for whatever is wrong with a file
            raise UnsupportedModel(f"{path} is not a tokenizer file ({error}): download it again") from None

    @cached_property
    def special_ids_by_kind(self) -> SpecialTokenIds:
        """The ids of special tokens by kind: control tokens, content, instructions."""
        return classify_special_tokens(
            self._id_by_control_like_token, self._added_token_by_id, self.special_ids, self._declared
        )

    @cached_property
    def _protected_token_by_id(self) -> dict[int, str]:
        """Tokens that untrusted text must not produce: added tokens, and control tokens of the vocabulary itself."""
        own = self.special_ids_by_kind.control_ids - self._added_token_by_id.keys()
        return self._added_token_by_id | {
            id: token for id in own if (token := self.id_to_token(id)) is not None
        }

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of trusted text.

        Args:
            text: special tokens in it are recognised.
            add_special_tokens: whether the file's post-processor adds its own, such as `<s>`.
        """
        ids: list[int] = self.encode_with_offsets(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_with_offsets(
        self, text: str, pair: str | None = None, *, add_special_tokens: bool
    ) -> tokenizers.Encoding:
        """The encoding of trusted text, or of a pair of texts: ids, and the characters that each id stands for."""
        return self._backend_tokenizer.encode(text, pair, add_special_tokens=add_special_tokens)

    def with_added_tokens(self, tokens: Sequence[str | tokenizers.AddedToken], *, special: bool) -> Tokenizer:
        """A copy of this tokenizer with more added tokens, `special` or not; existing tokens keep their ids."""
        import tokenizers

        library = tokenizers.Tokenizer.from_str(self._backend_tokenizer.to_str())
        add = library.add_special_tokens if special else library.add_tokens
        add(list(tokens))
        return Tokenizer(library.to_str(), self._declared)

    def encode_pieces(
        self, pieces: Iterable[TextPiece], *, max_tokens: int | None = None, num_pictures: int = 0
    ) -> list[int]:
        """Ids of the joined text. Special tokens are recognised in trusted pieces only, instruction tokens in all.

        Text between two recognised special tokens is tokenized as a whole, across the borders of pieces: unless
        untrusted text holds a special token, this is `encode` of the joined text.

        Args:
            max_tokens: the most ids; None: no limit.
            num_pictures: how many pictures the prompt has, for the error.

        Raises:
            PromptTooLong: there are more than `max_tokens` ids; TextTooLong where there are far more.
        """
        pieces = list(pieces)
        for piece in pieces:
            if max_tokens is not None and len(piece.text) > HUGE_TEXT_CHARACTERS:
                reject_long_text(self._backend_tokenizer, piece.text, max_tokens)
        encoding = encode_without_gil(self._backend_tokenizer, "".join(piece.text for piece in pieces))
        if max_tokens is not None and (count := len(encoding)) > max_tokens:
            del encoding  # the traceback would keep its 100 bytes per token
            raise PromptTooLong(count, max_tokens, num_pictures)
        return self._drop_forged_tokens(encoding, pieces)

    def encode_pieces_batch(self, texts: Sequence[Sequence[TextPiece]]) -> list[list[int]]:
        """As `encode_pieces` of each of many texts, but faster; no text may have a lone surrogate."""
        joined = ["".join(piece.text for piece in pieces) for pieces in texts]
        encodings = self._backend_tokenizer.encode_batch(joined, add_special_tokens=False)
        return [
            self._drop_forged_tokens(encoding, pieces)
            for encoding, pieces in zip(encodings, texts, strict=True)
        ]

    def _drop_forged_tokens(self, encoding: tokenizers.Encoding, pieces: Sequence[TextPiece]) -> list[int]:
        """The ids of an encoding of joined pieces; special tokens in untrusted ones are encoded as characters."""
        text = "".join(piece.text for piece in pieces)
        trusted_mask = b"".join(bytes([piece.trusted]) * len(piece.text) for piece in pieces)
        ids: list[int] = encoding.ids
        protected, instructions = self._protected_token_by_id, self.special_ids_by_kind.instruction_ids
        recognized, has_forged = [], False
        for index, id in enumerate(ids):
            if id in protected:
                offsets = encoding.token_to_chars(index)
                assert offsets is not None  # only a post-processor's tokens stand for no text
                # A token with "lstrip" or "rstrip" also matches the surrounding spaces.
                start = max(offsets[0], text.find(protected[id], *offsets))
                end = min(offsets[1], start + len(protected[id]))
                if id in instructions or all(trusted_mask[start:end]):
                    recognized.append((start, end, id))
                else:
                    has_forged = True
        return self._aliased_tokenizer.encode(text, recognized) if has_forged else ids

    @cached_property
    def _aliased_tokenizer(self) -> AliasedTokenizer:
        """A copy that recognises the protected tokens only by secret aliases."""
        return AliasedTokenizer(self._backend_tokenizer, self._protected_token_by_id, self._added_token_by_id)

    def decode(self, ids: Iterable[int], *, hidden_ids: Collection[int] | None = None) -> str:
        """The text of `ids`; each invalid sequence of UTF-8 becomes one replacement character (U+FFFD).

        Args:
            hidden_ids: ids that are left out; None: the control tokens.
        """
        text = self.decode_bytes(ids, hidden_ids=hidden_ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def decode_bytes(self, ids: Iterable[int], *, hidden_ids: Collection[int] | None = None) -> bytes:
        """The UTF-8 bytes of `ids`, which may end in part of a character; a space at the beginning is kept.

        Args:
            hidden_ids: ids that are left out; None: the control tokens.
        """
        if hidden_ids is None:
            hidden_ids = self.special_ids_by_kind.control_ids
        return b"".join(self._decoder.token_bytes(id) for id in ids if id not in hidden_ids)

    def added_tokens_below(self, vocab_size: int) -> frozenset[str]:
        """The names of the added tokens with an id below `vocab_size`, the rows of the model's embedding.

        Idefics2-8B-base has no row for its `<end_of_utterance>`.
        """
        return frozenset(content for id, content in self._added_token_by_id.items() if id < vocab_size)

    def token_to_id(self, content: str) -> int | None:
        """The id of a token, given as the vocabulary spells it; None if the vocabulary lacks it."""
        id: int | None = self._backend_tokenizer.token_to_id(content)
        return id

    def added_token_id(self, content: str) -> int:
        """The id of a token that is among `added_token_contents`."""
        return next(id for id, token in self._added_token_by_id.items() if token == content)

    def id_to_token(self, id: int) -> str | None:
        """The token of an id, as the vocabulary spells it; None if there is no such id."""
        content: str | None = self._backend_tokenizer.id_to_token(id)
        return content

    def get_vocab(self, *, added: bool = True) -> dict[str, int]:
        """Every token and its id, with or without added tokens."""
        tokens: dict[str, int] = self._backend_tokenizer.get_vocab(with_added_tokens=added)
        return tokens

    def to_json(self) -> str:
        """The content of a `tokenizer.json` that loads as this tokenizer."""
        text: str = self._backend_tokenizer.to_str(pretty=True)
        return text


def _missing_file_message(folder: Path) -> str:
    """The message about a folder without tokenizer.json, with what to do."""
    if (folder / "tokenizer.model").exists():
        return (
            f"{folder} has a tokenizer.model but no tokenizer.json: download it from the model's page, or "
            "make it once with transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    return f"{folder} has no tokenizer.json: is it a complete checkpoint?"
