"""Idefics' processor: prompts of text and pictures in any order."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

import numpy as np

from idefics.compat.features import BatchFeature, Fitting, Side
from idefics.compat.image_inputs import is_grouped, nested
from idefics.compat.image_processing import ImageProcessor
from idefics.compat.image_processing_idefics import IdeficsImageProcessor, Transform, alike
from idefics.compat.processing import BaseProcessor, cut
from idefics.compat.processing_masks import assistant_mask
from idefics.compat.processing_options import VIDEO_WORDS, takes_groups, without_neutral_options
from idefics.compat.processing_places import fill, pictures_for, texts_of
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.errors import BadPrompt, BadSetting
from idefics.messages import Picture
from idefics.processing.chat import IMAGE
from idefics.processing.fetch import is_remote
from idefics.prompt import Prompt


class IdeficsProcessor(BaseProcessor):
    """An Idefics image processor and a Llama tokenizer, joined.

    A call returns `input_ids` and `attention_mask` (B, T), `pixel_values` (B, P, 3, side, side), P the most pictures of
    a prompt, zeros where there are less, and `image_attention_mask` (B, T, P), which says what picture a token sees:
    its latest. Without any pictures: one of zeros, and a mask of falsehoods.

    Args:
        image_processor: makes pixels of pictures.
        tokenizer: makes ids of text.
        image_size: the image processor's own; 224 asks nothing.
        add_end_of_utterance_token: what calls do that do not say it themselves.
        chat_template: Jinja source; None is the dialogue of the instruct checkpoints.
    """

    model_type: ClassVar = "idefics"
    own_image_seq_len: ClassVar = 1
    image_processor_type: ClassVar = IdeficsImageProcessor
    image_processor_class: ClassVar = "IdeficsImageProcessor"
    image_processor: IdeficsImageProcessor

    def __init__(
        self,
        image_processor: IdeficsImageProcessor,
        tokenizer: PreTrainedTokenizer,
        image_size: int = 224,
        add_end_of_utterance_token: bool | None = None,
        chat_template: str | None = None,
        **inert: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **inert)
        if image_size not in {224, image_processor.image_size}:
            raise BadSetting(
                f"image_size is {image_size}, and the image processor's is {image_processor.image_size}: "
                "give it to the image processor"
            )
        self.add_end_of_utterance_token = add_end_of_utterance_token

    @classmethod
    def _own_words(cls) -> set[str]:
        return {"chat_template", "add_end_of_utterance_token"}

    @classmethod
    def _of(
        cls,
        image_processor: ImageProcessor,
        tokenizer: PreTrainedTokenizer,
        tokens: int | None,
        own: Mapping[str, Any],
    ) -> Self:
        return cls(cast(IdeficsImageProcessor, image_processor), tokenizer, **own)

    @property
    def model_input_names(self) -> list[str]:
        """What a call returns."""
        return [*super().model_input_names, "image_attention_mask"]

    @takes_groups
    def __call__(
        self,
        prompts: Any = None,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        transform: Transform | None = None,
        add_eos_token: bool = False,
        add_end_of_utterance_token: bool | None = None,
        debug: bool = False,
        return_tensors: str | None = "pt",
        *,
        text: Any = None,
        images: Any = None,
        padding_side: Side | None = None,
        pad_to_multiple_of: int | None = None,
        add_special_tokens: bool | None = None,
        return_attention_mask: bool | None = True,
        input_data_format: str | None = None,
        generated: Sequence[Sequence[tuple[int, int]]] | None = None,
        **keywords: Any,
    ) -> BatchFeature:
        """Prompts to what the model reads.

        Args:
            prompts: one prompt, a list of texts and pictures; or a batch, a list of such lists. A picture is an
                address (http(s) or data URI), a PIL picture, an array or a tensor; all other text is text. Spaces
                at the ends of a text are dropped.
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors: see `Fitting`.
            transform: called with each picture instead of the usual steps; returns a tensor (3, side, side).
            add_eos_token: end every prompt with `</s>`.
            add_end_of_utterance_token: put `<end_of_utterance>` between neighbouring texts; None: where the
                checkpoint has it.
            debug: write to standard error what each prompt became.
            text: another name of `prompts`; with `images`, a text or a list of texts.
            images: pictures for `text`: one for each text, before it; or a list for each text, after it. Where the
                text has places (`<image>`), they are filled instead.
            add_special_tokens: of no effect: `<s>` always begins a prompt, and nothing else is added.
            return_attention_mask: False leaves `attention_mask` out.
            input_data_format: where an array's channels are, if its shape does not say it.
            generated: of each text, the (start, end) in characters of what the assistant says: `assistant_masks` is
                returned too.
            keywords: settings of the image processor, for this call; words of transformers' call that ask for nothing.

        Raises:
            BadPrompt: texts and pictures do not fit together.
            BadPicture: a picture cannot be opened.
        """
        if (prompts is None) == (text is None) or (prompts is not None and images is not None):
            raise BadPrompt("give prompts, or text, or text and images")
        fitting = self.tokenizer.fitting(
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors
        )
        separates = add_end_of_utterance_token
        separates = self.add_end_of_utterance_token if separates is None else separates
        said = {
            name: value for name, value in keywords.items() if name not in VIDEO_WORDS
        }  # it reads no videos
        image_settings = without_neutral_options(type(self).__name__, said)
        maker = self.image_processor.changed(**image_settings)
        documents = _batch(prompts if text is None else text) if images is None else _joined(text, images)
        writer = self._writer(maker.plan(), adds_special=False)
        prepared = (maker.prepared(items, transform, input_data_format) for items in documents)
        written = [writer.document(parts, add_end_of_utterance_token=separates) for parts in prepared]
        if add_eos_token:
            written = [self._ended(prompt) for prompt in written]
        fitted = [cut(prompt, fitting.kept(len(prompt))) for prompt in written]
        if debug:
            self._show(fitted)
        seen = self._seen(maker.plan().side, fitted, fitting)
        rows = self._rows(fitted, fitting)
        if not return_attention_mask:
            del rows["attention_mask"]
        if generated:
            made = zip(texts_of(text), written, generated, strict=True)
            masks = [assistant_mask(writer, one, prompt, spans) for one, prompt, spans in made]
            rows["assistant_masks"] = fitting.pad([fitting.cut(mask) for mask in masks], 0)
        return fitting.batch({**rows, **seen})

    def _ended(self, prompt: Prompt) -> Prompt:
        if self.tokenizer.eos_token_id is None:
            raise BadSetting("add_eos_token is True, but the tokenizer has no eos_token: set it")
        return replace(
            prompt, ids=(*prompt.ids, self.tokenizer.eos_token_id), sees=(*prompt.sees, prompt.sees[-1])
        )

    def _seen(self, side: int, prompts: Sequence[Prompt], fitting: Fitting) -> dict[str, Any]:
        """`pixel_values` and `image_attention_mask`."""
        frames = [[frame for picture in prompt.pictures for frame in picture.frames] for prompt in prompts]
        most = max(map(len, frames))
        rows = fitting.pad([prompt.sees for prompt in prompts], -1)
        if (
            fitting.padding_side == "right"
        ):  # what comes after a text sees what its end sees, as when it goes on
            for row, prompt in zip(rows, prompts, strict=True):
                row[len(prompt) :] = [self._goes_on(prompt)] * (len(row) - len(prompt))
        latest = [np.array(row)[:, None] for row in rows]
        if not most:
            blank = np.zeros((len(prompts), 1, 3, side, side), np.float32)
            return {"pixel_values": blank, "image_attention_mask": [row >= 0 for row in latest]}
        masks = [(row == np.arange(most)).astype(np.int64) for row in latest]
        return {"pixel_values": alike(frames), "image_attention_mask": masks}

    def _goes_on(self, prompt: Prompt) -> int:
        """The picture that the next token would see."""
        return -1 if prompt.ids[-1] == self.tokenizer.eos_token_id else prompt.sees[-1]

    def _show(self, prompts: Sequence[Prompt]) -> None:
        for number, prompt in enumerate(prompts, start=1):
            sys.stderr.write(
                f"prompt {number}: {len(prompt)} tokens, {len(prompt.pictures)} pictures\n"
                f"{self.tokenizer.decode(list(prompt.ids))}\n"
            )


def _batch(prompts: Any) -> list[list[Any]]:
    """One prompt or a batch of them -> a list of prompts, each a list of texts and pictures."""
    if not isinstance(prompts, (list, tuple)):
        prompts = [prompts]
    lists = [isinstance(prompt, (list, tuple)) for prompt in prompts]
    if any(lists) and not all(lists):
        raise BadPrompt(
            f"prompt {lists.index(False) + 1} is not a list, but others are: give each as a list of items"
        )
    return [[_item(item) for item in prompt] for prompt in (prompts if any(lists) else [prompts])]


def _item(item: Any) -> Any:
    is_address = isinstance(item, str) and is_remote(item.strip(" "))
    return Picture(item.strip(" ")) if is_address else item


def _joined(text: Any, images: Any) -> list[list[Any]]:
    """Texts and their pictures as prompts: in the text's own places, or else in the reference's order."""
    texts, is_flat = texts_of(text), not is_grouped(images)
    if is_flat and any(IMAGE in one for one in texts):
        groups = pictures_for(texts, images)
    else:
        groups = [[one] for one in nested(images)[0]] if is_flat else nested(images)
    if len(texts) != len(groups):
        raise BadPrompt(
            f"there are {len(texts)} texts, and pictures for {len(groups)}: "
            "give as many; several pictures for one text go into a list of their own"
        )
    documents = []
    for one, group in zip(texts, groups, strict=True):
        pictures = [Picture(source) if isinstance(source, str) else source for source in group]
        if IMAGE in one:
            documents.append(fill(one, {IMAGE: pictures}))
        else:
            documents.append([*pictures, one] if is_flat else [one, *pictures])
    return documents
