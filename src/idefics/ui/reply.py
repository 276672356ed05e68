"""A tab whose answer is words about one picture: the left side asks, the right side answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from idefics.ui.code import Call
from idefics.ui.codeview import CodeView
from idefics.ui.desk import Desk
from idefics.ui.given import Given
from idefics.ui.pictures import PictureInput, examples
from idefics.ui.run import Run, growing
from idefics.ui.sliders import Sliders


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What such a tab is.

    Attributes:
        place: its name in ids and sessions.
        button: what its button says.
        label, placeholder: of the words that the person gives.
        task: the name of the task that those words ask for.
        answer: what the answer is called.
        most: tokens of an answer, unless somebody says otherwise.
        examples: bundled pictures, and the words that go with each.
        words: what stands there at first.
        strategies: as in `Sliders`.
    """

    place: str
    button: str
    label: str
    placeholder: str
    task: Callable[[str], str]
    answer: str
    most: int
    examples: Sequence[tuple[str, str]]
    words: str = ""
    strategies: bool = False


def build(desk: Desk, reply: Reply) -> None:
    """Makes the tab, inside the page."""
    place = reply.place
    with gr.Row():
        with gr.Column(min_width=300):
            picture = PictureInput(desk, place)
            words = gr.Textbox(
                reply.words,
                label=reply.label,
                placeholder=reply.placeholder,
                max_lines=6,
                elem_id=f"{place}-words",
            )
            if reply.strategies:
                sliders = Sliders(place, reply.most, desk.settings.start, strategies=True)
                run = Run(desk, place, reply.button)
            else:
                run = Run(desk, place, reply.button)
                with gr.Accordion("Advanced", open=False, elem_id=f"{place}-advanced"):
                    sliders = Sliders(place, reply.most, desk.settings.start)
        with gr.Column(min_width=300):
            answer = gr.Textbox(
                label=reply.answer, lines=8, max_lines=24, buttons=["copy"], elem_id=f"{place}-answer"
            )
            note = gr.Markdown("", elem_id=f"{place}-note", elem_classes="note")
            code = CodeView(place)
    examples(place, reply.examples, [picture.image, words])
    picture.listen(sliders.detail)

    def call(payload: Any, said: str, *values: Any) -> Call:
        name = Given.of(payload).name
        return desk.about(reply.task(said), name, words=said.strip(), options=sliders.options(*values))

    def respond(session: str, payload: Any, said: str, *values: Any) -> Iterator[tuple[str, str]]:
        wanted = call(payload, said, *values)
        look = desk.picture(Given.of(payload))
        options: dict[str, Any] = {"max_new_tokens": reply.most, **wanted.options}
        most = options["max_new_tokens"]
        yield from growing(
            desk, session, place, most, lambda: desk.stream(wanted.task, look, wanted.words, options)
        )

    inputs = [picture.image, words, *sliders.inputs]
    done = run.listen(respond, inputs, [answer, note], words.submit)
    code.listen(call, inputs, done.then, picture.image.change, words.blur, *sliders.changes)
