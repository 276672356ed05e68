"""The answer of `/v1/responses`, and the events of its stream."""

from __future__ import annotations

from typing import Any, Literal

from idefics.server.logprobs import TokenLogprobWithTop
from idefics.server.response_fields import NotesField, PromptTokensDetails, ResponseFields

ResponseStatus = Literal["in_progress", "completed", "incomplete"]


class ResponseOutputText(ResponseFields):
    """The text of the answer, with log-probabilities if requested."""

    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[TokenLogprobWithTop]


class ResponseOutputMessage(ResponseFields):
    """The answer as a message of the assistant."""

    type: Literal["message"]
    id: str
    status: ResponseStatus
    role: Literal["assistant"]
    content: list[ResponseOutputText]


class InputTokensDetails(PromptTokensDetails):
    """Number of prompt tokens found in the prefix cache, and of those added to it."""

    cache_write_tokens: int


class OutputTokensDetails(ResponseFields):
    """Number of generated tokens that are reasoning; none, since the server has no reasoning models."""

    reasoning_tokens: Literal[0]


class ResponseUsage(ResponseFields):
    """Tokens of a request: of its prompt, and of the answer."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseObject(NotesField):
    """The answer of `/v1/responses`: its message, and the options of the request."""

    id: str
    object: Literal["response"]
    created_at: int
    status: ResponseStatus
    error: None
    incomplete_details: dict[Literal["reason"], Literal["max_output_tokens"]] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[ResponseOutputMessage]
    parallel_tool_calls: Literal[False]
    previous_response_id: None
    store: Literal[False]
    temperature: float
    text: dict[Literal["format"], dict[str, Any]]
    tool_choice: Literal["none"]
    tools: list[None]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None


class ResponseEventFields(ResponseFields):
    """Fields of every event: its number in the stream, from 0."""

    sequence_number: int


class ResponseEvent(ResponseEventFields):
    """The response begins (`created`, `in_progress`) or ends (`completed`, `incomplete`)."""

    type: Literal["response.created", "response.in_progress", "response.completed", "response.incomplete"]
    response: ResponseObject


class ResponseOutputItemEvent(ResponseEventFields):
    """The message of the answer begins or ends."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: ResponseOutputMessage


class ResponsePositionFields(ResponseEventFields):
    """Where in the response the text of the answer is."""

    item_id: str
    output_index: int
    content_index: int


class ResponseContentPartEvent(ResponsePositionFields):
    """The text of the answer begins or ends."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    part: ResponseOutputText


class ResponseTextDeltaEvent(ResponsePositionFields):
    """The text of the answer grows by `delta`."""

    type: Literal["response.output_text.delta"]
    delta: str
    logprobs: list[TokenLogprobWithTop]


class ResponseTextDoneEvent(ResponsePositionFields):
    """The text of the answer is complete."""

    type: Literal["response.output_text.done"]
    text: str
    logprobs: list[TokenLogprobWithTop]


class ResponseErrorEvent(ResponseEventFields):
    """The response failed; the last event of the stream."""

    type: Literal["error"]
    code: str | None
    message: str
    param: str | None


ResponseStreamEvent = (
    ResponseEvent
    | ResponseOutputItemEvent
    | ResponseContentPartEvent
    | ResponseTextDeltaEvent
    | ResponseTextDoneEvent
    | ResponseErrorEvent
)
