"""Chat templates of tokenizers and processors: conversations to text, and to ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from idefics.compat.tokenization_encoding import span_overlap_mask
from idefics.compat.tokenization_vocabulary import VocabularyMixin
from idefics.processing.chat_template import render_template

Messages = Sequence[Mapping[str, Any]]
Conversations = Messages | Sequence[Messages]  # one, or a batch

# Arguments of a tokenizer's call that `apply_chat_template` takes too.
TOKENIZER_CALL_KWARG_NAMES = ("max_length", "pad_to_multiple_of", "padding", "truncation")


class ChatTemplateMixin(VocabularyMixin):
    """Gives a tokenizer `apply_chat_template`, which renders and tokenizes conversations."""

    chat_template: str

    def __call__(self, text: Any, **options: Any) -> Any:
        """Tokenizes a text or a batch of texts."""
        raise NotImplementedError

    def apply_chat_template(
        self,
        conversation: Conversations,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """Renders a conversation, or a batch of them, with the chat template, and tokenizes the text.

        Args:
            tools, documents: variables of the template.
            chat_template: Jinja source in place of the checkpoint's.
            add_generation_prompt: end with the beginning of an answer.
            continue_final_message: end with the text of the last message, so that an answer continues it.
            tokenize: False returns the text.
            return_dict: with `tokenize`, return all that the call returns; False returns the ids alone.
            return_assistant_tokens_mask: also return `assistant_masks`, 1 for tokens within `{% generation %}`.
            tokenizer_kwargs: arguments of the call.
            variables: further variables of the template; `padding`, `truncation`, `max_length` and
                `pad_to_multiple_of` are arguments of the call.
        """
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        options = {name: variables.pop(name) for name in TOKENIZER_CALL_KWARG_NAMES if name in variables}
        conversations: Any = conversation if is_batch else [conversation]
        rendered = [
            render_template(
                self.chat_template if chat_template is None else chat_template,
                turns,
                {**self.special_tokens_map, "tools": tools, "documents": documents, **variables},
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
            )
            for turns in conversations
        ]
        texts: Any = [one.text for one in rendered] if is_batch else rendered[0].text
        if not tokenize:
            return texts
        options |= {"add_special_tokens": False, "return_tensors": return_tensors, **(tokenizer_kwargs or {})}
        encoding = self(texts, return_offsets_mapping=return_assistant_tokens_mask, **options)
        if return_assistant_tokens_mask:
            returns_rows = is_batch or return_tensors is not None
            offsets = encoding.pop("offset_mapping")
            masks = [
                span_overlap_mask(row, one.generation_spans)
                for row, one in zip(offsets if returns_rows else [offsets], rendered, strict=True)
            ]
            encoding["assistant_masks"] = masks if returns_rows else masks[0]
            encoding = encoding.convert_to_tensors(return_tensors)
        return encoding if return_dict else encoding["input_ids"]
