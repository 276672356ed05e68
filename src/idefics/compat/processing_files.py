"""`ProcessorMixin`: the parts of a processor, and reading and writing its files."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from idefics.compat.image_processing import ImageProcessor
from idefics.compat.keyword_arguments import IGNORED_IMAGE_KWARGS, check_save_kwargs
from idefics.compat.pretrained import PROCESSOR_FILES, PretrainedMixin
from idefics.compat.serialization import JsonMixin, write_json
from idefics.compat.tokenization import CALL_KWARG_NAMES, PreTrainedTokenizer
from idefics.compat.tokenization_files import write_chat_template
from idefics.config import ImageProcessorConfig, ModelConfig
from idefics.errors import BadSetting, UnknownArgument, UnsupportedModel
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
    "call_defaults",
}


class TokenText(str):
    """The text of a token, which is also its `content`, as in transformers before 4.48."""

    __slots__ = ()

    @property
    def content(self) -> str:
        """The text as a plain string."""
        return str(self)


class ProcessorMixin(PretrainedMixin, JsonMixin):
    """An image processor and a tokenizer in one.

    Args:
        image_processor: computes pixel values of images.
        tokenizer: encodes text.
        image_seq_len: tokens of one frame of an image; None: the family's number.
        chat_template: Jinja source; None: the tokenizer's, else the family's.

    Raises:
        BadSetting: the tokenizer is not one of this package.
        UnsupportedModel: the image processor is of another family.
    """

    file_selection = PROCESSOR_FILES
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
            raise UnknownArgument(
                type(self).__name__, sorted(unknown), sorted(self._constructor_kwarg_names())
            )
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
    def _from_folder(cls, folder: Path, **settings: Any) -> Self:
        """Reads a checkpoint's folder, or a processor that was saved alone.

        Args:
            settings: `image_processor` or `tokenizer`, in place of those in the files; arguments of the class; and
                settings of the image processor (`size`, ...) and of the tokenizer (`padding_side`, ...).

        Raises:
            UnsupportedModel: the checkpoint is of another family.
        """
        image_processor, tokenizer = (settings.pop(name, None) for name in cls.attributes)
        own_names = cls._constructor_kwarg_names()
        tokenizer_kwargs = {name: settings[name] for name in settings.keys() & TOKENIZER_KWARGS}
        constructor_kwargs = {name: settings[name] for name in settings.keys() & own_names}
        image_settings = {name: settings[name] for name in settings.keys() - TOKENIZER_KWARGS - own_names}
        tokenizer = tokenizer or PreTrainedTokenizer.from_pretrained(folder, **tokenizer_kwargs)
        preprocessor_config = checkpoint_settings.read_preprocessor_config(folder)
        model_config: ModelConfig | None = None
        image_seq_len: int | None
        if (folder / "config.json").exists():
            model_config, image_config = cls._read_checkpoint_configs(folder, preprocessor_config)
            preprocessor_config |= cls.image_processor_type.settings_from_processor_config(image_config)
            image_seq_len = image_config.tokens_per_frame
        else:
            processor_config = checkpoint_settings.read_json_object(folder / "processor_config.json")
            image_seq_len = processor_config.get("image_seq_len")
        image_processor = image_processor or cls.image_processor_type.from_dict(preprocessor_config)
        if image_settings:
            image_processor = image_processor.with_settings(**image_settings)
        processor = cls._from_parts(image_processor, tokenizer, image_seq_len, constructor_kwargs)
        if model_config is not None:
            num_rows = model_config.text.vocab_size + model_config.text.additional_vocab_size
            processor._set_prompt_format(tokenizer.codec.added_tokens_below(num_rows))
        return processor

    @classmethod
    def _read_checkpoint_configs(
        cls, folder: Path, preprocessor_config: Mapping[str, Any]
    ) -> tuple[ModelConfig, ImageProcessorConfig]:
        checkpoint = read_checkpoint(folder)
        if checkpoint.family is not family_for(cls.model_type):
            raise UnsupportedModel(
                f"{folder} is a checkpoint of {checkpoint.family.name}, not one for {cls.__name__}: use AutoProcessor"
            )
        return checkpoint.config, checkpoint.family.read_image_config(checkpoint.config, preprocessor_config)

    @classmethod
    def _constructor_kwarg_names(cls) -> set[str]:
        """The arguments of the constructor that `from_pretrained` takes too."""
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
        """Sets the prompt format and chat template; `added_tokens` are those that the embedding has rows for."""
        self._prompt_format = family_for(self.model_type).read_prompt_format(
            self._chat_template_source, added_tokens
        )
        self.chat_template = self._prompt_format.chat_template

    def save_pretrained(self, save_directory: str | os.PathLike[str], **keywords: Any) -> list[str]:
        """Writes the files of the image processor and the tokenizer, and processor_config.json.

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
        config = {"image_seq_len": self.image_seq_len, "processor_class": name}
        written = [write_json(folder / "processor_config.json", config)]
        written += write_chat_template(folder, self.chat_template)
        return list(files | dict.fromkeys(written))

    def to_dict(self) -> dict[str, Any]:
        """The settings of the image processor, the number of tokens of a frame, and the name of the class."""
        return {
            "image_processor": self.image_processor.to_dict(),
            "image_seq_len": self.image_seq_len,
            "processor_class": type(self).__name__,
        }

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The names of the parts: "image_processor" and "tokenizer"."""
        return list(cls.attributes)

    @property
    def image_token_id(self) -> int | None:
        """The id of `<image>`; None where the vocabulary lacks it."""
        return self.tokenizer.codec.token_to_id(self.image_token)

    @property
    def fake_image_token_id(self) -> int | None:
        """The id of the token before and after images; None where the vocabulary lacks it."""
        return self.tokenizer.codec.token_to_id(self.fake_image_token)
