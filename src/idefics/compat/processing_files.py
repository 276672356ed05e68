"""`ProcessorMixin`: the parts of a processor, and reading and writing its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

from idefics.compat.image_processing import ImageProcessor, size_settings
from idefics.compat.keyword_arguments import IGNORED_IMAGE_KWARGS, check_save_kwargs, split_kwargs
from idefics.compat.pretrained import PROCESSOR_FILES, JsonMixin, PretrainedMixin, StrPath, write_json
from idefics.compat.tokenization import CALL_KWARG_NAMES, DEFAULT_SETTINGS, PreTrainedTokenizer
from idefics.errors import BadSetting, UnknownArgument, UnsupportedModel
from idefics.models import family_for, read_checkpoint
from idefics.models.family import END_OF_UTTERANCE
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.processing.checkpoint_settings import read_json_object, read_preprocessor_config
from idefics.processing.picture_expansion import FAKE_IMAGE_TOKEN
from idefics.validation import describe_type

TOKENIZER_KWARGS = {*DEFAULT_SETTINGS, *CALL_KWARG_NAMES} - {"chat_template"}


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
    other_image_processor_types: ClassVar[tuple[type[ImageProcessor], ...]] = ()
    # The arguments of the constructor that `from_pretrained` takes too.
    constructor_kwarg_names = ("image_seq_len", "chat_template")
    attributes: ClassVar = ["image_processor", "tokenizer"]
    tokenizer_class = "AutoTokenizer"
    fake_image_token = TokenText(FAKE_IMAGE_TOKEN)
    image_token = TokenText(IMAGE_TOKEN)
    end_of_utterance_token = TokenText(END_OF_UTTERANCE)

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: PreTrainedTokenizer,
        image_seq_len: int | None = None,
        chat_template: str | None = None,
        **inert: Any,
    ) -> None:
        if unknown := inert.keys() - set(IGNORED_IMAGE_KWARGS):
            raise UnknownArgument(type(self).__name__, sorted(unknown), list(self.constructor_kwarg_names))
        if not isinstance(tokenizer, PreTrainedTokenizer):
            raise BadSetting(
                f"tokenizer is {describe_type(tokenizer)}; give one of idefics.compat, such as "
                "AutoTokenizer.from_pretrained(...)"
            )
        if not isinstance(image_processor, (self.image_processor_type, *self.other_image_processor_types)):
            raise UnsupportedModel(
                f"{type(self).__name__} needs an {self.image_processor_type.__name__}, "
                f"not a {type(image_processor).__name__}"
            )
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.image_seq_len = self.default_image_seq_len if image_seq_len is None else image_seq_len
        self._chat_template_source = tokenizer.chat_template if chat_template is None else chat_template
        self._set_prompt_format(tokenizer.codec.added_token_contents)

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
        tokenizer_kwargs, _ = split_kwargs(settings, TOKENIZER_KWARGS)
        tokenizer = tokenizer or PreTrainedTokenizer.from_pretrained(folder, **tokenizer_kwargs)
        preprocessor_config = read_preprocessor_config(folder)
        image_seq_len = read_json_object(folder / "processor_config.json").get("image_seq_len")
        added_tokens = tokenizer.codec.added_token_contents
        if (folder / "config.json").exists():
            checkpoint = read_checkpoint(folder)
            if checkpoint.family is not family_for(cls.model_type):
                raise UnsupportedModel(
                    f"{folder} is a checkpoint of {checkpoint.family.name}, not one for {cls.__name__}: "
                    "use AutoProcessor"
                )
            image_config = checkpoint.family.read_image_config(checkpoint.config, preprocessor_config)
            preprocessor_config |= size_settings(image_config)
            image_seq_len, text = image_config.tokens_per_frame, checkpoint.config.text
            added_tokens = tokenizer.codec.added_tokens_below(text.vocab_size + text.additional_vocab_size)
        image_processor = image_processor or cls.image_processor_type.from_dict(preprocessor_config)
        settings = {"image_seq_len": image_seq_len, **settings}
        constructor_kwargs, others = split_kwargs(settings, cls.constructor_kwarg_names)
        _, image_settings = split_kwargs(others, TOKENIZER_KWARGS)
        if image_settings:
            image_processor = image_processor.with_settings(**image_settings)
        processor = cls(image_processor, tokenizer, **constructor_kwargs)
        processor._set_prompt_format(added_tokens)
        return processor

    def _set_prompt_format(self, added_tokens: frozenset[str]) -> None:
        """Sets the prompt format and chat template; `added_tokens` are those that the embedding has rows for."""
        self._prompt_format = family_for(self.model_type).read_prompt_format(
            self._chat_template_source, added_tokens
        )
        self.chat_template = self._prompt_format.chat_template

    def save_pretrained(self, save_directory: StrPath, **keywords: Any) -> list[str]:
        """Writes the files of the image processor and the tokenizer, and processor_config.json.

        Returns:
            The paths of the files.
        """
        check_save_kwargs(keywords)
        folder, name = Path(save_directory), type(self).__name__
        image_settings = {**self.image_processor.to_dict(), "processor_class": name}
        settings = {"image_seq_len": self.image_seq_len, "processor_class": name}
        return [
            *self.tokenizer.write_files(folder, self.chat_template),
            write_json(folder / "preprocessor_config.json", image_settings),
            write_json(folder / "processor_config.json", settings),
        ]

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
