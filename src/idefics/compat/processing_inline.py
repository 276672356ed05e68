"""The processors of the inline-image families: Idefics 2, Idefics 3 and SmolVLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from idefics.compat.batch_feature import BatchFeature, PaddingOptions
from idefics.compat.image_processing import stack_pixel_values
from idefics.compat.image_processing_inline import (
    Idefics2ImageProcessor,
    Idefics3ImageProcessor,
    SmolVLMImageProcessor,
)
from idefics.compat.keyword_arguments import accept_kwarg_groups, override_video_config
from idefics.compat.media_inputs import (
    VIDEO_TOKEN,
    as_text_list,
    group_pictures_by_text,
    group_videos_by_text,
    interleave_text_and_media,
)
from idefics.compat.processing import BaseProcessor, TextSpans
from idefics.compat.processing_files import TokenText
from idefics.errors import BadPrompt
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.prompt import Prompt


class InlineModelProcessor(BaseProcessor):
    """The base of the processors of inline-image families.

    It turns texts with placeholders (`<image>`, `<video>`), and images and videos for these, into inputs of a model.
    """

    image_processor: Idefics2ImageProcessor

    @accept_kwarg_groups
    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        *,
        image_seq_len: int | None = None,
        add_special_tokens: bool = True,
        return_attention_mask: bool | None = True,
        input_data_format: str | None = None,
        generated: Sequence[TextSpans] | None = None,
        **keywords: Any,
    ) -> BatchFeature:
        """Texts, images and videos to the inputs of the model.

        Args:
            images: an image; a list of images, distributed over the placeholders in the texts; or a list for each text.
                An image is a URL (http(s) or data URI), a file, a PIL image, an array or a tensor.
            text: a text or a list of texts, with `<image>` and `<video>` as placeholders.
            videos: a video, a list of videos or a list for each text, as with images. A video is a URL, a file, a list
                of images, an array (T, H, W, 3) or an `idefics.Video`.
            image_seq_len: tokens of one frame; None: the checkpoint's number.
            add_special_tokens: whether tokens that tokenizer.json adds by itself are added.
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors: see `PaddingOptions`.
            return_attention_mask: False leaves `attention_mask` out.
            input_data_format: where the channels of arrays are, if their shape does not say it.
            generated: for each text the (start, end), in characters, of what the assistant says: `assistant_masks` is
                returned too.
            keywords: settings of the image processor for this call; `num_frames` (or `max_frames`), `fps` (or
                `target_fps`) and `skip_secs` of videos; arguments of transformers that ask for nothing.

        Returns:
            `input_ids` and `attention_mask` (B, T) where there is text; `pixel_values` (B, F, 3, H, W) and
            `pixel_attention_mask` (B, F, H, W) where there are images, F the largest number of frames of a text.

        Raises:
            BadPrompt: neither texts nor images; more or fewer images than placeholders; an image does not fit into
                `max_length`.
            BadPicture: an image cannot be opened.
        """
        image_processor, padding_options, video_kwargs = self._image_processor_padding_and_video_kwargs(
            keywords
        )
        return_tensors = padding_options.return_tensors
        if text is None:
            if images is None:
                raise BadPrompt("there is neither text nor a picture: give at least one")
            return BatchFeature(
                image_processor.preprocess(
                    images, return_tensors=return_tensors, input_data_format=input_data_format
                )
            )
        texts = as_text_list(text)
        image_config = image_processor.to_processor_config(image_seq_len or self.image_seq_len)
        image_config = replace(image_config, video=override_video_config(image_config.video, video_kwargs))
        media = {
            IMAGE_TOKEN: [
                [image_processor.preprocess_picture(image, input_data_format) for image in group]
                for group in group_pictures_by_text(texts, images)
            ]
        }
        if videos is not None or image_config.video is not None:
            samples_frames = keywords.get("do_sample_frames") is not False
            media[VIDEO_TOKEN] = group_videos_by_text(texts, videos, samples_frames=samples_frames)
        processor = self._make_prompt_processor(image_config, adds_special=add_special_tokens)
        prompts = [
            processor.encode_parts(
                interleave_text_and_media(one, {name: groups[row] for name, groups in media.items()})
            )
            for row, one in enumerate(texts)
        ]
        num_opening_tokens = len(self.tokenizer.codec.encode("", add_special_tokens=add_special_tokens))
        kept_positions = [
            _positions_left_by_truncation(one, padding_options, num_opening_tokens) for one in prompts
        ]
        entries = self._make_text_entries(
            processor, prompts, kept_positions, padding_options, texts, generated, return_attention_mask
        )
        pictures = [prompt.pictures for prompt in prompts]
        entries |= stack_pixel_values(pictures, return_tensors, do_pad=image_processor.do_pad)
        return padding_options.to_batch(entries)


class Idefics2Processor(InlineModelProcessor):
    """The processor of Idefics 2. Arguments as in `ProcessorMixin`."""

    model_type = "idefics2"
    image_processor_type = Idefics2ImageProcessor
    image_processor_class = "Idefics2ImageProcessor"
    default_image_seq_len = 64


class Idefics3Processor(InlineModelProcessor):
    """The processor of Idefics 3. Arguments as in `ProcessorMixin`."""

    model_type = "idefics3"
    image_processor_type = Idefics3ImageProcessor
    image_processor_class = "Idefics3ImageProcessor"
    default_image_seq_len = 169
    global_image_tag = global_image_token = TokenText("<global-img>")


class SmolVLMProcessor(Idefics3Processor):
    """The processor of SmolVLM and SmolVLM2. Arguments as in `ProcessorMixin`."""

    model_type = "smolvlm"
    image_processor_type = SmolVLMImageProcessor
    image_processor_class = "SmolVLMImageProcessor"

    other_image_processor_types = (Idefics3ImageProcessor,)
    video_token = TokenText(VIDEO_TOKEN)


def _positions_left_by_truncation(
    prompt: Prompt, padding_options: PaddingOptions, num_opening_tokens: int
) -> list[int]:
    """The positions that truncation leaves of a prompt. Raises BadPrompt where that would cut an image."""
    kept_positions = padding_options.kept_positions(len(prompt), num_opening_tokens=num_opening_tokens)
    kept = set(kept_positions)
    if num_lost_images := sum(not kept.issuperset(positions) for positions in prompt.image_token_positions):
        raise BadPrompt(
            f"truncating a prompt of {len(prompt)} tokens to {len(kept_positions)} cuts {num_lost_images} of "
            f"{len(prompt.pictures)} pictures: give a larger max_length, or fewer or smaller pictures"
        )
    return kept_positions
