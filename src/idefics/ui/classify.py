"""The tab "Classify": how likely each of some labels is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from idefics.messages import Ranking
from idefics.tasks.classify import checked
from idefics.ui.code import Call
from idefics.ui.codeview import CodeView
from idefics.ui.desk import Desk
from idefics.ui.given import Given
from idefics.ui.pictures import PictureInput, examples
from idefics.ui.run import Run
from idefics.ui.sliders import DETAILS
from idefics.ui.words import ranking_cost

EXAMPLES = (
    ("vegetables.png", "animals, vegetables, city landscape, cars, office"),
    ("puppy.png", "animals, vegetables, city landscape, cars, office"),
    ("tower.png", "tower, door, statue"),
    ("shapes.png", "circles, flowers, furniture"),
)
MOST_SHOWN = 20  # bars; the code gives all


def labels(text: str) -> list[str]:
    """What a person has typed: one label a line, or several with commas between.

    Raises:
        BadSetting: fewer than two, or one twice.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = lines if len(lines) > 1 else text.split(",")
    return checked([label.strip() for label in found if label.strip()])


def tab(desk: Desk) -> None:
    """Makes it."""
    with gr.Row():
        with gr.Column(min_width=300):
            picture = PictureInput(desk, "classify")
            words = gr.Textbox(
                "",
                label="Labels",
                info="with commas between, or one a line",
                placeholder="cat, dog, bird",
                lines=2,
                max_lines=12,
                elem_id="classify-words",
            )
            run = Run(desk, "classify", "Classify")
            with gr.Accordion("Advanced", open=False, elem_id="classify-advanced"):
                calibrated = gr.Checkbox(
                    True,
                    label="Calibrated",
                    info="what the model likes to say anyway, of a plain grey picture, is subtracted",
                )
                normalized = gr.Checkbox(
                    False, label="By length", info="each label's score is divided by its number of tokens"
                )
                detail = gr.Radio(DETAILS, value="high", label="Pictures are looked at")
        with gr.Column(min_width=300):
            bars = gr.Label(
                label="Probabilities",
                num_top_classes=MOST_SHOWN,
                elem_id="classify-answer",
                show_heading=False,
            )
            note = gr.Markdown("", elem_id="classify-note", elem_classes="note")
            code = CodeView("classify")
    examples("classify", EXAMPLES, [picture.image, words])
    picture.listen(detail)

    def call(payload: Any, said: str, is_calibrated: bool, by_length: bool, look: str) -> Call:
        options: dict[str, Any] = {"calibrated": True} if is_calibrated else {}
        options |= {"length_normalized": True} if by_length else {}
        options |= {"detail": look} if look != "high" else {}
        return desk.about("classify", Given.of(payload).name, labels=labels(said), options=options)

    def respond(session: str, payload: Any, *values: Any) -> Iterator[tuple[Any, str]]:
        wanted = call(payload, *values)
        given = Given.of(payload)
        look = desk.picture(given)
        yield None, ""
        with (
            desk.running(session, "classify") as running,
            desk.settings.admit(running.stop, 1, desk.cost(given)),
        ):
            ranking = desk.vlm.classify(look, list(wanted.labels), **wanted.options)
        yield shown(ranking), ranking_cost(ranking)

    inputs = [picture.image, words, calibrated, normalized, detail]
    done = run.listen(respond, inputs, [bars, note])
    changes = [one.change for one in (picture.image, calibrated, normalized, detail)]
    code.listen(call, inputs, done.then, words.blur, *changes)


def shown(ranking: Ranking) -> dict[str, float]:
    """What the bars show."""
    return {label.label: label.probability for label in ranking}
