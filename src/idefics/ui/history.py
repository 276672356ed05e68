"""Earlier conversations: a list that the browser keeps, and nobody else. The server sees one when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from idefics.ui.run import HIDDEN, RAW
from idefics.ui.talk import Turn, cleaned, pictures_of
from idefics.ui.words import spoken

MOST = 50  # conversations; the oldest go first, too where the browser has no more room
# Gradio's own store in the browser is read once and written whole: a second window would undo what the first has kept.
STORE = """
const key = "idefics.conversations";
const read = () => {
  try { return JSON.parse(localStorage.getItem(key)) ?? []; } catch { return []; }
};
const write = (all) => {
  for (all = all.slice(0, MOST); ; all.pop()) {
    try { return localStorage.setItem(key, JSON.stringify(all)); } catch { if (!all.length) return; }
  }
};
const hold = (talk) => (window.ideficsTalk = JSON.parse(JSON.stringify(talk)));
const words = (one) => one.turns[0].content.filter((part) => part.type === "text").map((part) => part.text).join(" ");
const short = (text) => [...text].length > 60 ? [...text].slice(0, 59).join("") + "…" : text;
const day = (one) => new Date(one.when).toLocaleString([], {dateStyle: "short", timeStyle: "short"});
const shown = (open) => {
  const choices = read().map((one) => [`${short(words(one))} (${day(one)})`, one.id]);
  const update = (props) => ({__type__: "update", ...props});
  return [update({visible: choices.length > 0}), update({choices, value: open ?? null})];
};
""".replace("MOST", str(MOST))


def script(parameters: str, body: str) -> str:
    """A function of the browser that knows the store."""
    return f"({parameters}) => {{{STORE}{body}}}"


LIST = script("", "return shown(null);")
KEEP = script(
    "talk",
    """
    const id = talk[0]?.metadata?.id;
    hold(talk);
    if (id) write([{id, when: Date.now(), turns: talk}, ...read().filter((one) => one.id !== id)]);
    return shown(id);
    """,
)
OPEN = script("open", "return [hold(read().find((one) => one.id === open)?.turns ?? [])];")
# The guard lets no file be named that was not uploaded to this server.
REFUSED = '() => [[], "It cannot be opened: its pictures are not of this server, or the server is gone."]'
WHOLE = script("", "return [window.ideficsTalk];")  # Gradio takes its pictures from a turn that is edited
DELETE = script("open", 'write(read().filter((one) => one.id !== open)); return [...shown(null), [], ""];')
CLEAR = script(
    "open, talk, note",
    """
    if (!confirm(`Delete ${read().length} conversations?`)) return [...shown(open), talk, note];
    write([]);
    return [...shown(null), [], ""];
    """,
)


class History:
    """A fold with the list, newest first, and two buttons. It is not there while nothing is kept."""

    def __init__(self) -> None:
        with gr.Accordion(
            "Earlier conversations", open=False, visible=False, elem_id="chat-earlier"
        ) as self.fold:
            self.list = gr.Radio(
                [], label="Earlier conversations", show_label=False, container=False, elem_id="chat-history"
            )
            with gr.Row(elem_classes="together"):
                self.delete = gr.Button(
                    "Delete this one", size="sm", scale=0, min_width=130, elem_id="chat-delete"
                )
                self.clear = gr.Button("Delete all", size="sm", scale=0, min_width=130, elem_id="chat-clear")
            gr.Markdown(
                "This browser alone keeps them. Their pictures stay with the server, for a day at most.",
                elem_classes="note",
            )

    @property
    def controls(self) -> list[Any]:
        """What would pull a conversation away from under an answer."""
        return [self.list, self.delete, self.clear]

    def listen(self, talk: Any, note: Any, *after: Any) -> None:
        """Keeps `talk` after events such as `event.then`."""
        both, all = [self.fold, self.list], [self.fold, self.list, talk, note]
        gr.on(None, None, None, both, js=LIST, queue=False, **HIDDEN)  # once the page is there
        for event in after:
            event(None, talk, both, js=KEEP, queue=False, **HIDDEN)
        self.list.input(
            spoken(opened), self.list, [talk, note], js=OPEN, postprocess=False, queue=False, **RAW
        ).failure(None, None, [talk, note], js=REFUSED, queue=False, **HIDDEN)
        self.delete.click(None, self.list, all, js=DELETE, queue=False, **HIDDEN)
        self.clear.click(None, [self.list, talk, note], all, js=CLEAR, queue=False, **HIDDEN)


def opened(turns: Sequence[Turn]) -> tuple[list[Turn], str]:
    """A conversation that a browser has kept, and what is no longer there of it."""
    kept = cleaned(turns)
    gone = [given.name for turn in kept for given in pictures_of(turn) if not Path(given.path).is_file()]
    return (
        kept,
        f"No longer kept, so that it can be read but not gone on with: {', '.join(gone)}." if gone else "",
    )
