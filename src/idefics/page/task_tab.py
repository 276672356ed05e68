"""A tab whose answer is words about one picture: the left side asks, the right side answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from idefics.page.backend import PageBackend
from idefics.page.code_snippets import TaskSnippets
from idefics.page.code_view import CodeView
from idefics.page.generation_controls import GenerationControls
from idefics.page.picture_input import PictureInput, build_examples
from idefics.page.run_buttons import RunButtons, stream_text_and_cost
from idefics.page.uploaded_picture import UploadedPicture


@dataclass(frozen=True, kw_only=True)
class TaskTabConfig:
    """What such a tab is.

    Attributes:
        tab_name: its name in ids and sessions.
        button_label: what its button says.
        text_label, placeholder: of the words that the person gives.
        select_task: the name of the task that those words ask for.
        answer_label: what the answer is called.
        max_new_tokens: tokens of an answer, unless somebody says otherwise.
        examples: bundled pictures, and the words that go with each.
        initial_text: what stands there at first.
        has_strategies: as in `GenerationControls`.
    """

    tab_name: str
    button_label: str
    text_label: str
    placeholder: str
    select_task: Callable[[str], str]
    answer_label: str
    max_new_tokens: int
    examples: Sequence[tuple[str, str]]
    initial_text: str = ""
    has_strategies: bool = False


def build_task_tab(backend: PageBackend, config: TaskTabConfig) -> None:
    """Makes the tab, inside the page."""
    tab_name = config.tab_name
    with gr.Row():
        with gr.Column(min_width=300):
            picture = PictureInput(backend, tab_name)
            text = gr.Textbox(
                config.initial_text,
                label=config.text_label,
                placeholder=config.placeholder,
                max_lines=6,
                elem_id=f"{tab_name}-words",
            )
            if config.has_strategies:
                controls = GenerationControls(
                    tab_name, config.max_new_tokens, backend.settings.initial_sampling, has_strategies=True
                )
                run_buttons = RunButtons(backend, tab_name, config.button_label)
            else:
                run_buttons = RunButtons(backend, tab_name, config.button_label)
                with gr.Accordion("Advanced", open=False, elem_id=f"{tab_name}-advanced"):
                    controls = GenerationControls(
                        tab_name, config.max_new_tokens, backend.settings.initial_sampling
                    )
        with gr.Column(min_width=300):
            answer = gr.Textbox(
                label=config.answer_label,
                lines=8,
                max_lines=24,
                buttons=["copy"],
                elem_id=f"{tab_name}-answer",
            )
            status_text = gr.Markdown("", elem_id=f"{tab_name}-note", elem_classes="note")
            code_view = CodeView(tab_name)
    build_examples(tab_name, config.examples, [picture.image, text])
    picture.connect(controls.detail_control)

    def make_snippets(payload: Any, said: str, *values: Any) -> TaskSnippets:
        name = UploadedPicture.from_payload(payload).name
        return backend.make_task_snippets(
            config.select_task(said), name, words=said.strip(), options=controls.to_generation_kwargs(*values)
        )

    def stream_task(session: str, payload: Any, said: str, *values: Any) -> Iterator[tuple[str, str]]:
        snippets = make_snippets(payload, said, *values)
        opened_picture = backend.open_upload(UploadedPicture.from_payload(payload))
        options: dict[str, Any] = {"max_new_tokens": config.max_new_tokens, **snippets.options}
        max_new_tokens = options["max_new_tokens"]
        yield from stream_text_and_cost(
            backend,
            session,
            tab_name,
            max_new_tokens,
            lambda: backend.start_task(snippets.task, opened_picture, snippets.words, options),
        )

    inputs = [picture.image, text, *controls.inputs]
    finished_event = run_buttons.connect_click(stream_task, inputs, [answer, status_text], text.submit)
    code_view.connect(
        make_snippets, inputs, finished_event.then, picture.image.change, text.blur, *controls.change_events
    )
