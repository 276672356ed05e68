"""What routes answer, for the API's description: the shapes that clients can rely on. Errors are `wiring.ErrorBody`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ResponseModel(BaseModel):
    """Exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class ResponseWithNotes(ResponseModel):
    """An answer; `notes` say what was not read of the pictures' files, and are left out where all was."""

    notes: list[str] = []


class PromptTokensDetails(ResponseModel):
    """So many tokens of the prompt had been read already, for an earlier one with the same beginning."""

    cached_tokens: int


class CompletionUsage(ResponseModel):
    """What an answer has cost."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TokenLogprob(ResponseModel):
    """A token, its natural-log probability, and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobWithTop(TokenLogprob):
    """The token that was chosen in a place, and the likeliest there."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(ResponseModel):
    """All places of an answer."""

    content: list[TokenLogprobWithTop]
    refusal: None


class ChatResponseMessage(ResponseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(ResponseModel):
    """One of `n` answers."""

    index: int
    message: ChatResponseMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletionResponse(ResponseWithNotes):
    """An answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class CompletionLogprobs(ResponseModel):
    """Lists of one length: tokens, how likely each was, the likeliest in its place, where it begins in the text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(ResponseModel):
    """One of `n` answers."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionResponse(ResponseWithNotes):
    """An answer of `/v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage


class ResponseOutputText(ResponseModel):
    """The text of a response."""

    type: Literal["output_text"]
    text: str
    annotations: list[None]
    logprobs: list[TokenLogprobWithTop]


class ResponseOutputMessage(ResponseModel):
    """The one message of a response."""

    type: Literal["message"]
    id: str
    status: Literal["completed", "incomplete"]
    role: Literal["assistant"]
    content: list[ResponseOutputText]


class InputTokensDetails(PromptTokensDetails):
    """And so many had not, and are kept from now on."""

    cache_write_tokens: int


class OutputTokensDetails(ResponseModel):
    """Nothing is thought aside."""

    reasoning_tokens: Literal[0]


class ResponseUsage(ResponseModel):
    """What a response has cost."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseObject(ResponseWithNotes):
    """An answer of `/v1/responses`: the message, and what was asked."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
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
    tools: list[None] = Field(max_length=0)
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage
    user: str | None


class TaskUsage(CompletionUsage):
    """What a task has cost."""

    pictures: int


class TaskResponse(ResponseWithNotes):
    """Words about a picture."""

    object: Literal["image.task"]
    task: str
    text: str
    finish_reason: Literal["stop", "length"]
    usage: TaskUsage


class LabelScore(ResponseModel):
    """One label of several: the probabilities of all add up to 1."""

    label: str
    probability: float
    logprob: float


class ClassificationResponse(ResponseWithNotes):
    """The labels, the likeliest first."""

    object: Literal["image.task"]
    task: str
    labels: list[LabelScore]
    usage: TaskUsage


class ModelCard(ResponseModel):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["idefics"]


class ModelList(ResponseModel):
    """All models: there is one."""

    object: Literal["list"]
    data: list[ModelCard]


class HealthResponse(ResponseModel):
    """The process is alive."""

    status: Literal["ok"]


class ReadyResponse(ResponseModel):
    """Whether there is room."""

    status: Literal["ready", "busy"]
