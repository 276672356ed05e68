"""The layout and events that the tabs "Caption", "Ask" and "Write" share: picture and text in, a text out."""

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
    """What distinguishes the tabs "Caption", "Ask" and "Write".

    Attributes:
        tab_name: the name in element ids and for `PageBackend.stop_tab`.
        button_label: the text of the button.
        text_label, placeholder: of the text field.
        select_task: the name of the task for a text; raises BadPrompt where no task takes it.
        answer_label: the label of the answer.
        max_new_tokens: the default length of an answer, in tokens.
        examples: bundled pictures, each with a text.
        initial_text: the text when the page opens.
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


class TaskTab:
    """A tab with a picture, a text and an answer, built inside the current Gradio block."""

    def __init__(self, backend: PageBackend, config: TaskTabConfig) -> None:
        self.backend, self.config = backend, config
        with gr.Row():
            with gr.Column(min_width=300):
                self.picture = PictureInput(backend, config.tab_name)
                self.text = gr.Textbox(
                    config.initial_text,
                    label=config.text_label,
                    placeholder=config.placeholder,
                    max_lines=6,
                    elem_id=f"{config.tab_name}-words",
                )
                self._build_controls()
            with gr.Column(min_width=300):
                self.answer = gr.Textbox(
                    label=config.answer_label,
                    lines=8,
                    max_lines=24,
                    buttons=["copy"],
                    elem_id=f"{config.tab_name}-answer",
                )
                self.status_text = gr.Markdown("", elem_id=f"{config.tab_name}-note", elem_classes="note")
                self.code_view = CodeView(config.tab_name)
        build_examples(config.tab_name, config.examples, [self.picture.image, self.text])
        self._connect_events()

    def _build_controls(self) -> None:
        """Builds the controls and the buttons; controls without a strategy are in a closed accordion."""
        config, initial_values = self.config, self.backend.settings.initial_sampling
        tab_name, max_new_tokens = config.tab_name, config.max_new_tokens
        if config.has_strategies:
            self.controls = GenerationControls(tab_name, max_new_tokens, initial_values, has_strategies=True)
        self.run_buttons = RunButtons(self.backend, tab_name, config.button_label)
        if not config.has_strategies:
            with gr.Accordion("Advanced", open=False, elem_id=f"{tab_name}-advanced"):
                self.controls = GenerationControls(tab_name, max_new_tokens, initial_values)

    def _connect_events(self) -> None:
        """Connects the buttons, the token cost and "Show code"."""
        self.picture.connect(self.controls.detail_control)
        inputs = [self.picture.image, self.text, *self.controls.inputs]
        finished_event = self.run_buttons.connect_click(
            self._stream_answer, inputs, [self.answer, self.status_text], self.text.submit
        )
        changes = [self.picture.image.change, self.text.blur, *self.controls.change_events]
        self.code_view.connect(self._make_snippets, inputs, finished_event.then, *changes)

    def _make_snippets(self, payload: Any, text: str, *values: Any) -> TaskSnippets:
        """The code for the values of the tab, for "Show code"."""
        name = UploadedPicture.from_payload(payload).name
        options = self.controls.to_generation_kwargs(*values)
        return self.backend.make_task_snippets(
            self.config.select_task(text), name, words=text.strip(), options=options
        )

    def _stream_answer(
        self, session: str, payload: Any, text: str, *values: Any
    ) -> Iterator[tuple[str, str]]:
        """Yields the text of the answer so far, and finally the text with its cost."""
        snippets = self._make_snippets(payload, text, *values)
        picture = self.backend.open_upload(UploadedPicture.from_payload(payload))
        options: dict[str, Any] = {"max_new_tokens": self.config.max_new_tokens, **snippets.options}
        yield from stream_text_and_cost(
            self.backend,
            session,
            self.config.tab_name,
            options["max_new_tokens"],
            lambda: self.backend.start_task(snippets.task, picture, snippets.words, options),
        )
