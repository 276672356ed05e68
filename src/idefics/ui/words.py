"""Mistakes and figures, said to a person."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Generator, Iterator
from functools import wraps
from typing import Any

import gradio as gr

from idefics.errors import EngineBusy, IdeficsError
from idefics.messages import Answer, Ranking, Usage

LOG = logging.getLogger("idefics.ui")
ENDINGS = {"stop": "", "length": "cut off: more tokens are allowed under “Advanced”", "cancelled": "stopped"}


def spoken(run: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose errors are shown to the person, in words."""

    @wraps(run)
    def handler(*given: Any) -> Any:
        try:
            return run(*given)
        except Exception as error:
            raise shown(error) from None

    return handler


def spoken_stream(run: Callable[..., Iterator[Any]]) -> Callable[..., Generator[Any]]:
    """The same for a handler that yields."""

    @wraps(run)
    def handler(*given: Any) -> Generator[Any]:
        try:
            yield from run(*given)
        except Exception as error:
            raise shown(error) from None

    return handler


def shown(error: Exception) -> Any:
    """What the browser shows of an error: its own words if it is ours, and else that there is one."""
    if isinstance(error, IdeficsError):
        text, title = str(error), "Busy" if isinstance(error, EngineBusy) else "That does not work"
    else:
        LOG.exception("a handler of the page failed", exc_info=error)
        text, title = "This was not foreseen. The terminal that serves this page shows what it was.", "Error"
    if text.partition(" ")[0].isalpha():  # and no name of a file
        text = text[0].upper() + text[1:]
    return gr.Error(html.escape(text), title=title, print_exception=False)


def cost(answer: Answer) -> str:
    """What an answer took, on one line."""
    usage, seconds = answer.usage, answer.timings
    pace = len(answer.tokens) / max(seconds.total - seconds.first_token, 1e-9)
    parts = [
        f"{reading(usage)}, {counted(usage.completion_tokens, 'token')} written",
        f"{seconds.total:.1f} s" + (f", {pace:,.0f} tokens a second" if len(answer.tokens) > 1 else ""),
        ENDINGS[answer.finish],
        *answer.notes,
    ]
    return " · ".join(part for part in parts if part)


def ranking_cost(ranking: Ranking) -> str:
    """What a ranking took, on one line."""
    return " · ".join((reading(ranking.usage), f"{ranking.timings.total:.1f} s", *ranking.notes))


def reading(usage: Usage) -> str:
    """What was read for an answer."""
    return f"{counted(usage.prompt_tokens, 'token')} read"


def counted(number: int, thing: str) -> str:
    """ "1 token", "2 tokens"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
