"""The picture field of a tab: upload, clipboard, webcam, address or a bundled example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from idefics.demo import pictures as bundled
from idefics.formats import SIGNATURE_BYTES, detect_image_format
from idefics.messages import Detail
from idefics.page.backend import PageBackend
from idefics.page.files import save_file
from idefics.page.formatting import format_count, show_errors
from idefics.page.run_buttons import PRIVATE_EVENT_KWARGS, RAW_EVENT_KWARGS
from idefics.page.uploaded_picture import FilePayload, UploadedPicture

PICTURE_SOURCES = ["upload", "clipboard", "webcam"]
MakeOutputs = Callable[[FilePayload, Any], Any]


def fetch_to_file(backend: PageBackend, address: str, name: str = "picture") -> UploadedPicture:
    """Fetches a picture and saves it in a file that the browser may read.

    Args:
        backend: fetches and checks it.
        address: an http(s) address or a data URI.
        name: the file's name if the address is a data URI.

    Raises:
        BadPicture: it cannot be fetched, or is not a picture.
    """
    address = address.strip()
    data = backend.fetch_picture(address)
    file_format = detect_image_format(data[:SIGNATURE_BYTES])
    saved_file = save_file(data, name + (file_format.suffixes[0] if file_format else ""))
    return saved_file if address[:5].lower() == "data:" else UploadedPicture(saved_file.path, address)


class AddressInput:
    """A text field for an address and its button."""

    def __init__(self, tab_name: str, button: str = "Fetch") -> None:
        with gr.Row(elem_classes="together"):
            self.address = gr.Textbox(
                "", label="or its address", placeholder="https://…", scale=4, elem_id=f"{tab_name}-address"
            )
            self.button = gr.Button(button, scale=0, min_width=80, elem_id=f"{tab_name}-fetch")

    @property
    def submit_events(self) -> list[Any]:
        """The events that submit the address: the button and the Enter key."""
        return [self.button.click, self.address.submit]


class PictureInput:
    """The picture field of most tabs, with an address field and a line that says how many tokens the picture takes.

    Attributes:
        image: the component that holds the picture.
    """

    def __init__(self, backend: PageBackend, tab_name: str) -> None:
        self.backend = backend
        self.image = gr.Image(
            label="Picture",
            type="filepath",
            image_mode=None,
            sources=PICTURE_SOURCES,
            height=300,
            buttons=["fullscreen"],
            elem_id=f"{tab_name}-picture",
            elem_classes="takes-picture",
            alt_text="The picture that is asked about",
        )
        self.token_cost = gr.Markdown("", elem_id=f"{tab_name}-cost", elem_classes="note")
        self.address_input = AddressInput(tab_name)

    def connect(self, detail: Any) -> None:
        """Connects the events. `detail` is the component that chooses the image detail."""
        address_input = self.address_input

        def fetch(address: str) -> FilePayload:
            return fetch_to_file(self.backend, address).payload

        def describe_token_cost(payload: FilePayload | None, detail: Detail) -> str:
            if not payload:
                return ""
            tokens = self.backend.count_tokens(UploadedPicture.from_payload(payload), detail)
            limit = f"{self.backend.max_positions:,}"
            return f"This picture takes {format_count(tokens, 'token')} of the {limit} that the model reads."

        gr.on(
            address_input.submit_events,
            show_errors(fetch),
            address_input.address,
            self.image,
            postprocess=False,
            **RAW_EVENT_KWARGS,
        ).success(lambda: "", None, address_input.address, queue=False, **PRIVATE_EVENT_KWARGS)
        gr.on(
            [self.image.change, detail.change],
            show_errors(describe_token_cost),
            [self.image, detail],
            self.token_cost,
            **RAW_EVENT_KWARGS,
        )


def build_examples(
    tab_name: str, samples: Sequence[tuple[str, Any]], outputs: Any, make_outputs: MakeOutputs | None = None
) -> Any:
    """Builds a row of bundled pictures to click.

    Args:
        tab_name: the tab, in element ids.
        samples: pairs of a bundled picture's name and a value that belongs to it, such as a question.
        outputs: the components that a click fills.
        make_outputs: makes the outputs from the picture and the value; None: these two are the outputs.

    Returns:
        The event of a click.
    """
    paths = {path.name: str(path) for path in bundled()}
    dataset = gr.Dataset(
        components=[gr.Image(render=False)],
        samples=[[paths[name]] for name, _ in samples],
        label="Examples",
        type="index",
        layout="gallery",
        elem_id=f"{tab_name}-examples",
        elem_classes="examples",
    )

    def fill_example(index: int) -> Any:
        name, text = samples[index]
        picture = UploadedPicture(paths[name], name).payload
        return (picture, text) if make_outputs is None else make_outputs(picture, text)

    return dataset.click(fill_example, dataset, outputs, postprocess=False, **PRIVATE_EVENT_KWARGS)
