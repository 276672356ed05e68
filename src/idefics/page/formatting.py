"""Formats errors, token counts and times for the page."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Generator, Iterator
from functools import wraps
from typing import Any

import gradio as gr

from idefics.errors import EngineBusy, IdeficsError
from idefics.messages import Answer, Ranking, Usage

log = logging.getLogger("idefics.page")
NOTE_BY_FINISH_REASON = {
    "stop": "",
    "length": "cut off: more tokens are allowed under “Advanced”",
    "cancelled": "stopped",
}


def show_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps an event handler: its exceptions are shown as a message on the page."""

    @wraps(function)
    def handler(*given: Any) -> Any:
        try:
            return function(*given)
        except Exception as error:
            raise to_gradio_error(error) from None

    return handler


def show_stream_errors(function: Callable[..., Iterator[Any]]) -> Callable[..., Generator[Any]]:
    """Wraps an event handler that is a generator; as `show_errors`."""

    @wraps(function)
    def handler(*given: Any) -> Generator[Any]:
        try:
            yield from function(*given)
        except Exception as error:
            raise to_gradio_error(error) from None

    return handler


def to_gradio_error(error: Exception) -> Any:
    """The `gr.Error` for an exception: an IdeficsError keeps its text, any other is logged and shown without it."""
    if isinstance(error, IdeficsError):
        text, title = str(error), "Busy" if isinstance(error, EngineBusy) else "That does not work"
    else:
        log.exception("a handler of the page failed", exc_info=error)
        text, title = "An unexpected error. The terminal that serves this page shows the details.", "Error"
    if text.partition(" ")[0].isalpha():  # a word, not a file's name
        text = text[0].upper() + text[1:]
    return gr.Error(html.escape(text), title=title, print_exception=False)


def format_answer_cost(answer: Answer) -> str:
    """One line below an answer: tokens read and written, seconds, and notes."""
    usage, timings = answer.usage, answer.timings
    tokens_per_second = len(answer.tokens) / max(timings.total - timings.first_token, 1e-9)
    parts = [
        f"{format_tokens_read(usage)}, {format_count(usage.completion_tokens, 'token')} written",
        f"{timings.total:.1f} s"
        + (f", {tokens_per_second:,.0f} tokens a second" if len(answer.tokens) > 1 else ""),
        NOTE_BY_FINISH_REASON[answer.finish],
        *answer.notes,
    ]
    return " · ".join(part for part in parts if part)


def format_ranking_cost(ranking: Ranking) -> str:
    """One line below a ranking: tokens read, seconds, and notes."""
    return " · ".join((format_tokens_read(ranking.usage), f"{ranking.timings.total:.1f} s", *ranking.notes))


def format_tokens_read(usage: Usage) -> str:
    """The number of prompt tokens: "120 tokens read"."""
    return f"{format_count(usage.prompt_tokens, 'token')} read"


def format_count(count: int, noun: str) -> str:
    """A count with its noun: "1 token", "2 tokens"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
