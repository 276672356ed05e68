"""The button that asks, the button that stops, and what happens between the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from idefics.messages import Answer
from idefics.ui.desk import Desk
from idefics.ui.words import cost, spoken_stream

if TYPE_CHECKING:
    from idefics.pipeline import Stream

# Of every handler. Gradio's interface for programs is not ours: `idefics serve` has one.
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# Of handlers that are given pictures: as the browser sent them, with the file's name.
RAW: dict[str, Any] = {**HIDDEN, "preprocess": False}


Handler = Callable[..., Iterator[Any]]


class Run:
    """Both buttons.

    Args:
        place: of the tab, in ids and for `Desk.stop`.
        label: of the first button.

    Attributes:
        resting: what nobody may touch while it runs.
    """

    def __init__(self, desk: Desk, place: str, label: str) -> None:
        self.desk, self.place = desk, place
        with gr.Row(elem_classes="together") as self.row:
            self.button = gr.Button(label, variant="primary", elem_id=f"{place}-run", min_width=120)
            self.resting: list[Any] = [self.button]
            self.end = gr.Button("Stop", interactive=False, elem_id=f"{place}-stop", min_width=90, scale=0)

        def stop(request: gr.Request) -> None:
            desk.stop(request.session_hash or "", place)

        self.end.click(stop, None, None, queue=False, **HIDDEN)

    def listen(self, handler: Handler, inputs: Sequence[Any], outputs: Sequence[Any], *also: Any) -> Any:
        """Runs `handler(session, *inputs)`, which yields outputs, on a click or one of the events `also`.

        Returns:
            The event after it, where it went well.
        """
        return self.follow(partial(gr.on, [self.button.click, *also]), handler, inputs, outputs)

    def follow(
        self, first: Any, handler: Handler, inputs: Sequence[Any], outputs: Sequence[Any], **how: Any
    ) -> Any:
        """The same after any event, such as `button.click` or, of an earlier one, `event.success`."""
        told, desk = spoken_stream(handler), self.desk

        def run(request: gr.Request, *values: Any) -> Any:
            yield from told(request.session_hash or "", *values)

        def set_to(busy: bool) -> Callable[[], list[Any]]:
            return lambda: (
                [gr.update(interactive=not busy)] * len(self.resting) + [gr.update(interactive=busy)]
            )

        all = [*self.resting, self.end]
        begun = first(set_to(True), None, all, queue=False, **HIDDEN)
        ended = begun.then(
            run,
            list(inputs),
            list(outputs),
            concurrency_limit=desk.settings.side_by_side,
            concurrency_id="answers",
            **RAW,
            **how,
        )
        ended.failure(set_to(False), None, all, queue=False, **HIDDEN)  # after an error `then` is not run
        return ended.then(set_to(False), None, all, queue=False, **HIDDEN)


def growing(
    desk: Desk, session: str, place: str, most: int, ask: Callable[[], Stream]
) -> Iterator[tuple[str, str]]:
    """An answer's text and what it took, while it grows."""
    yield "", ""
    for one in desk.answer(session, place, most, ask):
        yield (one.text, cost(one)) if isinstance(one, Answer) else (one, "")
