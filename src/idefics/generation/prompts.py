"""Makes prompts of raw items or conversations, for answers and for scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from idefics.engine.request import Deadline
from idefics.errors import BadPrompt, BadSetting, IdeficsError
from idefics.generation.call_inputs import ErrorPolicy, call_with_deadline, result_or_error
from idefics.generation.loading import LoadedModel
from idefics.messages import ImageDetail, Message
from idefics.options import OnError
from idefics.processing.processor import Processor
from idefics.prompt import Prompt, ScoringPrompt
from idefics.validation import reject_lone_surrogates, short_repr, validate_bool, validate_list, validate_text

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
    """Makes the prompt that all continuations share and the token ids of each.

    Args:
        continuations: texts, checked already. The other arguments are as in `Idefics.score`.
    """
    item_list = _check_prompt_arguments(items, **options)
    if is_conversation(item_list):
        return processor.encode_chat_continuations(item_list, continuations, **options)
    return processor.encode_raw_continuations(item_list, continuations)


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


def parse_prompts_argument(
    name: str, value: Any, expected: str, input_name: str, on_error: OnError, stream: bool
) -> tuple[list[Any], ErrorPolicy]:
    """Normalizes an argument that is one prompt or a list of prompts.

    Args:
        name: the argument's name, for error messages.
        value: the argument: one prompt (a list of items or messages) or a list of prompts.
        expected: what one prompt should be, for error messages.
        input_name: the word for one prompt, for error messages.
        on_error: the call's `on_error` argument.
        stream: the call's `stream` argument.

    Returns:
        The prompts, and how the call handles errors about one of them.

    Raises:
        BadPrompt: the argument is not a list.
        BadSetting: `on_error` or `stream` is wrong.
    """
    items = validate_list(name, value, expected, error_type=BadPrompt)
    is_batch = bool(items) and isinstance(items[0], (list, tuple))
    error_policy = ErrorPolicy(input_name, len(items) if is_batch else 0, on_error, stream)
    return (items if is_batch else [items]), error_policy


def is_conversation(items: Sequence[Any]) -> bool:
    """Whether a prompt is a list of messages, rather than of text and pictures."""
    return bool(items) and isinstance(items[0], (Message, Mapping))


def as_string_tuple(name: str, value: object) -> tuple[str, ...]:
    """Normalizes an argument that is one string or a collection of strings to a tuple.

    Args:
        name: the argument's name, for messages.

    Raises:
        BadSetting: it is anything else.
        BadPrompt: a string has a lone surrogate.
    """
    expected = "a text or a list of texts"
    texts = [value] if isinstance(value, str) else validate_list(name, value, expected, allow_set=True)
    if not all(isinstance(text, str) for text in texts):
        raise BadSetting(f"{name} is {short_repr(value)}; give {expected}")
    for text in texts:
        reject_lone_surrogates(name, text)
    return tuple(texts)


def require_prompt(prompt: object) -> Prompt:
    """Returns the argument if it is a `Prompt`.

    Raises:
        BadPrompt: it is anything else; the message says how to make one.
    """
    if isinstance(prompt, Prompt):
        return prompt
    raise BadPrompt(f"prompt is {short_repr(prompt)}; make one with vlm.prompt([picture, text])")


def score_continuations(
    model: LoadedModel,
    items: PromptItems | Conversation,
    continuations: Sequence[str],
    *,
    image_detail: ImageDetail,
    on_error: OnError,
    timeout: float | None,
    **options: Unpack[ConversationOptions],
) -> tuple[Prompt, list[list[float] | IdeficsError]]:
    """Scores continuations of one prompt; see `Idefics.score`.

    Args:
        model: the model.
        items: a raw prompt or a conversation.
        continuations: the texts to score.
        image_detail: how pictures that do not set their own detail are split into tiles.
        on_error: handles errors about one continuation.
        timeout: seconds until the call fails; None: never.
        **options: conversations only.

    Returns:
        The prompt, and for each continuation the log-probability of each of its tokens, or its error.
    """
    deadline = Deadline.from_timeout(timeout)
    texts = validate_list("continuations", continuations, "a list of texts", error_type=BadPrompt)
    error_policy = ErrorPolicy("continuation", len(texts), on_error)
    item_list = validate_list("items", items, EXPECTED_PROMPT, error_type=BadPrompt)
    check = partial(_check_continuation, model.processor, is_conversation(item_list))
    checked_texts = [
        error_policy.return_or_raise(index, result_or_error(check, text)) for index, text in enumerate(texts)
    ]
    valid_texts = [text for text in checked_texts if isinstance(text, str)]
    processor = model.processor.with_image_detail(image_detail)

    def encode(items: PromptItems | Conversation) -> ScoringPrompt:
        if texts and not valid_texts:  # every text has an error; one of the prompt is raised all the same
            return ScoringPrompt(make_prompt(processor, items, **options), ())
        return make_scoring_prompt(processor, items, valid_texts, **options)

    prompt, continuation_ids = call_with_deadline(encode, item_list, deadline)
    scores = iter(model.engine.score(prompt, continuation_ids, deadline) if continuation_ids else ())
    return prompt, [next(scores) if isinstance(text, str) else text for text in checked_texts]


def _check_continuation(processor: Processor, in_chat: bool, text: object) -> str:
    """Returns a continuation; raises BadPrompt or PromptTooLong if it cannot follow any prompt."""
    continuation = validate_text("continuation", text, " a dog", allow_blank=True)
    processor.check_continuation(continuation, in_chat=in_chat)
    return continuation
