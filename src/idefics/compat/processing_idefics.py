"""The processor of Idefics: prompts of texts and images in any order."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from idefics.compat.batch_feature import BatchFeature, PaddingOptions
from idefics.compat.image_processing_idefics import IdeficsImageProcessor, PictureTransform, stack_same_size
from idefics.compat.keyword_arguments import accept_kwarg_groups
from idefics.compat.media_inputs import (
    as_text_list,
    group_by_sample,
    group_pictures_by_text,
    interleave_text_and_media,
    is_nested,
)
from idefics.compat.processing import BaseProcessor, TextSpans
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.errors import BadPrompt, BadSetting
from idefics.messages import Picture
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.processing.fetch import is_url
from idefics.processing.processor import Processor
from idefics.prompt import Prompt


class IdeficsProcessor(BaseProcessor):
    """The processor of Idefics, with Llama's tokenizer.

    A call returns `input_ids` and `attention_mask` (B, T), `pixel_values` (B, P, 3, side, side), P the largest number
    of images of a prompt, zeros where there are fewer, and `image_attention_mask` (B, T, P), 1 for the image that a
    token attends to: the last one before it. Without any images: one of zeros, to which no token attends.

    Args:
        image_size: side of an image in pixels: that of the image processor; the default 224 is ignored.
        add_end_of_utterance_token: the default of calls.
        chat_template: Jinja source; None: the dialogue of the instruct checkpoints.
    """

    model_type = "idefics"
    default_image_seq_len = 1
    constructor_kwarg_names = ("chat_template", "add_end_of_utterance_token")
    image_processor_type = IdeficsImageProcessor
    image_processor_class = "IdeficsImageProcessor"
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

    @property
    def model_input_names(self) -> list[str]:
        """The names of all entries that a call may return."""
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
        add_special_tokens: bool | None = None,
        return_attention_mask: bool | None = True,
        input_data_format: str | None = None,
        generated: Sequence[TextSpans] | None = None,
        **keywords: Any,
    ) -> BatchFeature:
        """Prompts to the inputs of the model.

        Args:
            prompts: a prompt, which is a list of texts and images; or a batch, a list of such lists. An image is a URL
                (http(s) or data URI), a PIL image, an array or a tensor; other strings are text. Spaces at the ends
                of a text are dropped.
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors: see `PaddingOptions`.
            transform: called with each image in place of the usual steps; returns a tensor (3, side, side).
            add_eos_token: end every prompt with `</s>`.
            add_end_of_utterance_token: put `<end_of_utterance>` between neighbouring texts; None: as the constructor
                was told, else where the checkpoint has the token.
            debug: write each prompt to standard error.
            text: another name of `prompts`; with `images`, a text or a list of texts.
            images: images for `text`: one for each text, before it; or a list for each text, after it. Where the text
                has placeholders (`<image>`), the images stand there.
            add_special_tokens: of no effect: a prompt always begins with `<s>`, and nothing else is added.
            return_attention_mask: False leaves `attention_mask` out.
            input_data_format: where the channels of arrays are, if their shape does not say it.
            generated: for each text the (start, end), in characters, of what the assistant says: `assistant_masks` is
                returned too.
            keywords: settings of the image processor for this call; arguments of transformers that ask for nothing.

        Raises:
            BadPrompt: texts and images do not fit together.
            BadPicture: an image cannot be opened.
        """
        keywords |= {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "return_tensors": return_tensors,
        }
        image_processor, padding_options, _ = self._image_processor_padding_and_video_kwargs(keywords)
        image_config = image_processor.to_processor_config()
        processor = self._make_prompt_processor(image_config, adds_special=False)
        if add_end_of_utterance_token is None:
            add_end_of_utterance_token = self.add_end_of_utterance_token
        full_prompts = [
            processor.encode_parts(
                [
                    item
                    if isinstance(item, str)
                    else image_processor.preprocess_with_transform(item, transform, input_data_format)
                    for item in items
                ],
                add_end_of_utterance_token=add_end_of_utterance_token,
            )
            for items in _as_documents(prompts, text, images)
        ]
        if add_eos_token:
            full_prompts = [self._append_eos(processor, prompt) for prompt in full_prompts]
        kept_positions = [padding_options.kept_positions(len(prompt)) for prompt in full_prompts]
        truncated_prompts = _select_tokens(processor, full_prompts, kept_positions)
        if debug:
            self._print_prompts(truncated_prompts)
        entries = self._make_text_entries(
            processor, full_prompts, kept_positions, padding_options, text, generated, return_attention_mask
        )
        entries |= self._make_image_entries(image_config.frame_size, truncated_prompts, padding_options)
        return padding_options.to_batch(entries)

    def _append_eos(self, processor: Processor, prompt: Prompt) -> Prompt:
        """The prompt with the end-of-sequence token at its end; raises BadSetting if the tokenizer has none."""
        if self.tokenizer.eos_token_id is None:
            raise BadSetting("add_eos_token is True, but the tokenizer has no eos_token: set it")
        return processor.build_prompt([*prompt.ids, self.tokenizer.eos_token_id], prompt.pictures)

    def _make_image_entries(
        self, image_size: int, prompts: Sequence[Prompt], padding_options: PaddingOptions
    ) -> dict[str, Any]:
        """`pixel_values` and `image_attention_mask`; without any images one of zeros, to which no token attends."""
        image_index = padding_options.pad([prompt.image_index for prompt in prompts], -1)
        if padding_options.padding_side == "right":
            # Padding after a text sees the image that its next token would see, as when generation continues it.
            for row, prompt in zip(image_index, prompts, strict=True):
                is_ended = prompt.ids[-1] == self.tokenizer.eos_token_id
                next_index = -1 if is_ended else prompt.image_index[-1]
                row[len(prompt) :] = [next_index] * (len(row) - len(prompt))
        frames = [[frame for picture in prompt.pictures for frame in picture.frames] for prompt in prompts]
        num_images = max(map(len, frames))
        pixels = (
            stack_same_size(frames)
            if num_images
            else np.zeros((len(prompts), 1, 3, image_size, image_size), np.float32)
        )
        masks = [np.array(row)[:, None] == np.arange(num_images or 1) for row in image_index]  # (T, P) each
        if num_images:
            masks = [mask.astype(np.int64) for mask in masks]
        return {"pixel_values": pixels, "image_attention_mask": masks}

    def _print_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Writes each prompt to standard error: its numbers of tokens and pictures, and its text."""
        for number, prompt in enumerate(prompts, start=1):
            sys.stderr.write(
                f"prompt {number}: {len(prompt)} tokens, {len(prompt.pictures)} pictures\n"
                f"{self.tokenizer.decode(list(prompt.ids))}\n"
            )


