"""Idefics' processor: prompts of text and pictures in any order."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

import numpy as np

from idefics.compat.assistant_mask import make_assistant_mask
from idefics.compat.batch_feature import BatchFeature, PaddingOptions, Side
from idefics.compat.image_inputs import group_by_sample, is_nested
from idefics.compat.image_processing import ImageProcessor
from idefics.compat.image_processing_idefics import IdeficsImageProcessor, PictureTransform, stack_same_size
from idefics.compat.keyword_arguments import NEUTRAL_PROCESSOR_KWARGS, drop_neutral_kwargs
from idefics.compat.media_placeholders import as_text_list, group_pictures_by_text, replace_placeholders
from idefics.compat.processing import BaseProcessor, select_prompt_tokens
from idefics.compat.processing_kwargs import (
    VIDEO_FIELD_BY_KWARG,
    accept_kwarg_groups,
)
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.errors import BadPrompt, BadSetting
from idefics.messages import Picture
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.processing.fetch import is_url
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
    default_image_seq_len: ClassVar = 1
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
    def _constructor_kwarg_names(cls) -> set[str]:
        return {"chat_template", "add_end_of_utterance_token"}

    @classmethod
    def _from_parts(
        cls,
        image_processor: ImageProcessor,
        tokenizer: PreTrainedTokenizer,
        image_seq_len: int | None,
        constructor_kwargs: Mapping[str, Any],
    ) -> Self:
        return cls(cast(IdeficsImageProcessor, image_processor), tokenizer, **constructor_kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """What a call returns."""
        return [*super().model_input_names, "image_attention_mask"]

    @accept_kwarg_groups
    def __call__(
        self,
        prompts: Any = None,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        transform: PictureTransform | None = None,
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
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors: see `PaddingOptions`.
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
        padding_options = self.tokenizer.make_padding_options(
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors
        )
        adds_end_of_utterance = add_end_of_utterance_token
        adds_end_of_utterance = (
            self.add_end_of_utterance_token if adds_end_of_utterance is None else adds_end_of_utterance
        )
        image_kwargs = {
            name: value for name, value in keywords.items() if name not in VIDEO_FIELD_BY_KWARG
        }  # it reads no videos
        image_settings = drop_neutral_kwargs(type(self).__name__, image_kwargs, NEUTRAL_PROCESSOR_KWARGS)
        image_processor = self.image_processor.with_settings(**image_settings)
        documents = (
            _normalize_prompts(prompts if text is None else text)
            if images is None
            else _interleave_text_and_images(text, images)
        )
        prompt_processor = self._make_prompt_processor(
            image_processor.to_processor_config(), adds_special=False
        )
        prepared = (
            image_processor.preprocess_items(items, transform, input_data_format) for items in documents
        )
        full_prompts = [
            prompt_processor.encode_parts(parts, add_end_of_utterance_token=adds_end_of_utterance)
            for parts in prepared
        ]
        if add_eos_token:
            full_prompts = [self._append_eos(prompt) for prompt in full_prompts]
        truncated_prompts = [
            select_prompt_tokens(prompt, padding_options.kept_positions(len(prompt)))
            for prompt in full_prompts
        ]
        if debug:
            self._print_prompts(truncated_prompts)
        image_entries = self._make_image_entries(
            image_processor.to_processor_config().frame_size, truncated_prompts, padding_options
        )
        rows = self._pad_prompts(truncated_prompts, padding_options)
        if not return_attention_mask:
            del rows["attention_mask"]
        if generated:
            mask_inputs = zip(as_text_list(text), full_prompts, generated, strict=True)
            masks = [
                make_assistant_mask(prompt_processor, one, prompt, spans)
                for one, prompt, spans in mask_inputs
            ]
            rows["assistant_masks"] = padding_options.pad(
                [padding_options.truncate(mask) for mask in masks], 0
            )
        return padding_options.to_batch({**rows, **image_entries})

    def _append_eos(self, prompt: Prompt) -> Prompt:
        if self.tokenizer.eos_token_id is None:
            raise BadSetting("add_eos_token is True, but the tokenizer has no eos_token: set it")
        return replace(
            prompt,
            ids=(*prompt.ids, self.tokenizer.eos_token_id),
            image_index=(*prompt.image_index, prompt.image_index[-1]),
        )

    def _make_image_entries(
        self, image_size: int, prompts: Sequence[Prompt], padding_options: PaddingOptions
    ) -> dict[str, Any]:
        """`pixel_values` and `image_attention_mask`."""
        frames = [[frame for picture in prompt.pictures for frame in picture.frames] for prompt in prompts]
        max_images = max(map(len, frames))
        rows = padding_options.pad([prompt.image_index for prompt in prompts], -1)
        if (
            padding_options.padding_side == "right"
        ):  # what comes after a text sees what its end sees, as when it goes on
            for row, prompt in zip(rows, prompts, strict=True):
                row[len(prompt) :] = [self._next_token_image_index(prompt)] * (len(row) - len(prompt))
        latest_image_indices = [np.array(row)[:, None] for row in rows]
        if not max_images:
            blank_images = np.zeros((len(prompts), 1, 3, image_size, image_size), np.float32)
            return {
                "pixel_values": blank_images,
                "image_attention_mask": [row >= 0 for row in latest_image_indices],
            }
        masks = [(row == np.arange(max_images)).astype(np.int64) for row in latest_image_indices]
        return {"pixel_values": stack_same_size(frames), "image_attention_mask": masks}

    def _next_token_image_index(self, prompt: Prompt) -> int:
        """The picture that the next token would see."""
        return -1 if prompt.ids[-1] == self.tokenizer.eos_token_id else prompt.image_index[-1]

    def _print_prompts(self, prompts: Sequence[Prompt]) -> None:
        for number, prompt in enumerate(prompts, start=1):
            sys.stderr.write(
                f"prompt {number}: {len(prompt)} tokens, {len(prompt.pictures)} pictures\n"
                f"{self.tokenizer.decode(list(prompt.ids))}\n"
            )


def _normalize_prompts(prompts: Any) -> list[list[Any]]:
    """One prompt or a batch of them -> a list of prompts, each a list of texts and pictures."""
    if not isinstance(prompts, (list, tuple)):
        prompts = [prompts]
    is_list = [isinstance(prompt, (list, tuple)) for prompt in prompts]
    if any(is_list) and not all(is_list):
        raise BadPrompt(
            f"prompt {is_list.index(False) + 1} is not a list, but others are: give each as a list of items"
        )
    return [[_normalize_item(item) for item in prompt] for prompt in (prompts if any(is_list) else [prompts])]


def _normalize_item(item: Any) -> Any:
    is_address = isinstance(item, str) and is_url(item.strip(" "))
    return Picture(item.strip(" ")) if is_address else item


def _interleave_text_and_images(text: Any, images: Any) -> list[list[Any]]:
    """Texts and their pictures as prompts: in the text's own places, or else in the reference's order."""
    texts, is_flat = as_text_list(text), not is_nested(images)
    if is_flat and any(IMAGE_TOKEN in one for one in texts):
        image_groups = group_pictures_by_text(texts, images)
    else:
        image_groups = [[one] for one in group_by_sample(images)[0]] if is_flat else group_by_sample(images)
    if len(texts) != len(image_groups):
        raise BadPrompt(
            f"there are {len(texts)} texts, and pictures for {len(image_groups)}: "
            "give as many; several pictures for one text go into a list of their own"
        )
    documents = []
    for one, group in zip(texts, image_groups, strict=True):
        pictures = [Picture(source) if isinstance(source, str) else source for source in group]
        if IMAGE_TOKEN in one:
            documents.append(replace_placeholders(one, {IMAGE_TOKEN: pictures}))
        else:
            documents.append([*pictures, one] if is_flat else [one, *pictures])
    return documents
