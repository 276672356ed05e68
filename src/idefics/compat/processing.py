"""What the families' processors share: files, chat templates, and prompts of a batch made equal in length.

Thin over `processing.Processor`, which writes each prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from idefics.compat.batch_feature import BatchFeature, PaddingOptions
from idefics.compat.image_inputs import make_fetcher
from idefics.compat.keyword_arguments import IGNORED_IMAGE_KWARGS, NEUTRAL_PROCESSOR_KWARGS
from idefics.compat.processing_chat import (
    ChatTurn,
    media_sources,
    parse_conversations,
    replace_videos_by_text,
    split_template_kwargs,
)
from idefics.compat.processing_files import ProcessorMixin
from idefics.compat.processing_kwargs import KWARG_GROUPS, VIDEO_FIELD_BY_KWARG
from idefics.config import ImageProcessorConfig
from idefics.errors import BadPrompt
from idefics.processing.chat_template import render_template
from idefics.processing.processor import Processor
from idefics.prompt import Prompt


class BaseProcessor(ProcessorMixin):
    """An image processor and a tokenizer, joined. Arguments as in `ProcessorMixin`."""

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

    def post_process_image_text_to_text(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool = False,
    ) -> list[str]:
        """The texts of rows of generated ids."""
        return self.batch_decode(
            generated_outputs, skip_special_tokens, clean_up_tokenization_spaces=clean_up_tokenization_spaces
        )

    def __call__(self, **inputs: Any) -> BatchFeature:
        """Text and pictures to what a model reads."""
        raise NotImplementedError

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        chat_template: str | None = None,
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **keywords: Any,
    ) -> Any:
        """A conversation, or a batch of them, through the chat template.

        Args:
            conversation: messages with "role" and "content": a text, or a list of texts, pictures and videos. A
                picture is named by "image", "url", "path" or "base64", or left to the `images` of a later call.
            chat_template: Jinja source instead of the checkpoint's.
            tools, documents: variables of the template.
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: end with the text of the last message, so that an answer goes on with it.
            tokenize: return ids instead of text; needs a source for each picture.
            return_dict: with `tokenize`, return all that the model reads.
            return_tensors, processor_kwargs: with `tokenize`, as in the call.
            return_assistant_tokens_mask: with `return_dict`, also `assistant_masks`, 1 for tokens within
                `{% generation %}`.
            keywords: further variables of the template; with `tokenize`, options of the call.

        Raises:
            BadPrompt: a message is malformed; the error names it.
            TypeError: a keyword is neither a variable of the template nor an option of the call.
        """
        conversations, is_batch = parse_conversations(conversation)
        template = self.chat_template if chat_template is None else chat_template
        variables, options = split_template_kwargs(template, keywords, self._call_kwarg_names())
        options = {**options, **(processor_kwargs or {})}
        rendered = [
            render_template(
                template,
                replace_videos_by_text(turns),
                {**self.tokenizer.special_tokens_map, "tools": tools, "documents": documents, **variables},
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for turns in conversations
        ]
        texts = [one.text for one in rendered]
        if not tokenize:
            if options or return_dict or return_tensors:
                keyword = next(iter(options), "return_dict" if return_dict else "return_tensors")
                raise TypeError(f"{keyword} has no meaning for text: give tokenize=True")
            return texts if is_batch else texts[0]
        options |= self._media_from_messages(conversations, options)
        bos_token = self.tokenizer.bos_token
        if (
            self._prompt_format.add_special_tokens and bos_token and texts[0].startswith(bos_token)
        ):  # the template wrote it
            options.setdefault("add_special_tokens", False)
        if return_assistant_tokens_mask:
            options["generated"] = [one.generation_spans for one in rendered]
        batch = self(text=texts, return_tensors=return_tensors, **options)
        return batch if return_dict else batch["input_ids"]

    def _media_from_messages(
        self, conversations: Sequence[Sequence[ChatTurn]], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The `images` and `videos` that messages name, as options of the call."""
        media: dict[str, Any] = {}
        for name, kind in (("images", "image"), ("videos", "video")):
            sources = [media_sources(turns, kind) for turns in conversations]
            if any(sources) and name in options:
                raise BadPrompt(
                    f"there are {name} in the messages and in {name}=...: give them in one of both"
                )
            if any(sources) or (kind == "image" and name not in options):
                media[name] = sources
        return media

    @classmethod
    def _call_kwarg_names(cls) -> set[str]:
        """The options of the call."""
        return {
            *inspect.signature(cls.__call__).parameters,
            *cls.image_processor_type._setting_names(),
            *KWARG_GROUPS,
            *VIDEO_FIELD_BY_KWARG,
            *NEUTRAL_PROCESSOR_KWARGS,
            *IGNORED_IMAGE_KWARGS,
            "input_data_format",
        } - {"self", "text", "generated"}

    def _make_prompt_processor(self, image_config: ImageProcessorConfig, *, adds_special: bool) -> Processor:
        """What writes this family's prompts."""
        return Processor(
            self.tokenizer.codec,
            image_config,
            replace(self._prompt_format, add_special_tokens=adds_special),
            make_fetcher(),
        )

    def _pad_prompts(
        self, prompts: Sequence[Prompt], padding_options: PaddingOptions
    ) -> dict[str, list[list[int]]]:
        """`input_ids` and `attention_mask`, as lists."""
        return {
            "input_ids": self.tokenizer.pad_ids([prompt.ids for prompt in prompts], padding_options),
            "attention_mask": padding_options.pad([[1] * len(prompt) for prompt in prompts], 0),
        }


def select_prompt_tokens(prompt: Prompt, kept_positions: Sequence[int]) -> Prompt:
    """The prompt with these tokens only. A picture goes with the first of its places that is cut."""
    if len(kept_positions) == len(prompt):
        return prompt
    new_position_by_old = {old: position for position, old in enumerate(kept_positions)}
    kept_image_indices = [
        index
        for index, image_positions in enumerate(prompt.image_token_positions)
        if new_position_by_old.keys() >= set(image_positions)
    ]
    new_image_index_by_old = {-1: -1, **{old: index for index, old in enumerate(kept_image_indices)}}
    return Prompt(
        ids=tuple(prompt.ids[old] for old in kept_positions),
        pictures=tuple(prompt.pictures[index] for index in kept_image_indices),
        image_token_positions=tuple(
            tuple(new_position_by_old[old_position] for old_position in prompt.image_token_positions[index])
            for index in kept_image_indices
        ),
        image_index=tuple(new_image_index_by_old.get(prompt.image_index[old], -1) for old in kept_positions),
    )
