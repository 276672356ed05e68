"""The processors of families that read pictures in the text: Idefics 2, Idefics 3 and SmolVLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from idefics.compat.features import BatchFeature, Side
from idefics.compat.image_processing import pixels
from idefics.compat.image_processing_in_text import (
    Idefics2ImageProcessor,
    Idefics3ImageProcessor,
    SmolVLMImageProcessor,
)
from idefics.compat.processing import BaseProcessor, cut
from idefics.compat.processing_files import Token
from idefics.compat.processing_masks import assistant_mask
from idefics.compat.processing_options import (
    VIDEO_WORDS,
    takes_groups,
    video_plan_of,
    without_neutral_options,
)
from idefics.compat.processing_places import VIDEO, fill, pictures_for, texts_of, videos_for
from idefics.errors import BadPrompt
from idefics.processing.chat import IMAGE
from idefics.prompt import Prompt


class InTextProcessor(BaseProcessor):
    """Texts with places for pictures (`<image>`), and the pictures."""

    image_processor: Idefics2ImageProcessor

    @takes_groups
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
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors: see `Fitting`.
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
        image_settings = without_neutral_options(type(self).__name__, keywords)
        samples = keywords.get("do_sample_frames") is not False
        video_words = {name: image_settings.pop(name) for name in VIDEO_WORDS.keys() & image_settings.keys()}
        maker = self.image_processor.changed(**image_settings)
        if text is None:
            if images is None:
                raise BadPrompt("there is neither text nor a picture: give at least one")
            return maker.preprocess(
                images, return_tensors=return_tensors, input_data_format=input_data_format
            )
        fitting = self.tokenizer.fitting(
            padding, truncation, max_length, padding_side, pad_to_multiple_of, return_tensors
        )
        texts = texts_of(text)
        plan = maker.plan(image_seq_len or self.image_seq_len)
        plan = replace(plan, video=video_plan_of(plan.video, video_words))
        groups = pictures_for(texts, images)
        places: dict[str, Any] = {
            IMAGE: [[maker.tiles(one, input_data_format) for one in group] for group in groups]
        }
        if videos is not None or plan.video is not None:
            places[VIDEO] = videos_for(texts, videos, samples=samples)
        documents = [fill(one, {mark: places[mark][row] for mark in places}) for row, one in enumerate(texts)]
        writer = self._writer(plan, adds_special=add_special_tokens)
        written = [writer.document(parts) for parts in documents]
        opening = len(self.tokenizer.opening()) if add_special_tokens else 0
        kept = [fitting.kept(len(prompt), opening=opening) for prompt in written]
        prompts = [_fitted(prompt, row) for prompt, row in zip(written, kept, strict=True)]
        entries = self._rows(prompts, fitting)
        if not return_attention_mask:
            del entries["attention_mask"]
        for one, prompt, row, spans in zip(texts, written, kept, generated or (), strict=bool(generated)):
            mask = assistant_mask(writer, one, prompt, spans)
            entries.setdefault("assistant_masks", []).append([mask[position] for position in row])
        if generated:
            entries["assistant_masks"] = fitting.pad(entries["assistant_masks"], 0)
        batch = fitting.batch(entries)
        batch.update(pixels([prompt.pictures for prompt in prompts], return_tensors, padded=maker.do_pad))
        return batch


class Idefics2Processor(InTextProcessor):
    """An Idefics 2 image processor and a tokenizer, joined. Arguments as in `BaseProcessor`."""

    model_type: ClassVar = "idefics2"
    image_processor_type: ClassVar = Idefics2ImageProcessor
    image_processor_class: ClassVar = "Idefics2ImageProcessor"
    own_image_seq_len: ClassVar = 64


class Idefics3Processor(InTextProcessor):
    """An Idefics 3 image processor and a tokenizer, joined. Arguments as in `BaseProcessor`."""

    model_type: ClassVar = "idefics3"
    image_processor_type: ClassVar = Idefics3ImageProcessor
    image_processor_class: ClassVar = "Idefics3ImageProcessor"
    own_image_seq_len: ClassVar = 169
    global_image_tag: ClassVar = Token("<global-img>")
    global_image_token: ClassVar = Token("<global-img>")


class SmolVLMProcessor(Idefics3Processor):
    """SmolVLM's processor: as Idefics 3's."""

    model_type: ClassVar = "smolvlm"
    image_processor_type: ClassVar = SmolVLMImageProcessor
    image_processor_class: ClassVar = "SmolVLMImageProcessor"

    video_token: ClassVar = Token(VIDEO)

    @classmethod
    def _accepts(cls, image_processor: object) -> bool:
        return isinstance(image_processor, Idefics3ImageProcessor)


def _fitted(prompt: Prompt, kept: Sequence[int]) -> Prompt:
    """The prompt with these tokens only, if that takes no picture away."""
    shorter = cut(prompt, kept)
    if lost := len(prompt.pictures) - len(shorter.pictures):
        raise BadPrompt(
            f"cutting a prompt of {len(prompt)} tokens to {len(kept)} takes {lost} of {len(prompt.pictures)} "
            "pictures away: give a larger max_length, or fewer or smaller pictures"
        )
    return shorter
