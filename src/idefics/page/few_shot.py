"""The tab "Few-shot": a task on a picture, with examples that the answer follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from idefics.demo import pictures as bundled
from idefics.errors import BadPrompt
from idefics.page.backend import PageBackend
from idefics.page.code_snippets import TaskSnippets
from idefics.page.code_view import CodeView
from idefics.page.few_shot_examples import (
    ExampleShot,
    check_num_examples,
    example_tuples,
    make_example,
    read_examples,
    to_jsonl,
)
from idefics.page.files import save_file
from idefics.page.formatting import show_errors
from idefics.page.generation_controls import GenerationControls
from idefics.page.picture_input import PictureInput, build_examples
from idefics.page.run_buttons import PRIVATE_EVENT_KWARGS, RAW_EVENT_KWARGS, RunButtons, stream_text_and_cost
from idefics.page.uploaded_picture import FilePayload, UploadedPicture
from idefics.tasks import TASKS

if TYPE_CHECKING:
    from idefics import Stream

TAB_NAME = "few-shot"
TASK_CHOICES = [("Caption it", "caption"), ("Answer a question", "ask"), ("Continue a text", "complete")]
DEFAULT_MAX_NEW_TOKENS = 64
FUN_FACT_EXAMPLES = (("tower.png", "An image of a tower. Fun fact: towers sway a little in the wind."),)
COUNTING_EXAMPLES = (
    ("statue.png", "1 STATUE"),
    ("vegetables.png", "1 TOMATO, 1 CORN COB, 1 CARROT, 1 EGGPLANT"),
)
SAMPLE_SETS = (("statue.png", FUN_FACT_EXAMPLES), ("door.png", COUNTING_EXAMPLES))


def build_tab(backend: PageBackend) -> None:
    """Builds the tab "Few-shot" inside the current Gradio block."""
    FewShotTab(backend)


class FewShotTab:
    """The components of the tab and their event handlers."""

    def __init__(self, backend: PageBackend) -> None:
        self.backend = backend
        self.examples_state = gr.State([])
        self.selected_index = gr.State(-1)
        with gr.Row():
            with gr.Column(min_width=300):
                gr.Markdown("### 1. Examples to follow")
                self._build_examples_column()
            with gr.Column(min_width=300):
                gr.Markdown("### 2. The picture to answer about")
                self.picture = PictureInput(backend, TAB_NAME)
                self.task = gr.Radio(
                    TASK_CHOICES, value="caption", label="What to do", elem_id="few-shot-task"
                )
                self.text = gr.Textbox(
                    value="", label="Question or text", visible=False, max_lines=4, elem_id="few-shot-words"
                )
                self.run_buttons = RunButtons(backend, TAB_NAME, "Answer")
                self.answer = gr.Textbox(
                    label="Answer", lines=3, max_lines=16, buttons=["copy"], elem_id="few-shot-answer"
                )
                self.status_text = gr.Markdown("", elem_id="few-shot-note", elem_classes="note")
                with gr.Accordion("Advanced", open=False, elem_id="few-shot-advanced"):
                    self.controls = GenerationControls(
                        TAB_NAME, DEFAULT_MAX_NEW_TOKENS, backend.settings.initial_sampling
                    )
                self.code_view = CodeView(TAB_NAME)
        samples = [(name, number) for number, (name, _) in enumerate(SAMPLE_SETS)]
        build_examples(
            TAB_NAME,
            samples,
            [self.picture.image, self.examples_state, self.gallery, self.save_button, self.task],
            self._load_sample,
        )
        self._connect_example_events()
        self._connect_answer_events()

    def _build_examples_column(self) -> None:
        """Builds the gallery of examples and the fields for adding one."""
        self.gallery = gr.Gallery(
            label="Examples",
            columns=3,
            fit_columns=False,
            height=240,
            object_fit="contain",
            interactive=False,
            allow_preview=False,
            buttons=[],
            elem_id="few-shot-gallery",
        )
        with gr.Row(elem_classes="together"):
            self.remove_button = gr.Button("Remove", size="sm", elem_id="few-shot-remove", min_width=90)
            self.load_button = gr.UploadButton(
                "Load shots.jsonl",
                file_count="multiple",
                file_types=[".jsonl", "image"],
                size="sm",
                elem_id="few-shot-load",
                min_width=130,
            )
            self.save_button = gr.DownloadButton(
                "Save shots.jsonl", size="sm", elem_id="few-shot-save", min_width=130
            )
        self.example_picture = gr.Image(
            label="Picture of an example",
            sources=["upload", "clipboard"],
            type="filepath",
            image_mode=None,
            height=200,
            buttons=[],
            elem_id="few-shot-shown",
            alt_text="The picture of the example that is being added",
        )
        self.example_answer = gr.Textbox("", label="Its answer", max_lines=4, elem_id="few-shot-said")
        self.example_question = gr.Textbox(
            "", label="Its question (optional)", max_lines=4, elem_id="few-shot-asked"
        )
        self.add_button = gr.Button("Add the example", elem_id="few-shot-add")

    def _connect_example_events(self) -> None:
        """Connects adding, selecting, removing, loading and saving examples."""
        examples_outputs = [self.examples_state, self.gallery, self.save_button]
        event_kwargs: Any = {"postprocess": False, **RAW_EVENT_KWARGS}

        def add_example(
            shots: Sequence[ExampleShot], payload: FilePayload | None, question: str, answer: str
        ) -> Any:
            return self._examples_values(
                [*shots, make_example(self.backend, UploadedPicture.from_payload(payload), question, answer)]
            )

        def remove_example(shots: Sequence[ExampleShot], selected: int) -> Any:
            if not shots:
                raise BadPrompt("there is no example to remove")
            index = selected if 0 <= selected < len(shots) else len(shots) - 1
            return [*self._examples_values([*shots[:index], *shots[index + 1 :]]), -1]

        def load_examples(files: Sequence[FilePayload] | None) -> Any:
            return self._examples_values(
                read_examples(self.backend, list(map(UploadedPicture.from_payload, files or ())))
            )

        def select_example(data: gr.SelectData) -> int:
            return int(data.index)

        gr.on(
            [self.add_button.click, self.example_answer.submit],
            show_errors(add_example),
            [self.examples_state, self.example_picture, self.example_question, self.example_answer],
            examples_outputs,
            **event_kwargs,
        ).success(
            lambda: (None, "", ""),
            None,
            [self.example_picture, self.example_answer, self.example_question],
            queue=False,
            **PRIVATE_EVENT_KWARGS,
        )
        self.gallery.select(select_example, None, self.selected_index, **PRIVATE_EVENT_KWARGS)
        self.remove_button.click(
            show_errors(remove_example),
            [self.examples_state, self.selected_index],
            [*examples_outputs, self.selected_index],
            **event_kwargs,
        )
        self.load_button.upload(
            show_errors(load_examples), self.load_button, examples_outputs, **event_kwargs
        )

    def _connect_answer_events(self) -> None:
        """Connects the task, the picture, the buttons and "Show code"."""
        self.task.change(
            lambda task: gr.update(visible=task != "caption"), self.task, self.text, **PRIVATE_EVENT_KWARGS
        )
        self.picture.connect(self.controls.detail_control)
        inputs = [self.examples_state, self.picture.image, self.task, self.text, *self.controls.inputs]
        finished_event = self.run_buttons.connect_click(
            self._stream_answer, inputs, [self.answer, self.status_text], self.text.submit
        )
        changes = [self.gallery.change, self.picture.image.change, self.task.change, self.text.blur]
        self.code_view.connect(
            self._make_snippets, inputs, finished_event.then, *changes, *self.controls.change_events
        )

    def _examples_values(self, shots: Sequence[ExampleShot]) -> list[Any]:
        """The values of the state, the gallery and the download button for a list of examples."""
        check_num_examples(shots)
        gallery_items = [{"image": shot.upload.payload, "caption": _gallery_caption(shot)} for shot in shots]
        return [
            list(shots),
            gallery_items,
            save_file(to_jsonl(shots), "shots.jsonl").payload if shots else None,
        ]

    def _load_sample(self, picture: FilePayload, index: int) -> list[Any]:
        """The values of picture, examples and task for one of `SAMPLE_SETS`."""
        paths = {path.name: str(path) for path in bundled()}
        shots = [
            ExampleShot(UploadedPicture(paths[name], name), "", answer)
            for name, answer in SAMPLE_SETS[index][1]
        ]
        return [picture, *self._examples_values(shots), "caption"]

    def _make_snippets(
        self, shots: Sequence[ExampleShot], payload: FilePayload | None, task: str, text: str, *values: Any
    ) -> TaskSnippets:
        """The code for the values of the tab, for "Show code"; raises BadPrompt if the text is missing."""
        text = "" if task == "caption" else text.strip()
        if not text and task != "caption":
            raise BadPrompt(f"the {TASKS[task].words_name} is empty: give one")
        options = self.controls.to_generation_kwargs(*values)
        return self.backend.make_task_snippets(
            task,
            UploadedPicture.from_payload(payload).name,
            words=text,
            shots=example_tuples(shots),
            options=options,
        )

    def _stream_answer(
        self, session: str, shots: Sequence[ExampleShot], payload: FilePayload | None, *values: Any
    ) -> Iterator[tuple[str, str]]:
        """Yields the text of the answer so far, and finally the text with its cost."""
        snippets = self._make_snippets(shots, payload, *values)
        picture = self.backend.open_upload(UploadedPicture.from_payload(payload))
        opened_shots = [shot.to_shot(self.backend) for shot in shots]
        options: dict[str, Any] = {"max_new_tokens": DEFAULT_MAX_NEW_TOKENS, **snippets.options}

        def start_stream() -> Stream:
            return self.backend.start_task(snippets.task, picture, snippets.words, options, opened_shots)

        yield from stream_text_and_cost(
            self.backend, session, TAB_NAME, options["max_new_tokens"], start_stream
        )


def _gallery_caption(shot: ExampleShot) -> str:
    """The text below an example's picture: its question, if it has one, and its answer."""
    return f"{shot.question} {shot.answer}" if shot.question else shot.answer
