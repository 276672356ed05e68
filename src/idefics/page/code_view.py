"""The accordion "Show code": the last call as Python, command line and curl."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gradio as gr

from idefics.errors import IdeficsError
from idefics.page.formatting import show_errors
from idefics.page.run_buttons import RAW_EVENT_KWARGS


class Snippets(Protocol):
    """Protocol for the code of one call: `TaskSnippets`, `ChatSnippets` and `BatchSnippets` implement it."""

    @property
    def python(self) -> str:
        """A Python script that makes the call with this package."""

    @property
    def shell(self) -> str:
        """A command line of `idefics` that does the same."""

    @property
    def curl(self) -> str:
        """A curl command that sends the same request to `idefics serve`."""


class CodeView:
    """A closed accordion with a tab for each language.

    Args:
        tab_name: the tab of the page, in element ids.
    """

    def __init__(self, tab_name: str) -> None:
        self.outputs: list[Any] = []
        with gr.Accordion("Show code", open=False, elem_id=f"{tab_name}-code") as self.accordion, gr.Tabs():
            for name, language in (("Python", "python"), ("Command line", "shell"), ("curl", "shell")):
                with gr.Tab(name):
                    self.outputs.append(
                        gr.Code(
                            language=language,
                            interactive=False,
                            show_label=False,
                            show_line_numbers=False,
                            wrap_lines=True,
                            lines=3,
                            elem_id=f"{tab_name}-{name.split()[0].lower()}",
                        )
                    )

    def connect(self, make_snippets: Callable[..., Snippets], inputs: Sequence[Any], *events: Any) -> None:
        """Shows the code when the accordion is opened and after each of `events`.

        Args:
            make_snippets: called with the values of `inputs`.
            inputs: components.
            events: events after which the code may have changed, such as `textbox.blur`.
        """

        def show_snippets(*values: Any) -> tuple[str, str, str]:
            try:
                snippets = make_snippets(*values)
            except IdeficsError as error:
                return (f"# {error}\n",) * 3
            return snippets.python, snippets.shell, snippets.curl

        for event in (self.accordion.expand, *events):
            event(
                show_errors(show_snippets),
                list(inputs),
                self.outputs,
                queue=False,
                trigger_mode="always_last",
                **RAW_EVENT_KWARGS,
            )
