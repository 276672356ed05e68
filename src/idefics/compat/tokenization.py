"""The tokenizer with the calls of the guides: text to ids, rows to a batch, ids to text.

Thin over `processing.Tokenizer`, which follows `tokenizer.json` literally. Special tokens in the text are honoured:
it is the caller's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch

from idefics.compat.features import NO_LIMIT, BatchFeature, Fitting, Side
from idefics.compat.folders import IGNORED_BY_PROCESSORS, folder_and_rest, write_json
from idefics.errors import BadPrompt, BadSetting
from idefics.processing import settings
from idefics.processing.templates import render_template
from idefics.processing.tokenizer import Tokenizer

if TYPE_CHECKING:
    import os

    Ids = int | Sequence[int] | np.ndarray[Any, np.dtype[Any]] | torch.Tensor

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
# What a Llama tokenizer calls them, where no file says otherwise.
CUSTOMARY = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
# English as it is written, from words that a space was put between.
CLEANED = {" .": ".", " ?": "?", " !": "!", " ,": ",", " ' ": "'", " n't": "n't", " 'm": "'m", " 's": "'s"}
CLEANED |= {" 've": "'ve", " 're": "'re"}


class PreTrainedTokenizer:
    """A checkpoint's tokenizer.

    Args:
        codec: text to ids and back.
        bos_token, eos_token, unk_token, pad_token: the tokens with a part to play; None where there is none.
        padding_side: "left", as generation goes on from the right end of a row, unless a checkpoint's file says else.
        truncation_side: where rows that are too long lose tokens.
        model_max_length: tokens of the longest text; 10^20 and more is no limit.
        chat_template: Jinja source, or "".
    """

    model_input_names: ClassVar = ["input_ids", "attention_mask"]
    is_fast: ClassVar = True

    def __init__(
        self,
        codec: Tokenizer,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
        pad_token: str | None = None,
        padding_side: Side = "left",
        truncation_side: Side = "right",
        model_max_length: int = NO_LIMIT,
        chat_template: str = "",
    ) -> None:
        self.codec = codec
        self.bos_token, self.eos_token = bos_token, eos_token
        self.unk_token, self.pad_token = unk_token, pad_token
        self.padding_side, self.truncation_side = padding_side, truncation_side
        self.model_max_length, self.chat_template = model_max_length, chat_template

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        **keywords: Any,
    ) -> Self:
        """Reads tokenizer.json, and from tokenizer_config.json and special_tokens_map.json what they say of it.

        Args:
            pretrained_model_name_or_path: a folder, a hub id or a short name.
            keywords: which files are read, as in `folder_and_rest`; arguments of the class, instead of what the files
                say.
        """
        folder, changes = folder_and_rest(
            pretrained_model_name_or_path, keywords, ignored=IGNORED_BY_PROCESSORS, needs="files"
        )
        codec = Tokenizer.load(folder)
        files = {
            **settings.json_object(folder / "special_tokens_map.json"),
            **settings.json_object(folder / "tokenizer_config.json"),
        }
        known = {name: files[name] for name in ("padding_side", "truncation_side") if files.get(name)}
        known["model_max_length"] = int(files.get("model_max_length") or NO_LIMIT)
        known["chat_template"] = settings.chat_template(folder)
        for name in NAMED:
            customary = CUSTOMARY[name] if CUSTOMARY[name] in codec.added else None
            known[name] = _content(files.get(name)) or customary
        return cls(codec, **{**known, **changes})

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.codec.to_json(), encoding="utf-8")
        named = {name: token for name, token in self.special_tokens_map.items() if isinstance(token, str)}
        write_json(
            folder / "tokenizer_config.json",
            {
                **named,
                "model_max_length": self.model_max_length,
                "padding_side": self.padding_side,
                "tokenizer_class": "PreTrainedTokenizerFast",
                "truncation_side": self.truncation_side,
            },
        )
        if self.chat_template:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: Side | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool = True,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Ids of a text or of a batch of texts; see `Fitting` for how long the rows become.

        Args:
            add_special_tokens: whether what tokenizer.json adds by itself, such as `<s>`, is added.

        Returns:
            `input_ids` and `attention_mask`: T numbers for one text, B rows for a batch; tensors are always (B, T).
        """
        fitting = self.fitting(
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors
        )
        texts = [text] if isinstance(text, str) else text
        opening = self.opening() if add_special_tokens else []
        rows = [self._row(one, opening, fitting) for one in texts]
        entries: dict[str, Any] = {"input_ids": self.padded(rows, fitting)}
        if return_attention_mask:
            entries["attention_mask"] = fitting.pad([[1] * len(row) for row in rows], 0)
        if isinstance(text, str) and return_tensors is None:
            entries = {name: batch[0] for name, batch in entries.items()}
        return fitting.batch(entries)

    def fitting(
        self,
        padding: bool | str,
        truncation: bool | str | None,
        max_length: int | None,
        padding_side: Side | None,
        pad_to_multiple_of: int | None,
        return_tensors: str | None,
    ) -> Fitting:
        """How rows of this tokenizer become a batch."""
        side, ends = padding_side or self.padding_side, (self.truncation_side, self.model_max_length)
        return Fitting(padding, truncation, max_length, side, pad_to_multiple_of, return_tensors, *ends)

    def opening(self) -> list[int]:
        """What tokenizer.json itself puts before a text."""
        return self.codec.encode("", adds_special=True)

    def _row(self, text: str, opening: list[int], fitting: Fitting) -> list[int]:
        if not isinstance(text, str):
            raise BadPrompt(f"a text is a {type(text).__name__}: give a string, or a list of strings")
        ids = self.codec.encode(text, adds_special=bool(opening))
        return [ids[position] for position in fitting.kept(len(ids), opening=len(opening))]

    def padded(self, rows: Sequence[Sequence[int]], fitting: Fitting) -> list[list[int]]:
        """Rows of ids of one length, or as they are where nothing asks for it."""
        if self.pad_token_id is None and fitting.width([len(row) for row in rows]) is not None:
            if len({len(row) for row in rows}) > 1:
                raise BadSetting("this tokenizer has no token to pad with: set its pad_token")
            return fitting.pad(rows, 0)
        return fitting.pad(rows, self.pad_token_id or 0)

    def encode(self, text: str, **options: Any) -> Any:
        """The `input_ids` of a text; options as in the call."""
        return self(text, **options)["input_ids"]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, as the vocabulary spells them."""
        return [self._token(id) for id in self.codec.encode(text, adds_special=False)]

    def decode(
        self,
        token_ids: Ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
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
        hidden = self.codec.special_ids if skip_special_tokens else ()
        text = self.codec.decode(ids.tolist(), hidden=hidden)
        for spaced, written in CLEANED.items() if clean_up_tokenization_spaces else ():
            text = text.replace(spaced, written)
        return text

    def batch_decode(
        self,
        sequences: Iterable[Ids],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[str]:
        """The texts of rows of ids; arguments as in `decode`."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        """Ids of tokens as the vocabulary spells them; of a token that it lacks, the unknown token's or None."""
        if isinstance(tokens, list):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        id = self.codec.token_id(tokens)
        return id if id is not None else self.unk_token_id

    def convert_ids_to_tokens(self, ids: int | Iterable[int]) -> str | list[str]:
        """Tokens as the vocabulary spells them; "" for ids that it lacks."""
        return self._token(ids) if isinstance(ids, int) else [self._token(int(id)) for id in ids]

    def _token(self, id: int) -> str:
        return self.codec.token(id) or ""

    def apply_chat_template(
        self, conversation: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False
    ) -> str:
        """A conversation's text through the checkpoint's template, its turns as they are."""
        return render_template(
            self.chat_template,
            conversation,
            self.special_tokens_map,
            add_generation_prompt=add_generation_prompt,
        ).text

    def get_vocab(self) -> dict[str, int]:
        """Every token, added ones included, and its id."""
        return self.codec.vocabulary()

    def __len__(self) -> int:
        return len(self.codec.vocabulary())

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, those that were added later left out."""
        return len(self.codec.vocabulary(added=False))

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The tokens with a part to play, by their part."""
        parts = dict(
            zip(NAMED, (self.bos_token, self.eos_token, self.unk_token, self.pad_token), strict=True)
        )
        return {name: token for name, token in parts.items() if token is not None}

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of the tokens that are left out of decoded text on request."""
        return sorted(self.codec.special_ids)

    @property
    def all_special_tokens(self) -> list[str]:
        """The tokens of `all_special_ids`."""
        return [self._token(id) for id in self.all_special_ids]

    bos_token_id = property(lambda self: self._id(self.bos_token), doc="Id of the token that begins a text.")
    eos_token_id = property(lambda self: self._id(self.eos_token), doc="Id of the token that ends a text.")
    unk_token_id = property(
        lambda self: self._id(self.unk_token), doc="Id that stands for what the vocabulary lacks."
    )
    pad_token_id = property(
        lambda self: self._id(self.pad_token), doc="Id of the token that fills up short rows."
    )

    def _id(self, token: str | None) -> int | None:
        return None if token is None else self.codec.token_id(token)


def _content(token: str | Mapping[str, Any] | None) -> str | None:
    """A special token is written as a string, or as an object with its properties."""
    return token["content"] if isinstance(token, Mapping) else token
