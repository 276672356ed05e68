"""The tab "Few-shot": worked examples that the answer follows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from idefics.demo import pictures as bundled
from idefics.errors import BadPrompt
from idefics.tasks import TASKS
from idefics.ui.code import Call
from idefics.ui.codeview import CodeView
from idefics.ui.desk import Desk
from idefics.ui.files import written
from idefics.ui.given import Given, Payload
from idefics.ui.pictures import PictureInput, examples
from idefics.ui.run import HIDDEN, RAW, Run, growing
from idefics.ui.shots import Example, as_jsonl, checked, names, read, room
from idefics.ui.sliders import Sliders
from idefics.ui.words import spoken

if TYPE_CHECKING:
    from idefics.pipeline import Stream

PLACE = "few-shot"
CHOICES = [("Caption it", "caption"), ("Answer a question", "ask"), ("Continue my words", "complete")]
MOST = 64
FUN_FACT = (("tower.png", "An image of a tower. Fun fact: towers sway a little in the wind."),)
COUNTS = (("statue.png", "1 STATUE"), ("vegetables.png", "1 TOMATO, 1 CORN COB, 1 CARROT, 1 EGGPLANT"))
SAMPLES = (("statue.png", FUN_FACT), ("door.png", COUNTS))


def tab(desk: Desk) -> None:
    """Makes it."""
    FewShot(desk)


class FewShot:
    """The tab's components and what they do."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.shots = gr.State([])
        self.chosen = gr.State(-1)
        with gr.Row():
            with gr.Column(min_width=300):
                gr.Markdown("### 1. Examples to follow")
                self._examples_side()
            with gr.Column(min_width=300):
                gr.Markdown("### 2. The picture in question")
                self.picture = PictureInput(desk, PLACE)
                self.task = gr.Radio(CHOICES, value="caption", label="What to do", elem_id="few-shot-task")
                self.words = gr.Textbox(
                    value="", label="Question or words", visible=False, max_lines=4, elem_id="few-shot-words"
                )
                self.run = Run(desk, PLACE, "Answer")
                self.answer = gr.Textbox(
                    label="Answer", lines=3, max_lines=16, buttons=["copy"], elem_id="few-shot-answer"
                )
                self.note = gr.Markdown("", elem_id="few-shot-note", elem_classes="note")
                with gr.Accordion("Advanced", open=False, elem_id="few-shot-advanced"):
                    self.sliders = Sliders(PLACE, MOST, desk.settings.start)
                self.code = CodeView(PLACE)
        samples = [(name, number) for number, (name, _) in enumerate(SAMPLES)]
        examples(
            PLACE, samples, [self.picture.image, self.shots, self.gallery, self.save, self.task], self._sample
        )
        self._listen()

    def _examples_side(self) -> None:
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
            self.remove = gr.Button("Remove", size="sm", elem_id="few-shot-remove", min_width=90)
            self.load = gr.UploadButton(
                "Load shots.jsonl",
                file_count="multiple",
                file_types=[".jsonl", "image"],
                size="sm",
                elem_id="few-shot-load",
                min_width=130,
            )
            self.save = gr.DownloadButton(
                "Save shots.jsonl", size="sm", elem_id="few-shot-save", min_width=130
            )
        self.shown = gr.Image(
            label="Picture of an example",
            sources=["upload", "clipboard"],
            type="filepath",
            image_mode=None,
            height=200,
            buttons=[],
            elem_id="few-shot-shown",
            alt_text="The picture of the example that is being added",
        )
        self.said = gr.Textbox("", label="What should be answered", max_lines=4, elem_id="few-shot-said")
        self.asked = gr.Textbox("", label="What was asked (optional)", max_lines=4, elem_id="few-shot-asked")
        self.add = gr.Button("Add the example", elem_id="few-shot-add")

    def _listen(self) -> None:
        held = [self.shots, self.gallery, self.save]
        raw: Any = {"postprocess": False, **RAW}

        def add(shots: Sequence[Example], shown: Payload | None, asked: str, said: str) -> Any:
            return self._held([*shots, checked(self.desk, Given.of(shown), asked, said)])

        def remove(shots: Sequence[Example], chosen: int) -> Any:
            if not shots:
                raise BadPrompt("there is no example to remove")
            place = chosen if 0 <= chosen < len(shots) else len(shots) - 1
            return [*self._held([*shots[:place], *shots[place + 1 :]]), -1]

        def load(files: Sequence[Payload] | None) -> Any:
            return self._held(read(self.desk, list(map(Given.of, files or ()))))

        def choose(data: gr.SelectData) -> int:
            return int(data.index)

        gr.on(
            [self.add.click, self.said.submit],
            spoken(add),
            [self.shots, self.shown, self.asked, self.said],
            held,
            **raw,
        ).success(lambda: (None, "", ""), None, [self.shown, self.said, self.asked], queue=False, **HIDDEN)
        self.gallery.select(choose, None, self.chosen, **HIDDEN)
        self.remove.click(spoken(remove), [self.shots, self.chosen], [*held, self.chosen], **raw)
        self.load.upload(spoken(load), self.load, held, **raw)
        self.task.change(lambda task: gr.update(visible=task != "caption"), self.task, self.words, **HIDDEN)
        self.picture.listen(self.sliders.detail)
        inputs = [self.shots, self.picture.image, self.task, self.words, *self.sliders.inputs]
        done = self.run.listen(self._respond, inputs, [self.answer, self.note], self.words.submit)
        changes = [self.gallery.change, self.picture.image.change, self.task.change, self.words.blur]
        self.code.listen(self._call, inputs, done.then, *changes, *self.sliders.changes)

    def _held(self, shots: Sequence[Example]) -> list[Any]:
        """The examples for the state, the gallery and the file."""
        room(shots)
        shown = [{"image": shot.given.payload, "caption": _caption(shot)} for shot in shots]
        return [list(shots), shown, written(as_jsonl(shots), "shots.jsonl").payload if shots else None]

    def _sample(self, given: Payload, number: int) -> list[Any]:
        paths = {path.name: str(path) for path in bundled()}
        shots = [Example(Given(paths[name], name), "", answer) for name, answer in SAMPLES[number][1]]
        return [given, *self._held(shots), "caption"]

    def _call(
        self, shots: Sequence[Example], payload: Payload | None, task: str, words: str, *values: Any
    ) -> Call:
        words = "" if task == "caption" else words.strip()
        if not words and task != "caption":
            raise BadPrompt(f"the {TASKS[task].words} is empty: give one")
        options = self.sliders.options(*values)
        return self.desk.about(task, Given.of(payload).name, words=words, shots=names(shots), options=options)

    def _respond(
        self, session: str, shots: Sequence[Example], payload: Payload | None, *values: Any
    ) -> Iterator[tuple[str, str]]:
        wanted = self._call(shots, payload, *values)
        look = self.desk.picture(Given.of(payload))
        followed = [shot.shot(self.desk) for shot in shots]
        options: dict[str, Any] = {"max_new_tokens": MOST, **wanted.options}

        def ask() -> Stream:
            return self.desk.stream(wanted.task, look, wanted.words, options, followed)

        yield from growing(self.desk, session, PLACE, options["max_new_tokens"], ask)


def _caption(shot: Example) -> str:
    return f"{shot.question} {shot.answer}" if shot.question else shot.answer
