"""The tokens of a tokenizer with the names of the guides: vocabulary, special tokens, ids to text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from idefics.errors import BadPrompt, BadSetting
from idefics.processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

    Ids = int | Sequence[int] | np.ndarray[Any, np.dtype[Any]] | torch.Tensor
    NewTokens = str | tokenizers.AddedToken | Sequence[str | tokenizers.AddedToken]

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
SPECIAL_TOKEN_LIST_NAMES = ("additional_special_tokens", "extra_special_tokens")
# English as it is written, from words that a space was put between.
CLEANED_UP_SPACES = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
}
CLEANED_UP_SPACES |= {" 've": "'ve", " 're": "'re"}


class VocabularyMixin:
    """Tokens, their ids and their parts.

    Attributes:
        codec: text to ids and back.
        bos_token, eos_token, unk_token, pad_token: the tokens with a part to play; None where there is none. Each may
            be set, and so may its id (`pad_token_id`).
        sep_token, cls_token, mask_token: likewise; these models have no use for them.
        name_or_path: where it was loaded from; "" where it was not.
    """

    name_or_path: str = ""

    codec: Tokenizer
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    sep_token: str | None
    cls_token: str | None
    mask_token: str | None

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, as the vocabulary spells them."""
        return [self._id_to_token(id) for id in self.codec.encode(text, add_special_tokens=False)]

    def decode(
        self,
        token_ids: Ids | Sequence[Sequence[int]],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = False,
    ) -> str:
        """The text of a row of ids.

        Args:
            skip_special_tokens: leave out the tokens that are marked special.
            clean_up_tokenization_spaces: take the space before English punctuation away.
        """
        ids = np.atleast_1d(np.asarray(token_ids.cpu() if isinstance(token_ids, torch.Tensor) else token_ids))
        if ids.ndim != 1:
            raise BadPrompt(
                f"decode reads one row of ids, and this has the shape {ids.shape}: use batch_decode"
            )
        if ids.size and ids.min() < 0:
            raise BadPrompt(f"{ids.min()} is no token's id: take it out before decoding")
        skipped_ids = self.codec.special_ids if skip_special_tokens else ()
        text = self.codec.decode(ids.tolist(), hidden_ids=skipped_ids)
        for spaced, written in CLEANED_UP_SPACES.items() if clean_up_tokenization_spaces else ():
            text = text.replace(spaced, written)
        return text

    def batch_decode(
        self,
        sequences: Iterable[Ids],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = False,
    ) -> list[str]:
        """The texts of rows of ids; arguments as in `decode`."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Ids of tokens as the vocabulary spells them; of a token that it lacks, the unknown token's or None."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        id = self.codec.token_to_id(tokens)
        return id if id is not None else self.unk_token_id

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str]:
        """Tokens as the vocabulary spells them; "" for ids that it lacks."""
        if isinstance(ids, int):
            return self._id_to_token(ids)
        skipped_ids = self.codec.special_ids if skip_special_tokens else ()
        return [self._id_to_token(int(id)) for id in ids if int(id) not in skipped_ids]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of tokens as the vocabulary spells them."""
        return self.decode(self.convert_tokens_to_ids(tokens))

    def _id_to_token(self, id: int) -> str:
        return self.codec.id_to_token(id) or ""

    def get_vocab(self) -> dict[str, int]:
        """Every token, added ones included, and its id."""
        return self.codec.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """The tokens that tokenizer.json adds to its vocabulary or lifts out of it, and their ids."""
        return {
            token: id
            for token, id in self.codec.get_vocab().items()
            if token in self.codec.added_token_contents
        }

    @property
    def added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        """The tokens of `get_added_vocab` by their ids, in this order, with how each is matched."""
        return {**self.codec.added_tokens}

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """The ids of the tokens of `added_tokens_decoder`."""
        return {token.content: id for id, token in self.added_tokens_decoder.items()}

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = True,
    ) -> list[int]:
        """1 for each id of a special token, else 0, for ids that hold their special tokens already."""
        if token_ids_1 is not None or not already_has_special_tokens:
            raise BadSetting(
                "get_special_tokens_mask reads ids that hold their special tokens already: give "
                "already_has_special_tokens=True, or call the tokenizer with return_special_tokens_mask=True"
            )
        special = set(self.all_special_ids)
        return [int(id in special) for id in token_ids_0]

    def __len__(self) -> int:
        return len(self.codec.get_vocab())

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, those that were added later left out."""
        return len(self.codec.get_vocab(added=False))

    @property
    def vocab(self) -> dict[str, int]:
        """As `get_vocab`."""
        return self.get_vocab()

    def add_tokens(self, new_tokens: NewTokens, special_tokens: bool = False) -> int:
        """Adds tokens to the vocabulary, with the next free ids; the model's rows are added by
        `resize_token_embeddings`.

        Args:
            new_tokens: a token or a list of them; known ones keep their ids.
            special_tokens: mark them special, so that `skip_special_tokens` leaves them out.

        Returns:
            How many were not known.
        """
        is_list = isinstance(new_tokens, Sequence) and not isinstance(new_tokens, str)
        old_size = len(self)
        self.codec = self.codec.with_added_tokens(
            list(new_tokens) if is_list else [new_tokens],  # type: ignore[arg-type,list-item]
            special=special_tokens,
        )
        return len(self) - old_size

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_additional_special_tokens: bool = True
    ) -> int:
        """Gives tokens a part to play, and adds those that the vocabulary lacks.

        Args:
            special_tokens_dict: "bos_token", "eos_token", "unk_token" or "pad_token" -> a token;
                "additional_special_tokens" (or "extra_special_tokens") -> a list of more.
            replace_additional_special_tokens: of no effect: all tokens that are marked special stay so.

        Returns:
            How many were not known.
        """
        if unknown := special_tokens_dict.keys() - {*SPECIAL_TOKEN_NAMES, *SPECIAL_TOKEN_LIST_NAMES}:
            raise BadSetting(
                f"{min(unknown)!r} is no part that a token plays; give {', '.join((*SPECIAL_TOKEN_NAMES, *SPECIAL_TOKEN_LIST_NAMES))}"
            )
        tokens: list[Any] = []
        for name, value in special_tokens_dict.items():
            tokens += value if name in SPECIAL_TOKEN_LIST_NAMES else [value]
            if name in SPECIAL_TOKEN_NAMES:
                setattr(self, name, str(value) if isinstance(value, str) else value.content)
        return self.add_tokens(tokens, special_tokens=True)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The tokens with a part to play, by their part."""
        token_by_name = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "unk_token": self.unk_token,
            "sep_token": self.sep_token,
            "pad_token": self.pad_token,
            "cls_token": self.cls_token,
            "mask_token": self.mask_token,
        }
        return {name: token for name, token in token_by_name.items() if token is not None}

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the tokens that are left out of decoded text on request."""
        return sorted(self.codec.special_ids)

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens of `all_special_ids`."""
        return [self._id_to_token(id) for id in self.all_special_ids]

    @property
    def additional_special_tokens(self) -> list[str]:
        """The special tokens that have no part to play."""
        named_tokens = set(self.special_tokens_map.values())
        return [token for token in self.all_special_tokens if token not in named_tokens]

    def _token_to_id(self, token: str | None) -> int | None:
        return None if token is None else self.codec.token_to_id(token)

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text."""
        return self._token_to_id(self.bos_token)

    @bos_token_id.setter
    def bos_token_id(self, id: int | None) -> None:
        self.bos_token = self._require_token(id)

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""
        return self._token_to_id(self.eos_token)

    @eos_token_id.setter
    def eos_token_id(self, id: int | None) -> None:
        self.eos_token = self._require_token(id)

    @property
    def unk_token_id(self) -> int | None:
        """Id that stands for what the vocabulary lacks."""
        return self._token_to_id(self.unk_token)

    @unk_token_id.setter
    def unk_token_id(self, id: int | None) -> None:
        self.unk_token = self._require_token(id)

    @property
    def pad_token_id(self) -> int | None:
        """Id of the token that fills up short rows."""
        return self._token_to_id(self.pad_token)

    @pad_token_id.setter
    def pad_token_id(self, id: int | None) -> None:
        self.pad_token = self._require_token(id)

    def _require_token(self, id: int | None) -> str | None:
        token = None if id is None else self.codec.id_to_token(id)
        if id is not None and token is None:
            raise BadSetting(f"{id} is no token's id; the vocabulary has {len(self)} tokens")
        return token
