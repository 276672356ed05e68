"""What the processors of all families share: chat templates, prompts as padded batches, masks of the assistant's words.

Each prompt is written by `processing.Processor`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from idefics.compat.batch_feature import BatchFeature, PaddingOptions
from idefics.compat.keyword_arguments import (
    NEUTRAL_PROCESSOR_KWARGS,
    VIDEO_FIELD_BY_KWARG,
    check_and_drop_neutral_kwargs,
    split_kwargs,
)
from idefics.compat.media_inputs import VIDEO_TOKEN, as_text_list, make_fetcher_from_environment
from idefics.compat.processing_chat import add_media, parse_conversations
from idefics.compat.processing_files import ProcessorMixin
from idefics.compat.tokenization import Conversations
from idefics.compat.tokenization_encoding import span_overlap_mask
from idefics.config import ImageProcessorConfig
from idefics.errors import BadSetting
from idefics.processing.chat_prompt import IMAGE_TOKEN
from idefics.processing.chat_template import render_template
from idefics.processing.picture_expansion import FAKE_IMAGE_TOKEN, image_placeholder_text
from idefics.processing.processor import Processor
from idefics.prompt import Prompt

TextSpans = Sequence[tuple[int, int]]  # (start, end) in characters of a text


class BaseProcessor(ProcessorMixin):
    """An image processor and a tokenizer in one. Arguments as in `ProcessorMixin`."""

    @property
    def model_input_names(self) -> list[str]:
        """The names of all entries that a call may return."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]

    def decode(self, *args: Any, **options: Any) -> str:
        """Decodes a row of ids, as the tokenizer's `decode`."""
        return self.tokenizer.decode(*args, **options)

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        """Decodes rows of ids, as the tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **options)

    def post_process_image_text_to_text(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[str]:
        """Decodes rows of generated ids, without special tokens."""
        return self.batch_decode(
            generated_outputs, skip_special_tokens, clean_up_tokenization_spaces=clean_up_tokenization_spaces
        )

    def __call__(self, **inputs: Any) -> BatchFeature:
        """Text and images to the inputs of a model; each family has its own arguments."""
        raise NotImplementedError

    def apply_chat_template(
        self,
        conversation: Conversations,
        chat_template: str | None = None,
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **keywords: Any,
    ) -> Any:
        """Renders a conversation, or a batch of them, with the chat template, and processes the text if asked for.

        Args:
            conversation: messages with "role" and "content": a text, or a list of texts, images and videos. An image
                has its source under "image", "url", "path" or "base64", or none: then it is given in a later call.
            chat_template: Jinja source in place of the checkpoint's.
            tools, documents: variables of the template.
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: end with the text of the last message, so that an answer continues it.
            tokenize: return ids instead of text; every image must have a source.
            return_dict: with `tokenize`, return all inputs of the model.
            return_tensors, processor_kwargs: with `tokenize`, as in the call.
            return_assistant_tokens_mask: with `return_dict`, also return `assistant_masks`, 1 for tokens within
                `{% generation %}`.
            keywords: further variables of the template; with `tokenize`, arguments of the call.

        Raises:
            BadPrompt: a message is malformed; the error names it.
            TypeError: a keyword is neither a variable of the template nor, with `tokenize`, an argument of the call.
        """
        conversations, is_batch = parse_conversations(conversation)
        template = self.chat_template if chat_template is None else chat_template
        variable_names = [name for name in keywords if re.search(rf"\b{name}\b", template)]
        variables, options = split_kwargs(keywords, variable_names)
        options |= processor_kwargs or {}
        rendered = [
            render_template(
                template,
                one.turns,
                {**self.tokenizer.special_tokens_map, "tools": tools, "documents": documents, **variables},
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for one in conversations
        ]
        texts = [one.text for one in rendered]
        if not tokenize:
            given = {"return_dict": return_dict, "return_tensors": return_tensors, **options}
            for name in (name for name, value in given.items() if value or name in options):
                raise TypeError(
                    f"{name!r} is no variable of the chat template: give tokenize=True if it is an argument of the call"
                )
            return texts if is_batch else texts[0]
        add_media(options, conversations)
        bos_token = self.tokenizer.bos_token
        if self._prompt_format.add_special_tokens and bos_token and texts[0].startswith(bos_token):
            # The template wrote what tokenizer.json would add.
            options.setdefault("add_special_tokens", False)
        if return_assistant_tokens_mask:
            options["generated"] = [one.generation_spans for one in rendered]
        batch = self(text=texts, return_tensors=return_tensors, **options)
        return batch if return_dict else batch["input_ids"]

    def _image_processor_padding_and_video_kwargs(
        self, keywords: dict[str, Any]
    ) -> tuple[Any, PaddingOptions, dict[str, Any]]:
        """The image processor with the settings of a call, and the call's arguments for padding and for videos."""
        padding_options = self.tokenizer.pop_padding_options(keywords)
        settings = check_and_drop_neutral_kwargs(type(self).__name__, keywords, NEUTRAL_PROCESSOR_KWARGS)
        video_kwargs, settings = split_kwargs(settings, VIDEO_FIELD_BY_KWARG)
        return self.image_processor.with_settings(**settings), padding_options, video_kwargs

    def _make_prompt_processor(self, image_config: ImageProcessorConfig, *, adds_special: bool) -> Processor:
        """The processor that writes this family's prompts.

        Args:
            image_config: how images become frames.
            adds_special: whether tokens that tokenizer.json adds by itself are added.
        """
        prompt_format = replace(self._prompt_format, add_special_tokens=adds_special)
        return Processor(self.tokenizer.codec, image_config, prompt_format, make_fetcher_from_environment())

    def _make_text_entries(
        self,
        processor: Processor,
        prompts: Sequence[Prompt],
        kept_positions: Sequence[Sequence[int]],
        padding_options: PaddingOptions,
        text: Any,
        spans: Sequence[TextSpans] | None,
        return_attention_mask: bool | None,
    ) -> dict[str, Any]:
        """Padded `input_ids` and `attention_mask` of prompts, which are truncated to `kept_positions`.

        Args:
            processor: made the prompts of `text`.
            kept_positions: for each prompt the positions that remain of it.
            text: the texts of the prompts.
            spans: for each text what the assistant says: `assistant_masks` are added. None: they are not.
            return_attention_mask: False leaves `attention_mask` out.
        """

        def truncate(rows: Iterable[Sequence[int]]) -> list[list[int]]:
            return [[row[i] for i in kept] for row, kept in zip(rows, kept_positions, strict=True)]

        columns = {"input_ids": truncate(prompt.ids for prompt in prompts)}
        if return_attention_mask:
            columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
        if spans:
            texts_with_prompts = zip(as_text_list(text), prompts, spans, strict=True)
            columns["assistant_masks"] = truncate(
                make_assistant_mask(processor, *one) for one in texts_with_prompts
            )
        return self.tokenizer.pad_columns(columns, padding_options)


