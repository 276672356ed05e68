"""The tab "Classify": ranks labels by their probability."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from idefics.messages import Detail, Ranking
from idefics.page.backend import PageBackend
from idefics.page.code_snippets import TaskSnippets
from idefics.page.code_view import CodeView
from idefics.page.formatting import format_ranking_cost
from idefics.page.generation_controls import DETAILS
from idefics.page.picture_input import PictureInput, build_examples
from idefics.page.run_buttons import RunButtons
from idefics.page.uploaded_picture import UploadedPicture
from idefics.tasks.classify import check_and_strip_labels

EXAMPLES = (
    ("vegetables.png", "animals, vegetables, city landscape, cars, office"),
    ("puppy.png", "animals, vegetables, city landscape, cars, office"),
    ("tower.png", "tower, tree, statue"),
    ("shapes.png", "circles, flowers, furniture"),
)
MAX_SHOWN_LABELS = 20  # bars; the code of "Show code" prints all labels


def parse_labels(text: str) -> list[str]:
    """Splits a text into labels: one per line, or separated by commas on a single line.

    Raises:
        BadSetting: fewer than two labels, or one twice.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    labels = lines if len(lines) > 1 else text.split(",")
    return check_and_strip_labels([label.strip() for label in labels if label.strip()])


def build_tab(backend: PageBackend) -> None:
    """Builds the tab "Classify" inside the current Gradio block."""
    with gr.Row():
        with gr.Column(min_width=300):
            picture = PictureInput(backend, "classify")
            labels_box = gr.Textbox(
                "",
                label="Labels",
                info="separated by commas, or one per line",
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
                    info="each label's score for a plain gray picture is subtracted",
                )
                length_normalized = gr.Checkbox(
                    False,
                    label="Length-normalized",
                    info="each label's score is divided by its number of tokens",
                )
                detail = gr.Radio(DETAILS, value="high", label="Image detail")
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

    inputs = [picture.image, labels_box, calibrated, length_normalized, detail]
    run = partial(_run_classification, backend)
    finished_event = run_buttons.connect_click(run, inputs, [probability_bars, status_text])
    changes = [one.change for one in (picture.image, calibrated, length_normalized, detail)]
    code_view.connect(
        partial(_make_snippets, backend), inputs, finished_event.then, labels_box.blur, *changes
    )


def _make_snippets(
    backend: PageBackend,
    payload: Any,
    text: str,
    is_calibrated: bool,
    is_length_normalized: bool,
    detail: Detail,
) -> TaskSnippets:
    """The code for the values of the tab, for "Show code"."""
    options: dict[str, Any] = {"calibrated": True} if is_calibrated else {}
    options |= {"length_normalized": True} if is_length_normalized else {}
    options |= {"detail": detail} if detail != "high" else {}
    name = UploadedPicture.from_payload(payload).name
    return backend.make_task_snippets("classify", name, labels=parse_labels(text), options=options)


def _run_classification(
    backend: PageBackend, session: str, payload: Any, *values: Any
) -> Iterator[tuple[Any, str]]:
    """Yields values of the bars and the status line: empty ones at once, then the ranking's."""
    snippets = _make_snippets(backend, payload, *values)
    upload = UploadedPicture.from_payload(payload)
    opened_picture = backend.open_upload(upload)
    yield None, ""
    with (
        backend.track_running_answer(session, "classify") as running,
        backend.settings.admission_slot(running.stop, 1, backend.count_tokens(upload)),
    ):
        ranking = backend.vlm.classify(opened_picture, list(snippets.labels), **snippets.options)
    yield probability_by_label(ranking), format_ranking_cost(ranking)


def probability_by_label(ranking: Ranking) -> dict[str, float]:
    """The value of `gr.Label`: label -> probability."""
    return {label.label: label.probability for label in ranking}
