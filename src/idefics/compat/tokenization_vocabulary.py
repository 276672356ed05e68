"""The vocabulary of the guides' tokenizer: tokens and ids, special tokens, decoding."""

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
# What `clean_up_tokenization_spaces` replaces.
CLEANED_UP_SPACES = {
    " .": ".",
    " ?": "?",
    " !": "!",
    " ,": ",",
    " ' ": "'",
    " n't": "n't",
    " 'm": "'m",
    " 's": "'s",
    " 've": "'ve",
    " 're": "'re",
}


class SpecialTokenId:
    """The id of a special token, as an attribute of a tokenizer: setting it sets the token.

    Args:
        token_name: the attribute that holds the token, such as "pad_token".
    """

    def __init__(self, token_name: str) -> None:
        self.token_name = token_name

    def __get__(self, tokenizer: VocabularyMixin, owner: type) -> int | None:
        token = vars(tokenizer)[self.token_name]
        return None if token is None else tokenizer.codec.token_to_id(token)

    def __set__(self, tokenizer: VocabularyMixin, id: int | None) -> None:
        token = None if id is None else tokenizer.codec.id_to_token(id)
        if id is not None and token is None:
            raise BadSetting(f"there is no token of id {id}; the vocabulary has {len(tokenizer)} tokens")
        setattr(tokenizer, self.token_name, token)


class VocabularyMixin:
    """The vocabulary of a tokenizer: tokens, their ids and their roles.

    Attributes:
        codec: encodes text and decodes ids.
        bos_token, eos_token, unk_token, pad_token: the special tokens; None where there is none. Each can be set, and
            so can its id (`pad_token_id`).
        sep_token, cls_token, mask_token: special tokens that these models do not use.
        name_or_path: where the tokenizer was loaded from; "" where it was not.
    """

    name_or_path: str = ""
    bos_token_id = SpecialTokenId("bos_token")
    eos_token_id = SpecialTokenId("eos_token")
    unk_token_id = SpecialTokenId("unk_token")
    pad_token_id = SpecialTokenId("pad_token")

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
        """Decodes a row of ids to text.

        Args:
            skip_special_tokens: leave out the tokens that are marked special.
            clean_up_tokenization_spaces: remove the space before English punctuation.

        Raises:
            BadPrompt: more than one row, or an id below 0.
        """
        ids = torch.atleast_1d(torch.as_tensor(token_ids))
        if ids.ndim != 1:
            raise BadPrompt(
                f"decode reads one row of ids, and this has the shape {tuple(ids.shape)}: use batch_decode"
            )
        if ids.numel() and ids.min() < 0:
            raise BadPrompt(f"{ids.min()} is not the id of a token: remove it before decoding")
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
        """Decodes rows of ids to texts; arguments as in `decode`."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The ids of tokens, as the vocabulary spells them; an unknown one has that of the unknown token, or None."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        id = self.codec.token_to_id(tokens)
        return id if id is not None else self.unk_token_id

    def convert_ids_to_tokens(
        self, ids: int | Iterable[int], skip_special_tokens: bool = False
    ) -> str | list[str]:
        """The tokens of ids, as the vocabulary spells them; "" for ids that it lacks."""
        if isinstance(ids, int):
            return self._id_to_token(ids)
        skipped_ids = self.codec.special_ids if skip_special_tokens else ()
        return [self._id_to_token(int(id)) for id in ids if int(id) not in skipped_ids]

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Decodes tokens, given as the vocabulary spells them, to text."""
        return self.decode(self.convert_tokens_to_ids(tokens))

    def _id_to_token(self, id: int) -> str:
        """The token of an id, as the vocabulary spells it; "" if it lacks the id."""
        return self.codec.id_to_token(id) or ""

    def get_vocab(self) -> dict[str, int]:
        """Every token, added ones included, and its id."""
        return self.codec.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """The `added_tokens` of tokenizer.json and those added later, with their ids."""
        return self.added_tokens_encoder

    @property
    def added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        """The added tokens by their ids, in this order, each with how it is matched in a text."""
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
        """1 for each id of a special token, else 0; the ids must contain their special tokens already."""
        if token_ids_1 is not None or not already_has_special_tokens:
            raise BadSetting(
                "get_special_tokens_mask reads ids that contain their special tokens already: give "
                "already_has_special_tokens=True, or call the tokenizer with return_special_tokens_mask=True"
            )
        return [int(id in self.codec.special_ids) for id in token_ids_0]

    def __len__(self) -> int:
        return len(self.codec.get_vocab())

    @property
    def vocab_size(self) -> int:
        """The number of tokens without those that were added later."""
        return len(self.codec.get_vocab(added=False))

    @property
    def vocab(self) -> dict[str, int]:
        """All tokens and their ids, as `get_vocab` returns them."""
        return self.get_vocab()

    def add_tokens(self, new_tokens: NewTokens, special_tokens: bool = False) -> int:
        """Adds tokens to the vocabulary, with the next free ids.

        The model's embedding is extended by its `resize_token_embeddings`.

        Args:
            new_tokens: a token or a list of tokens; those of the vocabulary keep their ids.
            special_tokens: mark them special, so that `skip_special_tokens` leaves them out.

        Returns:
            The number of tokens that are new.
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
        """Sets special tokens, and adds those that the vocabulary lacks.

        Args:
            special_tokens_dict: "bos_token", "eos_token", "unk_token" or "pad_token" -> a token;
                "additional_special_tokens" (or "extra_special_tokens") -> a list of more.
            replace_additional_special_tokens: of no effect: tokens that are marked special stay so.

        Returns:
            The number of tokens that are new.

        Raises:
            BadSetting: there is no such role.
        """
        if unknown := special_tokens_dict.keys() - {*SPECIAL_TOKEN_NAMES, *SPECIAL_TOKEN_LIST_NAMES}:
            names = ", ".join((*SPECIAL_TOKEN_NAMES, *SPECIAL_TOKEN_LIST_NAMES))
            raise BadSetting(f"{min(unknown)!r} is not the name of a special token; give {names}")
        tokens: list[Any] = []
        for name, value in special_tokens_dict.items():
            tokens += value if name in SPECIAL_TOKEN_LIST_NAMES else [value]
            if name in SPECIAL_TOKEN_NAMES:
                setattr(self, name, str(value))
        return self.add_tokens(tokens, special_tokens=True)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens that are set, by the names of their roles."""
        return {name: token for name in SPECIAL_TOKEN_NAMES if (token := vars(self)[name]) is not None}

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of all special tokens, which `skip_special_tokens` leaves out of decoded text."""
        return sorted(self.codec.special_ids)

    @property
    def all_special_tokens(self) -> list[str]:
        """All special tokens, in the order of their ids."""
        return [self._id_to_token(id) for id in self.all_special_ids]

    @property
    def additional_special_tokens(self) -> list[str]:
        """The special tokens that have no role of their own, such as `<image>`."""
        named_tokens = set(self.special_tokens_map.values())
        return [token for token in self.all_special_tokens if token not in named_tokens]
