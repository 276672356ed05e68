"""Where a tab is given its picture: a file, the clipboard, the webcam, an address or an example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from idefics.demo import pictures as bundled
from idefics.formats import HEAD_BYTES, recognised
from idefics.messages import Detail
from idefics.ui.desk import Desk
from idefics.ui.files import written
from idefics.ui.given import Given, Payload
from idefics.ui.run import HIDDEN, RAW
from idefics.ui.words import counted, spoken

SOURCES = ["upload", "clipboard", "webcam"]
Put = Callable[[Payload, Any], Any]


def fetched(desk: Desk, address: str, name: str = "picture") -> Given:
    """A picture from its address, as far as the policy allows, in a file that the browser may read.

    Args:
        name: what it is called if the address is a data URI.
    """
    address = address.strip()
    data = desk.fetch(address)
    kind = recognised(data[:HEAD_BYTES])
    given = written(data, name + (kind.suffixes[0] if kind else ""))
    return given if address[:5].lower() == "data:" else Given(given.path, address)


class AddressInput:
    """A line for an address and the button beside it."""

    def __init__(self, place: str, button: str = "Fetch") -> None:
        with gr.Row(elem_classes="together"):
            self.address = gr.Textbox(
                "", label="or its address", placeholder="https://…", scale=4, elem_id=f"{place}-address"
            )
            self.button = gr.Button(button, scale=0, min_width=80, elem_id=f"{place}-fetch")

    @property
    def events(self) -> list[Any]:
        """Somebody wants what stands there."""
        return [self.button.click, self.address.submit]


class PictureInput:
    """The left side of most tabs. `image` is the component that holds the picture."""

    def __init__(self, desk: Desk, place: str) -> None:
        self.desk = desk
        self.image = gr.Image(
            label="Picture",
            type="filepath",
            image_mode=None,
            sources=SOURCES,
            height=300,
            buttons=["fullscreen"],
            elem_id=f"{place}-picture",
            elem_classes="takes-picture",
            alt_text="The picture that is asked about",
        )
        self.note = gr.Markdown("", elem_id=f"{place}-cost", elem_classes="note")
        self.other = AddressInput(place)

    def listen(self, detail: Any) -> None:
        """Wires it up. `detail`: the component that says how closely pictures are looked at."""
        other = self.other

        def fetch(address: str) -> Payload:
            return fetched(self.desk, address).payload

        def note(payload: Payload | None, look: Detail) -> str:
            if not payload:
                return ""
            tokens = self.desk.cost(Given.of(payload), look)
            return f"This picture takes {counted(tokens, 'token')} of the {self.desk.room:,} that the model reads."

        gr.on(other.events, spoken(fetch), other.address, self.image, postprocess=False, **RAW).success(
            lambda: "", None, other.address, queue=False, **HIDDEN
        )
        gr.on([self.image.change, detail.change], spoken(note), [self.image, detail], self.note, **RAW)


def examples(place: str, samples: Sequence[tuple[str, Any]], into: Any, put: Put | None = None) -> Any:
    """A row of bundled pictures.

    Args:
        samples: names of bundled pictures, and what goes with each, such as a question.
        into: the components that a click fills.
        put: what it fills them with; else the picture and what goes with it.
    """
    paths = {path.name: str(path) for path in bundled()}
    dataset = gr.Dataset(
        components=[gr.Image(render=False)],
        samples=[[paths[name]] for name, _ in samples],
        label="Examples",
        type="index",
        layout="gallery",
        elem_id=f"{place}-examples",
        elem_classes="examples",
    )

    def take(index: int) -> Any:
        name, words = samples[index]
        given = Given(paths[name], name).payload
        return (given, words) if put is None else put(given, words)

    return dataset.click(take, dataset, into, postprocess=False, **HIDDEN)
