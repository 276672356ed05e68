"""What a processor joins, and its files: read from a checkpoint or from a folder of its own, and written."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from idefics.compat.image_processing import IGNORED_IMAGE_KWARGS, ImageProcessor, check_save_kwargs
from idefics.compat.pretrained_folder import IGNORED_PROCESSOR_KWARGS, resolve_pretrained_folder, write_json
from idefics.compat.tokenization import CALL_KWARG_NAMES, PreTrainedTokenizer
from idefics.errors import BadSetting, UnsupportedModel
from idefics.models import family_for, read_checkpoint
from idefics.models.family import END_OF_UTTERANCE
from idefics.processing import checkpoint_settings
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.processing.image_placeholders import FAKE_IMAGE_TOKEN
from idefics.validation import describe_type

if TYPE_CHECKING:
    import os

TOKENIZER_KWARGS = {*inspect.signature(PreTrainedTokenizer).parameters, *CALL_KWARG_NAMES} - {
    "codec",
    "chat_template",
    "call_words",
}


class TokenText(str):
    """A token's text, which is also its `content`, as transformers had it until 4.48."""

    __slots__ = ()

    @property
    def content(self) -> str:
        """The text."""
        return str(self)


class ProcessorMixin:
    """An image processor and a tokenizer, joined.

    Args:
        image_processor: makes pixels of pictures.
        tokenizer: makes ids of text.
        image_seq_len: tokens that stand for one frame of a picture; None is the family's own number.
        chat_template: Jinja source; None is the tokenizer's, or else the family's.
    """

    model_type: ClassVar[str]
    default_image_seq_len: ClassVar[int]
    image_processor_type: ClassVar[type[ImageProcessor]]
    attributes: ClassVar = ["image_processor", "tokenizer"]
    tokenizer_class: ClassVar = "AutoTokenizer"
    fake_image_token: ClassVar = TokenText(FAKE_IMAGE_TOKEN)
    image_token: ClassVar = TokenText(IMAGE_TOKEN)
    end_of_utterance_token: ClassVar = TokenText(END_OF_UTTERANCE)

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: PreTrainedTokenizer,
        image_seq_len: int | None = None,
        chat_template: str | None = None,
        **inert: Any,
    ) -> None:
        if unknown := inert.keys() - IGNORED_IMAGE_KWARGS.keys():
            raise TypeError(f"{type(self).__name__} has no argument {min(unknown)!r}")
        if not isinstance(tokenizer, PreTrainedTokenizer):
            raise BadSetting(
                f"tokenizer is {describe_type(tokenizer)}; give one of idefics.compat, such as "
                "AutoTokenizer.from_pretrained(...)"
            )
        if not self._accepts_image_processor(image_processor):
            raise UnsupportedModel(
                f"{type(self).__name__} needs an {self.image_processor_type.__name__}, "
                f"not a {type(image_processor).__name__}"
            )
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.image_seq_len = self.default_image_seq_len if image_seq_len is None else image_seq_len
        self._chat_template_source = tokenizer.chat_template if chat_template is None else chat_template
        self._set_prompt_format(tokenizer.codec.added_token_contents)

    @classmethod
    def _accepts_image_processor(cls, image_processor: object) -> bool:
        return isinstance(image_processor, cls.image_processor_type)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        **keywords: Any,
    ) -> Self:
        """Reads a checkpoint's folder, or a processor that was saved alone.

        Args:
            pretrained_model_name_or_path: a folder, a hub id or a short name.
            keywords: which files are read, as in `folder_and_rest`; `image_seq_len` and `chat_template`, as in the
                class; an `image_processor` or a `tokenizer` instead of the files' own; settings of the image processor
                (`size`, `do_image_splitting`, ...) and of the tokenizer (`padding_side`, ...) instead of those in the
                files.

        Raises:
            UnsupportedModel: the checkpoint is another family's.
        """
        folder, changes = resolve_pretrained_folder(
            pretrained_model_name_or_path, keywords, ignored=IGNORED_PROCESSOR_KWARGS, needs="files"
        )
        parts = {name: changes.pop(name) for name in cls.attributes if name in changes}
        tokenizer_kwargs = {name: changes[name] for name in changes.keys() & TOKENIZER_KWARGS}
        constructor_kwargs = {name: changes[name] for name in changes.keys() & cls._constructor_kwarg_names()}
        changes = {
            name: changes[name] for name in changes.keys() - TOKENIZER_KWARGS - cls._constructor_kwarg_names()
        }
        tokenizer = parts.get("tokenizer") or PreTrainedTokenizer.from_pretrained(folder, **tokenizer_kwargs)
        raw = checkpoint_settings.read_preprocessor_config(folder)
        if (folder / "config.json").exists():
            checkpoint = read_checkpoint(folder)
            if checkpoint.family is not family_for(cls.model_type):
                raise UnsupportedModel(
                    f"{folder} is a checkpoint of {checkpoint.family.name}, not one for {cls.__name__}: "
                    "use AutoProcessor"
                )
            image_config = checkpoint.family.read_image_config(checkpoint.config, raw)
            text = checkpoint.config.text
            image_processor = parts.get("image_processor") or cls.image_processor_type.from_processor_config(
                image_config
            )
            processor = cls._from_parts(
                image_processor.with_settings(**changes) if changes else image_processor,
                tokenizer,
                image_config.tokens_per_frame,
                constructor_kwargs,
            )
            processor._set_prompt_format(
                tokenizer.codec.added_tokens_below(text.vocab_size + text.additional_vocab_size)
            )
            return processor
        tokens = checkpoint_settings.read_json_object(folder / "processor_config.json").get("image_seq_len")
        image_processor = parts.get("image_processor") or cls.image_processor_type.from_preprocessor_config(
            raw
        )
        return cls._from_parts(
            image_processor.with_settings(**changes) if changes else image_processor,
            tokenizer,
            tokens,
            constructor_kwargs,
        )

    @classmethod
    def _constructor_kwarg_names(cls) -> set[str]:
        """The arguments of the class that `from_pretrained` takes too."""
        return {"image_seq_len", "chat_template"}

    @classmethod
    def _from_parts(
        cls,
        image_processor: ImageProcessor,
        tokenizer: PreTrainedTokenizer,
        image_seq_len: int | None,
        constructor_kwargs: Mapping[str, Any],
    ) -> Self:
        return cls(image_processor, tokenizer, **{"image_seq_len": image_seq_len, **constructor_kwargs})

    def _set_prompt_format(self, added_tokens: frozenset[str]) -> None:
        """Takes the family's dialogue back where the model has no row for its tokens: a base checkpoint has none."""
        self._prompt_format = family_for(self.model_type).read_prompt_format(
            self._chat_template_source, added_tokens
        )
        self.chat_template = self._prompt_format.chat_template

    def save_pretrained(self, save_directory: str | os.PathLike[str], **keywords: Any) -> list[str]:
        """Writes the files of image processor and tokenizer, and processor_config.json.

        Returns:
            The paths of the files.
        """
        check_save_kwargs(keywords)
        folder = Path(save_directory)
        files = dict.fromkeys(self.tokenizer.save_pretrained(folder))
        files |= dict.fromkeys(self.image_processor.save_pretrained(folder))
        name = type(self).__name__
        write_json(
            folder / "preprocessor_config.json", {**self.image_processor.to_dict(), "processor_class": name}
        )
        write_json(
            folder / "processor_config.json", {"image_seq_len": self.image_seq_len, "processor_class": name}
        )
        files[str(folder / "processor_config.json")] = None
        if self.chat_template:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
            files[str(folder / "chat_template.jinja")] = None
        return list(files)

    def to_dict(self) -> dict[str, Any]:
        """The settings: of the image processor, how many tokens stand for a frame, and the name of the class."""
        return {
            "image_processor": self.image_processor.to_dict(),
            "image_seq_len": self.image_seq_len,
            "processor_class": type(self).__name__,
        }

    def to_json_string(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Writes `to_json_string` into a file."""
        Path(json_file_path).write_text(self.to_json_string(), encoding="utf-8")

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The names of what a processor joins."""
        return list(cls.attributes)

    @property
    def image_token_id(self) -> int | None:
        """Id of the token that stands for a picture in a text; None where the vocabulary lacks it."""
        return self.tokenizer.codec.token_to_id(self.image_token)

    @property
    def fake_image_token_id(self) -> int | None:
        """Id of the token around pictures; None where the vocabulary lacks it."""
        return self.tokenizer.codec.token_to_id(self.fake_image_token)