def _select_tokens(
    processor: Processor, prompts: Sequence[Prompt], kept_positions: Sequence[Sequence[int]]
) -> list[Prompt]:
    """Cuts prompts to the tokens at `kept_positions`, and drops the images whose token is cut."""
    selected = []
    for prompt, kept in zip(prompts, kept_positions, strict=True):
        images = zip(prompt.pictures, prompt.image_token_positions, strict=True)
        kept_pictures = [picture for picture, (position,) in images if position in kept]
        selected.append(processor.build_prompt([prompt.ids[position] for position in kept], kept_pictures))
    return selected


def _as_documents(prompts: Any, text: Any, images: Any) -> list[list[Any]]:
    """The prompts of a call, which may be one prompt or a batch: each becomes a list of texts and images."""
    if (prompts is None) == (text is None) or (prompts is not None and images is not None):
        raise BadPrompt("give prompts, or text, or text and images")
    if images is not None:
        return _interleave_text_and_images(text, images)
    prompts = text if prompts is None else prompts
    if not isinstance(prompts, (list, tuple)):
        prompts = [prompts]
    is_list = [isinstance(prompt, (list, tuple)) for prompt in prompts]
    if any(is_list) and not all(is_list):
        raise BadPrompt(
            f"prompt {is_list.index(False) + 1} is not a list, but others are: give each as a list of items"
        )
    return [
        [
            Picture(item.strip(" ")) if isinstance(item, str) and is_url(item.strip(" ")) else item
            for item in prompt
        ]
        for prompt in (prompts if any(is_list) else [prompts])
    ]


def _interleave_text_and_images(text: Any, images: Any) -> list[list[Any]]:
    """Combines texts with their images into prompts, lists of texts and images.

    Images stand at the placeholders of a text that has some; else a single image before its text, or a list of images
    after it.
    """
    texts, is_flat = as_text_list(text), not is_nested(images)
    if is_flat and not any(IMAGE_TOKEN in one for one in texts):
        images = [[one] for one in group_by_sample(images)[0]]
    image_groups = group_pictures_by_text(texts, images)
    documents = []
    for one, group in zip(texts, image_groups, strict=True):
        pictures = [Picture(source) if isinstance(source, str) else source for source in group]
        if IMAGE_TOKEN in one:
            documents.append(interleave_text_and_media(one, {IMAGE_TOKEN: pictures}))
        else:
            documents.append([*pictures, one] if is_flat else [one, *pictures])
    return documents
