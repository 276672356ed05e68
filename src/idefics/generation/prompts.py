"""Makes prompts of raw items or conversations, for answers and for scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from idefics.errors import BadPrompt, BadSetting
from idefics.generation.arguments import is_conversation
from idefics.messages import Message
from idefics.processing.processor import Processor
from idefics.prompt import Prompt, ScoringPrompt
from idefics.validation import validate_bool, validate_list, validate_text

if TYPE_CHECKING:
    from idefics.processing.prompt_items import PromptItem

    PromptItems = Sequence[PromptItem]
    Conversation = Sequence[Message | Mapping[str, Any]]


class ConversationOptions(TypedDict, total=False):
    """How the answer to a conversation begins; see `Idefics.chat`."""

    answer_start: str
    continue_final_message: bool


EXPECTED_PROMPT = "a list of text and pictures, or of messages"
EXAMPLE_START = "The picture shows"


def make_prompt(
    processor: Processor, items: PromptItems | Conversation, **options: Unpack[ConversationOptions]
) -> Prompt:
    """Makes a `Prompt` of the items of a raw prompt or of a conversation; arguments as in `Idefics.prompt`."""
    item_list = _check_prompt_arguments(items, **options)
    if is_conversation(item_list):
        return processor.encode_chat(item_list, **options)
    return processor.encode_raw(item_list)


def make_scoring_prompt(
    processor: Processor,
    items: PromptItems | Conversation,
    continuations: Sequence[str],
    **options: Unpack[ConversationOptions],
) -> ScoringPrompt:
    """Makes the prompt that all continuations share and the token ids of each; arguments as in `Idefics.score`."""
    item_list = _check_prompt_arguments(items, **options)
    texts = validate_list("continuations", continuations, "a list of texts", error_type=BadPrompt)
    for text in texts:
        validate_text("continuation", text, " a dog", allow_blank=True)
    if is_conversation(item_list):
        return processor.encode_chat_continuations(item_list, texts, **options)
    return processor.encode_raw_continuations(item_list, texts)


def _check_prompt_arguments(
    items: PromptItems | Conversation, answer_start: str = "", continue_final_message: bool = False
) -> list[Any]:
    """Checks the arguments of `make_prompt`; returns the items as a list.

    Raises:
        BadPrompt: no list of items, or `answer_start` is no text.
        BadSetting: `continue_final_message` is no bool, or one of the two is given with a raw prompt.
    """
    item_list = validate_list("items", items, EXPECTED_PROMPT, error_type=BadPrompt)
    validate_text("answer_start", answer_start, EXAMPLE_START, allow_blank=True)
    validate_bool("continue_final_message", continue_final_message)
    if (answer_start or continue_final_message) and not is_conversation(item_list):
        name = "answer_start" if answer_start else "continue_final_message"
        raise BadSetting(f"{name} needs a conversation: write the text at the end of the raw prompt instead")
    return item_list
