"""What the families' processors share: files, chat templates, and prompts of a batch made equal in length.

Thin over `processing.Processor`, which writes each prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from idefics.compat.features import BatchFeature, Fitting
from idefics.compat.folders import IGNORED_BY_PROCESSORS, folder_and_rest, write_json
from idefics.compat.image_inputs import fetcher
from idefics.compat.image_processing import ImageProcessor
from idefics.compat.processing_chat import conversations_of, shown, sources_of
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.config import ImagePlan
from idefics.errors import BadPrompt, UnsupportedModel
from idefics.models import family_for, read_checkpoint
from idefics.processing import settings
from idefics.processing.processor import Processor
from idefics.processing.templates import render_template
from idefics.prompt import Prompt

if TYPE_CHECKING:
    import os

TOKENIZER_WORDS = frozenset(inspect.signature(PreTrainedTokenizer).parameters) - {"codec", "chat_template"}


class BaseProcessor:
    """An image processor and a tokenizer, joined.

    Args:
        image_processor: makes pixels of pictures.
        tokenizer: makes ids of text.
        image_seq_len: tokens that stand for one frame of a picture; None is the family's own number.
        chat_template: Jinja source; None is the tokenizer's, or else the family's.
    """

    model_type: ClassVar[str]
    own_image_seq_len: ClassVar[int]
    image_processor_class: ClassVar[type[ImageProcessor]]

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: PreTrainedTokenizer,
        image_seq_len: int | None = None,
        chat_template: str | None = None,
    ) -> None:
        if not self._accepts(image_processor):
            raise UnsupportedModel(
                f"{type(self).__name__} needs an {self.image_processor_class.__name__}, "
                f"not a {type(image_processor).__name__}"
            )
        self.image_processor, self.tokenizer = image_processor, tokenizer
        self.image_seq_len = self.own_image_seq_len if image_seq_len is None else image_seq_len
        written = tokenizer.chat_template if chat_template is None else chat_template
        self._style = family_for(self.model_type).prompt(written, tokenizer.codec.added)
        self.chat_template = self._style.template

    @classmethod
    def _accepts(cls, image_processor: object) -> bool:
        return isinstance(image_processor, cls.image_processor_class)

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
                class; settings of the image processor (`size`, `do_image_splitting`, ...) and of the tokenizer
                (`padding_side`, ...) instead of those in the files.

        Raises:
            UnsupportedModel: the checkpoint is another family's.
        """
        folder, changes = folder_and_rest(
            pretrained_model_name_or_path, keywords, ignored=IGNORED_BY_PROCESSORS, needs="files"
        )
        words = {name: changes.pop(name) for name in changes.keys() & TOKENIZER_WORDS}
        tokenizer = PreTrainedTokenizer.from_pretrained(folder, **words)
        raw = settings.preprocessor(folder)
        if (folder / "config.json").exists():
            checkpoint = read_checkpoint(folder)
            if checkpoint.family is not family_for(cls.model_type):
                raise UnsupportedModel(
                    f"{folder} is a checkpoint of {checkpoint.family.name}, not one for {cls.__name__}: "
                    "use AutoProcessor"
                )
            plan = checkpoint.family.images(checkpoint.config, raw)
            return cls._of(
                cls.image_processor_class.from_plan(plan).changed(**changes), tokenizer, plan.tokens
            )
        tokens = settings.json_object(folder / "processor_config.json").get("image_seq_len")
        return cls._of(cls.image_processor_class.from_settings(raw).changed(**changes), tokenizer, tokens)

    @classmethod
    def _of(cls, image_processor: ImageProcessor, tokenizer: PreTrainedTokenizer, tokens: int | None) -> Self:
        return cls(image_processor, tokenizer, tokens)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes the files of image processor and tokenizer, and processor_config.json."""
        folder = Path(save_directory)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        name = type(self).__name__
        write_json(
            folder / "preprocessor_config.json", {**self.image_processor.to_dict(), "processor_class": name}
        )
        write_json(
            folder / "processor_config.json", {"image_seq_len": self.image_seq_len, "processor_class": name}
        )
        if self.chat_template:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")

    @property
    def model_input_names(self) -> list[str]:
        """What a call returns at most."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]

    def decode(self, *args: Any, **options: Any) -> str:
        """As the tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **options)

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        """As the tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **options)

    def __call__(self, **inputs: Any) -> BatchFeature:
        """Text and pictures to what a model reads."""
        raise NotImplementedError

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        **options: Any,
    ) -> Any:
        """A conversation, or a batch of them, through the chat template.

        Args:
            conversation: messages with "role" and "content": a text, or a list of texts, pictures and videos. A
                picture is named by "image", "url" or "path", or left to the `images` of a later call.
            chat_template: Jinja source instead of the checkpoint's.
            add_generation_prompt: end with the beginning of an answer.
            tokenize: return ids instead of text; needs a source for each picture.
            return_dict: with `tokenize`, return all that the model reads.
            return_tensors, options: with `tokenize`, as in the call.

        Raises:
            BadPrompt: a message is malformed; the error names it.
        """
        conversations, is_batch = conversations_of(conversation)
        template = self.chat_template if chat_template is None else chat_template
        names = self.tokenizer.special_tokens_map
        texts = [
            render_template(template, shown(turns), names, add_generation_prompt=add_generation_prompt).text
            for turns in conversations
        ]
        if not tokenize:
            if options or return_dict or return_tensors:
                word = next(iter(options), "return_dict" if return_dict else "return_tensors")
                raise TypeError(f"{word} has no meaning for text: give tokenize=True")
            return texts if is_batch else texts[0]
        for name, kind in (("images", "image"), ("videos", "video")):
            sources = [sources_of(turns, kind) for turns in conversations]
            if any(sources) and name in options:
                raise BadPrompt(
                    f"there are {name} in the messages and in {name}=...: give them in one of both"
                )
            if any(sources) or kind == "image":
                options.setdefault(name, sources)
        opening = self.tokenizer.bos_token
        if self._style.adds_special and opening and texts[0].startswith(opening):  # the template wrote it
            options.setdefault("add_special_tokens", False)
        batch = self(text=texts, return_tensors=return_tensors, **options)
        return batch if return_dict else batch["input_ids"]

    def _writer(self, plan: ImagePlan, *, adds_special: bool) -> Processor:
        """What writes this family's prompts."""
        return Processor(
            self.tokenizer.codec, plan, replace(self._style, adds_special=adds_special), fetcher()
        )

    def _rows(self, prompts: Sequence[Prompt], fitting: Fitting) -> dict[str, list[list[int]]]:
        """`input_ids` and `attention_mask`, as lists."""
        return {
            "input_ids": self.tokenizer.padded([prompt.ids for prompt in prompts], fitting),
            "attention_mask": fitting.pad([[1] * len(prompt) for prompt in prompts], 0),
        }


def cut(prompt: Prompt, kept: Sequence[int]) -> Prompt:
    """The prompt with these tokens only. A picture goes with the first of its places that is cut."""
    if len(kept) == len(prompt):
        return prompt
    new = {old: position for position, old in enumerate(kept)}
    whole = [index for index, places in enumerate(prompt.places) if new.keys() >= set(places)]
    number = {-1: -1, **{old: index for index, old in enumerate(whole)}}
    return Prompt(
        ids=tuple(prompt.ids[old] for old in kept),
        pictures=tuple(prompt.pictures[index] for index in whole),
        places=tuple(tuple(new[place] for place in prompt.places[index]) for index in whole),
        sees=tuple(number.get(prompt.sees[old], -1) for old in kept),
    )