def make_assistant_mask(processor: Processor, text: str, prompt: Prompt, spans: TextSpans) -> list[int]:
    """1 for each token of `prompt` that shares characters with a span of its text, else 0.

    The text is written as `processor` writes it, with image tokens in place of `<image>`, and spans are mapped to it.

    Args:
        processor: the processor that wrote the prompt.
        text: with `<image>` where the images of the prompt stand.
        spans: (start, end) in characters of `text`.

    Raises:
        BadSetting: the text has a video, or its tokens cannot be mapped to characters.
    """
    if VIDEO_TOKEN in text:
        raise BadSetting("return_assistant_tokens_mask is not done for texts with videos: leave it out")
    prompt_format = processor.prompt_format
    written_text = prompt_format.prompt_prefix
    written_offsets: list[int] = []  # in `written_text`, of each character of `text`
    pictures = iter(prompt.pictures)
    for part in re.split(f"({IMAGE_TOKEN})", text):
        start, num_leading_spaces = len(written_text), 0
        written_part = part
        if part == IMAGE_TOKEN:
            picture = next(pictures)
            written_part = image_placeholder_text(
                prompt_format,
                processor.image_config.tokens_per_frame,
                picture.rows,
                picture.columns,
                follows_picture=False,
            )
            # Neighbouring images of Idefics and Idefics 2 share the token between them.
            if written_text.endswith(FAKE_IMAGE_TOKEN) and prompt_format.image_tokens != "inline_tiles":
                written_part = written_part.removeprefix(FAKE_IMAGE_TOKEN)
        elif prompt_format.strips_text:
            written_part = part.strip(" ")
            num_leading_spaces = len(part) - len(part.lstrip(" "))
        written_text += written_part
        written_offsets += [
            start + min(max(at - num_leading_spaces, 0), len(written_part)) for at in range(len(part))
        ]
    written_offsets.append(len(written_text))
    encoding = processor.tokenizer.encode_with_offsets(
        written_text, add_special_tokens=prompt_format.add_special_tokens
    )
    if tuple(encoding.ids) != prompt.ids:
        raise BadSetting(
            "return_assistant_tokens_mask is not done for this text: tokens cannot be told apart"
        )
    return span_overlap_mask(
        encoding.offsets,
        [(written_offsets[first], written_offsets[last]) for first, last in spans],
    )
