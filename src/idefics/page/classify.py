"""The tab "Classify": how likely each of some labels is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from idefics.messages import Ranking
from idefics.page.backend import PageBackend
from idefics.page.code_snippets import TaskSnippets
from idefics.page.code_view import CodeView
from idefics.page.formatting import format_ranking_cost
from idefics.page.generation_controls import DETAILS
from idefics.page.picture_input import PictureInput, build_examples
from idefics.page.run_buttons import RunButtons
from idefics.page.uploaded_picture import UploadedPicture
from idefics.tasks.classify import check_labels

EXAMPLES = (
    ("vegetables.png", "animals, vegetables, city landscape, cars, office"),
    ("puppy.png", "animals, vegetables, city landscape, cars, office"),
    ("tower.png", "tower, door, statue"),
    ("shapes.png", "circles, flowers, furniture"),
)
MAX_SHOWN_LABELS = 20  # bars; the code gives all


def parse_labels(text: str) -> list[str]:
    """What a person has typed: one label a line, or several with commas between.

    Raises:
        BadSetting: fewer than two, or one twice.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    labels = lines if len(lines) > 1 else text.split(",")
    return check_labels([label.strip() for label in labels if label.strip()])


def build_tab(backend: PageBackend) -> None:
    """Makes it."""
    with gr.Row():
        with gr.Column(min_width=300):
            picture = PictureInput(backend, "classify")
            labels_box = gr.Textbox(
                "",
                label="Labels",
                info="with commas between, or one a line",
                placeholder="cat, dog, bird",
                lines=2,
                max_lines=12,
                elem_id="classify-words",
            )
            run_buttons = RunButtons(backend, "classify", "Classify")
            with gr.Accordion("Advanced", open=False, elem_id="classify-advanced"):
                calibrated = gr.Checkbox(
                    True,
                    label="Calibrated",
                    info="what the model likes to say anyway, of a plain grey picture, is subtracted",
                )
                length_normalized = gr.Checkbox(
                    False, label="By length", info="each label's score is divided by its number of tokens"
                )
                detail = gr.Radio(DETAILS, value="high", label="Pictures are looked at")
        with gr.Column(min_width=300):
            probability_bars = gr.Label(
                label="Probabilities",
                num_top_classes=MAX_SHOWN_LABELS,
                elem_id="classify-answer",
                show_heading=False,
            )
            status_text = gr.Markdown("", elem_id="classify-note", elem_classes="note")
            code_view = CodeView("classify")
    build_examples("classify", EXAMPLES, [picture.image, labels_box])
    picture.connect(detail)

    def make_snippets(
        payload: Any, said: str, is_calibrated: bool, by_length: bool, look: str
    ) -> TaskSnippets:
        options: dict[str, Any] = {"calibrated": True} if is_calibrated else {}
        options |= {"length_normalized": True} if by_length else {}
        options |= {"detail": look} if look != "high" else {}
        return backend.make_task_snippets(
            "classify", UploadedPicture.from_payload(payload).name, labels=parse_labels(said), options=options
        )

    def run_classification(session: str, payload: Any, *values: Any) -> Iterator[tuple[Any, str]]:
        snippets = make_snippets(payload, *values)
        upload = UploadedPicture.from_payload(payload)
        opened_picture = backend.open_upload(upload)
        yield None, ""
        with (
            backend.track_running_answer(session, "classify") as running,
            backend.settings.admission_slot(running.stop, 1, backend.count_tokens(upload)),
        ):
            ranking = backend.vlm.classify(opened_picture, list(snippets.labels), **snippets.options)
        yield probability_by_label(ranking), format_ranking_cost(ranking)

    inputs = [picture.image, labels_box, calibrated, length_normalized, detail]
    finished_event = run_buttons.connect_click(run_classification, inputs, [probability_bars, status_text])
    changes = [one.change for one in (picture.image, calibrated, length_normalized, detail)]
    code_view.connect(make_snippets, inputs, finished_event.then, labels_box.blur, *changes)


def probability_by_label(ranking: Ranking) -> dict[str, float]:
    """What the bars show."""
    return {label.label: label.probability for label in ranking}
