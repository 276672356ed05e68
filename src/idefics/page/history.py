"""The list of earlier conversations, in the browser's local storage; the server receives one when it is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from idefics.page.chat_turns import ChatTurn, normalize_turns, turn_pictures
from idefics.page.formatting import show_errors
from idefics.page.run_buttons import PRIVATE_EVENT_KWARGS, RAW_EVENT_KWARGS

MAX_CONVERSATIONS = 50  # the oldest are deleted first, also where the browser's storage is full
# Not Gradio's BrowserState: it is read once and written whole, so a second window would overwrite the first one's list.
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
    """A JavaScript function with the helpers of `STORE_SCRIPT` in scope."""
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
# `RequestFilter` refuses a conversation whose pictures were not uploaded to this server.
OPEN_FAILED_SCRIPT = (
    '() => [[], "It cannot be opened: its pictures are not on this server, or the server does not answer."]'
)
# Returns the conversation with its pictures, which Gradio leaves out of a turn that is edited.
FULL_CONVERSATION_SCRIPT = make_script("", "return [window.ideficsTalk];")
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
    """An accordion with the list, newest first, and two buttons; hidden while the list is empty."""

    def __init__(self) -> None:
        with gr.Accordion(
            "Earlier conversations", open=False, visible=False, elem_id="chat-earlier"
        ) as self.accordion:
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
                "They are stored in this browser only. Their pictures stay on the server, for a day at most.",
                elem_classes="note",
            )

    @property
    def controls(self) -> list[Any]:
        """The components that replace the open conversation; disabled while an answer runs."""
        return [self.conversation_list, self.delete_button, self.clear_button]

    def connect(self, chatbot: Any, status_text: Any, *events: Any) -> None:
        """Connects the list.

        Args:
            chatbot: the open conversation.
            status_text: the line below it.
            events: events after which the conversation is saved, such as the `then` of an answer's event.
        """
        list_outputs = [self.accordion, self.conversation_list]
        all_outputs = [*list_outputs, chatbot, status_text]
        # Without a trigger: when the page is loaded.
        gr.on(None, None, None, list_outputs, js=LIST_SCRIPT, queue=False, **PRIVATE_EVENT_KWARGS)
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
    """Opens a conversation from the browser's list.

    Returns:
        The conversation, and a line for the status text: names of its pictures that were deleted; "" if none were.
    """
    cleaned_turns = normalize_turns(turns)
    missing_pictures = [
        upload.name
        for turn in cleaned_turns
        for upload in turn_pictures(turn)
        if not Path(upload.path).is_file()
    ]
    return (
        cleaned_turns,
        f"It can be read but not continued, because pictures were deleted: {', '.join(missing_pictures)}."
        if missing_pictures
        else "",
    )
