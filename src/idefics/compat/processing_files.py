"""What a processor joins, and its files: read from a checkpoint or from a folder of its own, and written."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from idefics.calls import kind_of
from idefics.compat.folders import IGNORED_BY_PROCESSORS, folder_and_rest, write_json
from idefics.compat.image_processing import INERT, ImageProcessor, refuse_upload
from idefics.compat.tokenization import CALL_WORDS, PreTrainedTokenizer
from idefics.errors import BadSetting, UnsupportedModel
from idefics.models import family_for, read_checkpoint
from idefics.models.family import TURN_END
from idefics.processing import settings
from idefics.processing.chat import IMAGE
from idefics.processing.marks import FAKE

if TYPE_CHECKING:
    import os

TOKENIZER_WORDS = {*inspect.signature(PreTrainedTokenizer).parameters, *CALL_WORDS} - {
    "codec",
    "chat_template",
    "call_words",
}


class Token(str):
    """A token's text, which is also its `content`, as transformers had it until 4.48."""

    __slots__ = ()

    @property
    def content(self) -> str:
        """The text."""
        return str(self)


class SavedProcessor:
    """An image processor and a tokenizer, joined.

    Args:
        image_processor: makes pixels of pictures.
        tokenizer: makes ids of text.
        image_seq_len: tokens that stand for one frame of a picture; None is the family's own number.
        chat_template: Jinja source; None is the tokenizer's, or else the family's.
    """

    model_type: ClassVar[str]
    own_image_seq_len: ClassVar[int]
    image_processor_type: ClassVar[type[ImageProcessor]]
    attributes: ClassVar = ["image_processor", "tokenizer"]
    tokenizer_class: ClassVar = "AutoTokenizer"
    fake_image_token: ClassVar = Token(FAKE)
    image_token: ClassVar = Token(IMAGE)
    end_of_utterance_token: ClassVar = Token(TURN_END)

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: PreTrainedTokenizer,
        image_seq_len: int | None = None,
        chat_template: str | None = None,
        **inert: Any,
    ) -> None:
        if unknown := inert.keys() - INERT.keys():
            raise TypeError(f"{type(self).__name__} has no argument {min(unknown)!r}")
        if not isinstance(tokenizer, PreTrainedTokenizer):
            raise BadSetting(
                f"tokenizer is {kind_of(tokenizer)}; give one of idefics.compat, such as "
                "AutoTokenizer.from_pretrained(...)"
            )
        if not self._accepts(image_processor):
            raise UnsupportedModel(
                f"{type(self).__name__} needs an {self.image_processor_type.__name__}, "
                f"not a {type(image_processor).__name__}"
            )
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.image_seq_len = self.own_image_seq_len if image_seq_len is None else image_seq_len
        self._written = tokenizer.chat_template if chat_template is None else chat_template
        self._know(tokenizer.codec.added)

    @classmethod
    def _accepts(cls, image_processor: object) -> bool:
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
        folder, changes = folder_and_rest(
            pretrained_model_name_or_path, keywords, ignored=IGNORED_BY_PROCESSORS, needs="files"
        )
        parts = {name: changes.pop(name) for name in cls.attributes if name in changes}
        words = {name: changes[name] for name in changes.keys() & TOKENIZER_WORDS}
        own = {name: changes[name] for name in changes.keys() & cls._own_words()}
        changes = {name: changes[name] for name in changes.keys() - TOKENIZER_WORDS - cls._own_words()}
        tokenizer = parts.get("tokenizer") or PreTrainedTokenizer.from_pretrained(folder, **words)
        raw = settings.preprocessor(folder)
        if (folder / "config.json").exists():
            checkpoint = read_checkpoint(folder)
            if checkpoint.family is not family_for(cls.model_type):
                raise UnsupportedModel(
                    f"{folder} is a checkpoint of {checkpoint.family.name}, not one for {cls.__name__}: "
                    "use AutoProcessor"
                )
            plan = checkpoint.family.images(checkpoint.config, raw)
            text = checkpoint.config.text
            images = parts.get("image_processor") or cls.image_processor_type.from_plan(plan)
            made = cls._of(images.changed(**changes) if changes else images, tokenizer, plan.tokens, own)
            made._know(tokenizer.codec.added_below(text.vocabulary + text.additional_vocabulary))
            return made
        tokens = settings.json_object(folder / "processor_config.json").get("image_seq_len")
        images = parts.get("image_processor") or cls.image_processor_type.from_settings(raw)
        return cls._of(images.changed(**changes) if changes else images, tokenizer, tokens, own)

    @classmethod
    def _own_words(cls) -> set[str]:
        """The arguments of the class that `from_pretrained` takes too."""
        return {"image_seq_len", "chat_template"}

    @classmethod
    def _of(
        cls,
        image_processor: ImageProcessor,
        tokenizer: PreTrainedTokenizer,
        tokens: int | None,
        own: Mapping[str, Any],
    ) -> Self:
        return cls(image_processor, tokenizer, **{"image_seq_len": tokens, **own})

    def _know(self, added: frozenset[str]) -> None:
        """Takes the family's dialogue back where the model has no row for its tokens: a base checkpoint has none."""
        self._style = family_for(self.model_type).prompt(self._written, added)
        self.chat_template = self._style.template

    def save_pretrained(self, save_directory: str | os.PathLike[str], **keywords: Any) -> list[str]:
        """Writes the files of image processor and tokenizer, and processor_config.json.

        Returns:
            The paths of the files.
        """
        refuse_upload(keywords)
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
        return self.tokenizer.codec.token_id(self.image_token)

    @property
    def fake_image_token_id(self) -> int | None:
        """Id of the token around pictures; None where the vocabulary lacks it."""
        return self.tokenizer.codec.token_id(self.fake_image_token)
