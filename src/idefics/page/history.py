"""Earlier conversations: a list that the browser keeps, and nobody else. The server sees one when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from idefics.page.chat_turns import ChatTurn, normalize_turns, turn_pictures
from idefics.page.formatting import show_errors
from idefics.page.run_buttons import PRIVATE_EVENT_KWARGS, RAW_EVENT_KWARGS

MAX_CONVERSATIONS = 50  # conversations; the oldest go first, too where the browser has no more room
# Gradio's own store in the browser is read once and written whole: a second window would undo what the first has kept.
STORE_SCRIPT = """
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
""".replace("MOST", str(MAX_CONVERSATIONS))


def make_script(parameters: str, body: str) -> str:
    """A function of the browser that knows the store."""
    return f"({parameters}) => {{{STORE_SCRIPT}{body}}}"


LIST_SCRIPT = make_script("", "return shown(null);")
SAVE_SCRIPT = make_script(
    "talk",
    """
    const id = talk[0]?.metadata?.id;
    hold(talk);
    if (id) write([{id, when: Date.now(), turns: talk}, ...read().filter((one) => one.id !== id)]);
    return shown(id);
    """,
)
OPEN_SCRIPT = make_script("open", "return [hold(read().find((one) => one.id === open)?.turns ?? [])];")
# The guard lets no file be named that was not uploaded to this server.
OPEN_FAILED_SCRIPT = (
    '() => [[], "It cannot be opened: its pictures are not of this server, or the server is gone."]'
)
FULL_CONVERSATION_SCRIPT = make_script(
    "", "return [window.ideficsTalk];"
)  # Gradio takes its pictures from a turn that is edited
DELETE_SCRIPT = make_script(
    "open", 'write(read().filter((one) => one.id !== open)); return [...shown(null), [], ""];'
)
CLEAR_SCRIPT = make_script(
    "open, talk, note",
    """
    if (!confirm(`Delete ${read().length} conversations?`)) return [...shown(open), talk, note];
    write([]);
    return [...shown(null), [], ""];
    """,
)


class ConversationHistory:
    """A fold with the list, newest first, and two buttons. It is not there while nothing is kept."""

    def __init__(self) -> None:
        with gr.Accordion(
            "Earlier conversations", open=False, visible=False, elem_id="chat-earlier"
        ) as self.fold:
            self.conversation_list = gr.Radio(
                [], label="Earlier conversations", show_label=False, container=False, elem_id="chat-history"
            )
            with gr.Row(elem_classes="together"):
                self.delete_button = gr.Button(
                    "Delete this one", size="sm", scale=0, min_width=130, elem_id="chat-delete"
                )
                self.clear_button = gr.Button(
                    "Delete all", size="sm", scale=0, min_width=130, elem_id="chat-clear"
                )
            gr.Markdown(
                "This browser alone keeps them. Their pictures stay with the server, for a day at most.",
                elem_classes="note",
            )

    @property
    def controls(self) -> list[Any]:
        """What would pull a conversation away from under an answer."""
        return [self.conversation_list, self.delete_button, self.clear_button]

    def connect(self, chatbot: Any, status_text: Any, *events: Any) -> None:
        """Keeps `chatbot` after events such as `event.then`."""
        list_outputs, all_outputs = (
            [self.fold, self.conversation_list],
            [self.fold, self.conversation_list, chatbot, status_text],
        )
        gr.on(
            None, None, None, list_outputs, js=LIST_SCRIPT, queue=False, **PRIVATE_EVENT_KWARGS
        )  # once the page is there
        for event in events:
            event(None, chatbot, list_outputs, js=SAVE_SCRIPT, queue=False, **PRIVATE_EVENT_KWARGS)
        self.conversation_list.input(
            show_errors(load_conversation),
            self.conversation_list,
            [chatbot, status_text],
            js=OPEN_SCRIPT,
            postprocess=False,
            queue=False,
            **RAW_EVENT_KWARGS,
        ).failure(
            None, None, [chatbot, status_text], js=OPEN_FAILED_SCRIPT, queue=False, **PRIVATE_EVENT_KWARGS
        )
        self.delete_button.click(
            None, self.conversation_list, all_outputs, js=DELETE_SCRIPT, queue=False, **PRIVATE_EVENT_KWARGS
        )
        self.clear_button.click(
            None,
            [self.conversation_list, chatbot, status_text],
            all_outputs,
            js=CLEAR_SCRIPT,
            queue=False,
            **PRIVATE_EVENT_KWARGS,
        )


def load_conversation(turns: Sequence[ChatTurn]) -> tuple[list[ChatTurn], str]:
    """A conversation that a browser has kept, and what is no longer there of it."""
    cleaned_turns = normalize_turns(turns)
    missing_pictures = [
        upload.name
        for turn in cleaned_turns
        for upload in turn_pictures(turn)
        if not Path(upload.path).is_file()
    ]
    return (
        cleaned_turns,
        f"No longer kept, so that it can be read but not gone on with: {', '.join(missing_pictures)}."
        if missing_pictures
        else "",
    )
