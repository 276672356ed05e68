"""The processors of families that read pictures in the text: Idefics 2, Idefics 3 and SmolVLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from idefics.compat.assistant_mask import make_assistant_mask
from idefics.compat.batch_feature import BatchFeature, Side
from idefics.compat.image_processing import stack_pixel_values
from idefics.compat.image_processing_inline import (
    Idefics2ImageProcessor,
    Idefics3ImageProcessor,
    SmolVLMImageProcessor,
)
from idefics.compat.keyword_arguments import NEUTRAL_PROCESSOR_KWARGS, drop_neutral_kwargs
from idefics.compat.media_placeholders import (
    VIDEO_TOKEN,
    as_text_list,
    group_pictures_by_text,
    group_videos_by_text,
    replace_placeholders,
)
from idefics.compat.processing import BaseProcessor, select_prompt_tokens
from idefics.compat.processing_files import TokenText
from idefics.compat.processing_kwargs import (
    VIDEO_FIELD_BY_KWARG,
    accept_kwarg_groups,
    override_video_config,
)
from idefics.errors import BadPrompt
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.prompt import Prompt


class InlineModelProcessor(BaseProcessor):
    """Texts with places for pictures (`<image>`), and the pictures."""

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
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: Side | None = None,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = True,
        return_tensors: str | None = None,
        input_data_format: str | None = None,
        generated: Sequence[Sequence[tuple[int, int]]] | None = None,
        **keywords: Any,
    ) -> BatchFeature:
        """Texts and pictures to what the model reads.

        Args:
            images: a picture, a list of them, shared out by the places in the texts, or a list for each text. A
                picture is an address (http(s) or data URI), a file, a PIL picture, an array or a tensor.
            text: a text or a list of texts, with `<image>` where a picture stands, and `<video>` where a video does.
            videos: a video, a list of them, shared out as pictures are, or a list for each text. A video is an
                address, a file, a list of pictures, an array (T, H, W, 3), or an `idefics.Video`.
            image_seq_len: tokens that stand for one frame; None is the checkpoint's number.
            add_special_tokens: whether what tokenizer.json adds by itself is added.
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors: see `PaddingOptions`.
            return_attention_mask: False leaves `attention_mask` out.
            input_data_format: where an array's channels are, if its shape does not say it.
            generated: of each text, the (start, end) in characters of what the assistant says: `assistant_masks` is
                returned too.
            keywords: settings of the image processor, for this call; of videos `num_frames` (or `max_frames`), `fps`
                (or `target_fps`) and `skip_secs`; words of transformers' call that ask for nothing.

        Returns:
            `input_ids` and `attention_mask` (B, T) where there is text; `pixel_values` (B, F, 3, H, W) and
            `pixel_attention_mask` (B, F, H, W) where there are pictures, F the most frames of a text.

        Raises:
            BadPrompt: neither texts nor pictures; more or fewer pictures than places; a picture does not fit into
                `max_length`.
            BadPicture: a picture cannot be opened.
        """
        image_settings = drop_neutral_kwargs(type(self).__name__, keywords, NEUTRAL_PROCESSOR_KWARGS)
        samples_frames = keywords.get("do_sample_frames") is not False
        video_kwargs = {
            name: image_settings.pop(name) for name in VIDEO_FIELD_BY_KWARG.keys() & image_settings.keys()
        }
        image_processor = self.image_processor.with_settings(**image_settings)
        if text is None:
            if images is None:
                raise BadPrompt("there is neither text nor a picture: give at least one")
            return image_processor.preprocess(
                images, return_tensors=return_tensors, input_data_format=input_data_format
            )
        padding_options = self.tokenizer.make_padding_options(
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors
        )
        texts = as_text_list(text)
        image_config = image_processor.to_processor_config(image_seq_len or self.image_seq_len)
        image_config = replace(image_config, video=override_video_config(image_config.video, video_kwargs))
        image_groups = group_pictures_by_text(texts, images)
        media_by_placeholder: dict[str, Any] = {
            IMAGE_TOKEN: [
                [image_processor.preprocess_picture(one, input_data_format) for one in group]
                for group in image_groups
            ]
        }
        if videos is not None or image_config.video is not None:
            media_by_placeholder[VIDEO_TOKEN] = group_videos_by_text(
                texts, videos, samples_frames=samples_frames
            )
        documents = [
            replace_placeholders(
                one, {mark: media_by_placeholder[mark][row] for mark in media_by_placeholder}
            )
            for row, one in enumerate(texts)
        ]
        prompt_processor = self._make_prompt_processor(image_config, adds_special=add_special_tokens)
        full_prompts = [prompt_processor.encode_parts(parts) for parts in documents]
        num_opening_tokens = len(self.tokenizer.opening_ids()) if add_special_tokens else 0
        kept_positions = [
            padding_options.kept_positions(len(prompt), num_opening_tokens=num_opening_tokens)
            for prompt in full_prompts
        ]
        prompts = [
            _truncate_keeping_images(prompt, row)
            for prompt, row in zip(full_prompts, kept_positions, strict=True)
        ]
        entries = self._pad_prompts(prompts, padding_options)
        if not return_attention_mask:
            del entries["attention_mask"]
        for one, prompt, row, spans in zip(
            texts, full_prompts, kept_positions, generated or (), strict=bool(generated)
        ):
            mask = make_assistant_mask(prompt_processor, one, prompt, spans)
            entries.setdefault("assistant_masks", []).append([mask[position] for position in row])
        if generated:
            entries["assistant_masks"] = padding_options.pad(entries["assistant_masks"], 0)
        batch = padding_options.to_batch(entries)
        batch.update(
            stack_pixel_values(
                [prompt.pictures for prompt in prompts], return_tensors, do_pad=image_processor.do_pad
            )
        )
        return batch


class Idefics2Processor(InlineModelProcessor):
    """An Idefics 2 image processor and a tokenizer, joined. Arguments as in `BaseProcessor`."""

    model_type: ClassVar = "idefics2"
    image_processor_type: ClassVar = Idefics2ImageProcessor
    image_processor_class: ClassVar = "Idefics2ImageProcessor"
    default_image_seq_len: ClassVar = 64


class Idefics3Processor(InlineModelProcessor):
    """An Idefics 3 image processor and a tokenizer, joined. Arguments as in `BaseProcessor`."""

    model_type: ClassVar = "idefics3"
    image_processor_type: ClassVar = Idefics3ImageProcessor
    image_processor_class: ClassVar = "Idefics3ImageProcessor"
    default_image_seq_len: ClassVar = 169
    global_image_tag: ClassVar = TokenText("<global-img>")
    global_image_token: ClassVar = TokenText("<global-img>")


class SmolVLMProcessor(Idefics3Processor):
    """SmolVLM's processor: as Idefics 3's."""

    model_type: ClassVar = "smolvlm"
    image_processor_type: ClassVar = SmolVLMImageProcessor
    image_processor_class: ClassVar = "SmolVLMImageProcessor"

    video_token: ClassVar = TokenText(VIDEO_TOKEN)

    @classmethod
    def _accepts_image_processor(cls, image_processor: object) -> bool:
        return isinstance(image_processor, Idefics3ImageProcessor)


def _truncate_keeping_images(prompt: Prompt, kept_positions: Sequence[int]) -> Prompt:
    """The prompt with these tokens only, if that takes no picture away."""
    truncated = select_prompt_tokens(prompt, kept_positions)
    if lost := len(prompt.pictures) - len(truncated.pictures):
        raise BadPrompt(
            f"cutting a prompt of {len(prompt)} tokens to {len(kept_positions)} takes {lost} of {len(prompt.pictures)} "
            "pictures away: give a larger max_length, or fewer or smaller pictures"
        )
    return truncated
