"""Text to ids and back, exactly as a checkpoint's `tokenizer.json` says.

Knows which text is trusted; does not know templates, pictures or turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from idefics.errors import PromptTooLong, UnsupportedModel
from idefics.lazy import cached_property
from idefics.processing.special_tokens import (
    CONTROL_TOKEN_PREFIXES,
    DeclaredTokens,
    SpecialTokens,
    classify_special_tokens,
)
from idefics.processing.text_limit import is_lossless
from idefics.processing.token_aliases import (
    HUGE_TEXT_CHARACTERS,
    TokenAliases,
    encode_without_gil,
    reject_long_text,
)

if TYPE_CHECKING:
    import tokenizers

SENTENCEPIECE_SPACE = "\u2581"  # what SentencePiece writes for a space
BYTE_TOKEN_PATTERN = re.compile(
    r"<0x([0-9A-Fa-f]{2})>"
)  # how it spells one byte of a character that it lacks


class TextPiece(NamedTuple):
    """Part of a prompt's text. Special tokens are honoured in trusted text, else plain characters.

    In text that is not trusted a checkpoint's instructions are honoured too, if its card gives any.
    """

    text: str
    trusted: bool


class Tokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        added_token_contents: each token that `tokenizer.json` adds to its vocabulary or lifts out of it (`<image>`, `<s>`).
        added_tokens: these by their ids, with how each is matched.
        special_ids: ids of those that are marked special: what transformers leaves out with `skip_special_tokens`.
        strips_leading_space: whether decoding drops one space at the very beginning (SentencePiece puts one there).
        is_lossless: whether the bytes of a text's tokens are those of the text, blanks apart.
        absorbs_spaces: whether an added token takes the blanks around it, however many.
    """

    def __init__(self, text: str, declared: DeclaredTokens | None = None) -> None:
        """Takes the text of a `tokenizer.json`; any exception means that it is not one.

        Args:
            declared: what the checkpoint's other files say of its special tokens.
        """
        import tokenizers

        self._backend_tokenizer = tokenizers.Tokenizer.from_str(text)
        self._backend_tokenizer.no_truncation()  # settings of somebody's training run that save_pretrained keeps
        self._backend_tokenizer.no_padding()
        self.added_tokens = dict(sorted(self._backend_tokenizer.get_added_tokens_decoder().items()))
        self._added_token_by_id = {id: token.content for id, token in self.added_tokens.items()}
        self.added_token_contents = frozenset(self._added_token_by_id.values())
        # Added tokens that stand for text as the vocabulary's own do: with its marks for spaces.
        self._encoded_added_ids = frozenset(
            id
            for id, token in self.added_tokens.items()
            if token.normalized
            and not token.special
            and self._backend_tokenizer.id_to_token(id) != token.content
        )
        self._declared = DeclaredTokens() if declared is None else declared
        marked = self._declared.special_tokens | self._declared.role_tokens
        self.special_ids = frozenset(
            id for id, token in self.added_tokens.items() if token.special or token.content in marked
        )
        file = json.loads(text)
        self._is_byte_level, self.strips_leading_space = _parse_decoder(file["decoder"])
        self.is_lossless = is_lossless(file)
        vocabulary = file["model"].get("vocab")
        own = vocabulary.items() if isinstance(vocabulary, dict) else ()
        self._id_by_control_like_token = {
            token: id for token, id in own if token.startswith(CONTROL_TOKEN_PREFIXES)
        }
        self.absorbs_spaces = any(token["lstrip"] or token["rstrip"] for token in file["added_tokens"])
        self._bytes_by_id: dict[int, bytes] = {}

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads `tokenizer.json` of a checkpoint folder, and what other files there say of its special tokens.

        Raises:
            UnsupportedModel: the file is missing, or one of them is broken.
        """
        path = Path(folder) / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UnsupportedModel(_missing_file_message(path.parent)) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UnsupportedModel(
                f"{path} cannot be read ({type(error).__name__}): download it again"
            ) from None
        declared = DeclaredTokens.from_folder(path.parent)
        try:
            return cls(text, declared)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{path}: {error}") from None
        except (ImportError, MemoryError):  # say nothing of the file
            raise
        except Exception as error:  # the library raises bare Exception for whatever is wrong with a file
            raise UnsupportedModel(f"{path} is not a tokenizer file ({error}): download it again") from None

    @property
    def token_by_role(self) -> Mapping[str, str]:
        """The tokens with a role by their role, such as "bos_token", as templates read them."""
        return self._declared.token_by_role

    @cached_property
    def special_tokens(self) -> SpecialTokens:
        """Which special tokens are control tokens, and which are content."""
        return classify_special_tokens(
            self._id_by_control_like_token, self._added_token_by_id, self.special_ids, self._declared
        )

    @cached_property
    def _protected_token_by_id(self) -> dict[int, str]:
        """Each token that plain characters must not become: added ones, and control tokens of the vocabulary's own."""
        own = self.special_tokens.control_ids - self._added_token_by_id.keys()
        return self._added_token_by_id | {
            id: token for id in own if (token := self.id_to_token(id)) is not None
        }

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of trusted text.

        Args:
            text: special tokens in it are honoured.
            add_special_tokens: whether the file's post-processor adds its own, such as a beginning-of-text.
        """
        ids: list[int] = self.encode_with_offsets(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_with_offsets(
        self, text: str, pair: str | None = None, *, add_special_tokens: bool
    ) -> tokenizers.Encoding:
        """Ids of trusted text, or of a pair of texts, with the characters that each stands for."""
        return self._backend_tokenizer.encode(text, pair, add_special_tokens=add_special_tokens)

    def with_added_tokens(self, tokens: Sequence[str | tokenizers.AddedToken], *, special: bool) -> Tokenizer:
        """This tokenizer with more added tokens, marked special or not; those that it has keep their ids."""
        import tokenizers

        library = tokenizers.Tokenizer.from_str(self._backend_tokenizer.to_str())
        add = library.add_special_tokens if special else library.add_tokens
        add(list(tokens))
        return Tokenizer(library.to_str(), self._declared)

    def encode_pieces(self, pieces: Iterable[TextPiece], *, max_tokens: int | None = None) -> list[int]:
        """Ids of the joined text, where special tokens are honoured in trusted pieces, and instructions in all.

        Text between two honoured special tokens is tokenised as one, across the borders of pieces: where no
        special token is forged, this is `encode` of the joined text.

        Raises:
            PromptTooLong: there are more than `max_tokens`; TextTooLong where there are far more.
        """
        text, trusted_mask = "", bytearray()
        for piece in pieces:
            if max_tokens is not None and len(piece.text) > HUGE_TEXT_CHARACTERS:
                reject_long_text(self._backend_tokenizer, piece.text, max_tokens)
            text += piece.text
            trusted_mask += bytes([piece.trusted]) * len(piece.text)
        encoding = encode_without_gil(self._backend_tokenizer, text)
        if max_tokens is not None and (count := len(encoding)) > max_tokens:
            del encoding  # a hundred bytes a token, which the traceback would keep
            raise PromptTooLong(count, max_tokens, pictures=0)
        ids: list[int] = encoding.ids
        protected, instructions = self._protected_token_by_id, self.special_tokens.instruction_ids
        honored, has_forged = [], False
        for index, id in enumerate(ids):
            if id in protected:
                offsets = encoding.token_to_chars(index)
                assert offsets is not None  # only a post-processor's tokens stand for no text
                # A token with "lstrip" or "rstrip" swallows the spaces beside it.
                start = max(offsets[0], text.find(protected[id], *offsets))
                end = min(offsets[1], start + len(protected[id]))
                if id in instructions or all(trusted_mask[start:end]):
                    honored.append((start, end, id))
                else:
                    has_forged = True
        return self._encode_with_aliases(text, honored) if has_forged else ids

    def _encode_with_aliases(self, text: str, honored: list[tuple[int, int, int]]) -> list[int]:
        """Ids of `text`, special tokens only at `honored` (start, end, id)."""
        parts, last = [], 0
        for start, end, id in honored:
            parts += [text[last:start], self._aliases.alias_by_token[self._protected_token_by_id[id]]]
            last = end
        return self._aliases.encode("".join(parts) + text[last:])

    @cached_property
    def _aliases(self) -> TokenAliases:
        return TokenAliases(self._backend_tokenizer, self._protected_token_by_id, self._added_token_by_id)

    def pieces_from_last_special_token(self, pieces: Sequence[TextPiece]) -> list[TextPiece]:
        """The end of the pieces from the last honoured special token on; all of them where there is none."""
        for index in reversed(range(len(pieces))):
            text, trusted = pieces[index]
            starts = [match.start() for match in self._added_token_pattern.finditer(text)] if trusted else []
            if starts:
                return [TextPiece(text[starts[-1] :], trusted=True), *pieces[index + 1 :]]
        return list(pieces)

    @cached_property
    def _added_token_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.added_token_contents, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def decode(self, ids: Iterable[int], *, hidden_ids: Collection[int] | None = None) -> str:
        """Text of `ids`; each broken piece of UTF-8 becomes one replacement character (U+FFFD).

        Args:
            hidden_ids: ids that are left out; None: the control tokens.
        """
        text = self.decode_bytes(ids, hidden_ids=hidden_ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self.strips_leading_space else text

    def decode_bytes(self, ids: Iterable[int], *, hidden_ids: Collection[int] | None = None) -> bytes:
        """UTF-8 of `ids`, where a token may hold part of a character; the first blank is not stripped."""
        if hidden_ids is None:
            hidden_ids = self.special_tokens.control_ids
        return b"".join(self._token_bytes(id) for id in ids if id not in hidden_ids)

    def _token_bytes(self, id: int) -> bytes:
        known = self._bytes_by_id.get(id)
        if known is None:
            known = self._bytes_by_id[id] = self._compute_token_bytes(id)
        return known

    def _compute_token_bytes(self, id: int) -> bytes:
        if id in self._added_token_by_id and id not in self._encoded_added_ids:
            return self._added_token_by_id[id].encode()
        token = self._backend_tokenizer.id_to_token(id)
        if token is None:  # models have more rows than their tokenizers have tokens
            return b""
        if self._is_byte_level and BYTE_BY_CHARACTER.keys() >= set(token):
            return bytes(BYTE_BY_CHARACTER[character] for character in token)
        if byte := BYTE_TOKEN_PATTERN.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace(SENTENCEPIECE_SPACE, " ").encode()

    def added_tokens_below(self, vocab_size: int) -> frozenset[str]:
        """Those of `added` that a model with so many rows has: Idefics2-8B-base lacks its `<end_of_utterance>`."""
        return frozenset(content for id, content in self._added_token_by_id.items() if id < vocab_size)

    def token_to_id(self, content: str) -> int | None:
        """Id of a token, or None where the vocabulary lacks it."""
        id: int | None = self._backend_tokenizer.token_to_id(content)
        return id

    def id_to_token(self, id: int) -> str | None:
        """The token as the vocabulary spells it, or None where there is none."""
        content: str | None = self._backend_tokenizer.id_to_token(id)
        return content

    def get_vocab(self, *, added: bool = True) -> dict[str, int]:
        """Every token and its id, with or without those that were added later."""
        tokens: dict[str, int] = self._backend_tokenizer.get_vocab(with_added_tokens=added)
        return tokens

    def to_json(self) -> str:
        """The text of a `tokenizer.json` that makes this tokenizer."""
        text: str = self._backend_tokenizer.to_str(pretty=True)
        return text


def _parse_decoder(decoder: Mapping[str, Any] | None) -> tuple[bool, bool]:
    """The file's "decoder" -> (is it byte-level?, does it strip the first blank?)."""
    steps = [] if decoder is None else decoder.get("decoders", [decoder])
    step_by_type = {step["type"]: step for step in steps}
    if set(step_by_type) == {"ByteLevel"}:
        return True, False
    if step_by_type and set(step_by_type) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        strips_leading_space = step_by_type.get("Strip", {}).get("start", 0) > 0
        return False, strips_leading_space or step_by_type.get("Metaspace", {}).get(
            "prepend_scheme", "never"
        ) != "never"
    raise UnsupportedModel(
        f"its decoder is {'+'.join(step_by_type) or 'missing'}; "
        "only byte-level and SentencePiece-like tokenizers are known"
    )


def _missing_file_message(folder: Path) -> str:
    if (folder / "tokenizer.model").exists():
        return (
            f"{folder} has a tokenizer.model but no tokenizer.json: download it from the model's page, or "
            "make it once with transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    return f"{folder} has no tokenizer.json: is it a complete checkpoint?"


def _bytes_to_unicode() -> dict[int, str]:
    """GPT-2's spelling of bytes (its encoder.py): printable ones as themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(others)}


BYTE_BY_CHARACTER = {character: byte for byte, character in _bytes_to_unicode().items()}
