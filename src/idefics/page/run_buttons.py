"""The button that starts an answer and the button that stops it, with their events."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from idefics.messages import Answer
from idefics.page.backend import PageBackend
from idefics.page.formatting import format_answer_cost, show_stream_errors

if TYPE_CHECKING:
    from idefics import Stream

# For every event: Gradio's own API is not offered; `idefics serve` has one.
PRIVATE_EVENT_KWARGS: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# For handlers that take pictures: they get the browser's payload, which has the file's name.
RAW_EVENT_KWARGS: dict[str, Any] = {**PRIVATE_EVENT_KWARGS, "preprocess": False}


Handler = Callable[..., Iterator[Any]]


class RunButtons:
    """The two buttons of a tab: one starts an answer, the other stops it.

    Args:
        backend: stops the running answers.
        tab_name: the tab, in element ids and for `PageBackend.stop_tab`.
        label: the text of the button that starts.

    Attributes:
        disabled_while_running: components that are disabled while an answer runs.
    """

    def __init__(self, backend: PageBackend, tab_name: str, label: str) -> None:
        self.backend, self.tab_name = backend, tab_name
        with gr.Row(elem_classes="together") as self.row:
            self.button = gr.Button(label, variant="primary", elem_id=f"{tab_name}-run", min_width=120)
            self.disabled_while_running: list[Any] = [self.button]
            self.stop_button = gr.Button(
                "Stop", interactive=False, elem_id=f"{tab_name}-stop", min_width=90, scale=0
            )

        def stop_running(request: gr.Request) -> None:
            backend.stop_tab(request.session_hash or "", tab_name)

        self.stop_button.click(stop_running, None, None, queue=False, **PRIVATE_EVENT_KWARGS)

    def connect_click(
        self, handler: Handler, inputs: Sequence[Any], outputs: Sequence[Any], *events: Any
    ) -> Any:
        """Runs a handler on a click on the button or on one of `events`.

        Args:
            handler: called with the session and the values of `inputs`; yields values for `outputs`.
            inputs, outputs: components.
            events: further events that start it, such as `textbox.submit`.

        Returns:
            The event that follows a successful run.
        """
        return self.connect_event(partial(gr.on, [self.button.click, *events]), handler, inputs, outputs)

    def connect_event(
        self, event: Any, handler: Handler, inputs: Sequence[Any], outputs: Sequence[Any], **event_kwargs: Any
    ) -> Any:
        """As `connect_click`, for any event, such as `button.click` or the `success` of an earlier event."""
        guarded_handler, backend = show_stream_errors(handler), self.backend

        def run_handler(request: gr.Request, *values: Any) -> Any:
            yield from guarded_handler(request.session_hash or "", *values)

        def set_running(busy: bool) -> Callable[[], list[Any]]:
            return lambda: (
                [gr.update(interactive=not busy)] * len(self.disabled_while_running)
                + [gr.update(interactive=busy)]
            )

        all_components = [*self.disabled_while_running, self.stop_button]
        start_event = event(set_running(True), None, all_components, queue=False, **PRIVATE_EVENT_KWARGS)
        end_event = start_event.then(
            run_handler,
            list(inputs),
            list(outputs),
            concurrency_limit=backend.settings.max_concurrent_answers,
            concurrency_id="answers",
            **RAW_EVENT_KWARGS,
            **event_kwargs,
        )
        # After an error Gradio runs `failure` and not `then`.
        end_event.failure(set_running(False), None, all_components, queue=False, **PRIVATE_EVENT_KWARGS)
        return end_event.then(set_running(False), None, all_components, queue=False, **PRIVATE_EVENT_KWARGS)


def stream_text_and_cost(
    backend: PageBackend, session: str, tab_name: str, max_new_tokens: int, start_stream: Callable[[], Stream]
) -> Iterator[tuple[str, str]]:
    """Yields an answer's text so far with an empty line below it; finally the text and its cost."""
    yield "", ""
    for text_or_answer in backend.stream_answer(session, tab_name, max_new_tokens, start_stream):
        yield (
            (text_or_answer.text, format_answer_cost(text_or_answer))
            if isinstance(text_or_answer, Answer)
            else (text_or_answer, "")
        )
