"""The tab "Chat": a conversation in which any turn may have pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from idefics.errors import BadPicture, BadPrompt
from idefics.messages import Answer, Detail, Picture
from idefics.page.backend import PageBackend
from idefics.page.chat_turns import (
    ChatTurn,
    get_or_create_conversation_id,
    make_turn,
    make_user_turn,
    normalize_turns,
    to_messages,
    turn_pictures,
    turn_text,
    turns_up_to_question,
    with_conversation_id,
)
from idefics.page.code_snippets import ChatSnippets
from idefics.page.code_view import CodeView
from idefics.page.formatting import format_answer_cost, format_count, show_errors
from idefics.page.generation_controls import DEFAULT_SAMPLING, GenerationControls
from idefics.page.history import FULL_CONVERSATION_SCRIPT, ConversationHistory
from idefics.page.picture_input import AddressInput, build_examples, fetch_to_file
from idefics.page.run_buttons import PRIVATE_EVENT_KWARGS, RAW_EVENT_KWARGS, RunButtons
from idefics.page.uploaded_picture import FilePayload, UploadedPicture

TAB_NAME = "chat"
EXAMPLES = (
    ("tower.png", "What is in this image?"),
    ("shapes.png", "What color is the star?"),
    ("puppy.png", "Where is the puppy?"),
    ("picnic.png", "What is on the left?"),
)
TextboxValue = dict[str, Any]  # the value of `gr.MultimodalTextbox`: text and files
EMPTY_TEXTBOX: TextboxValue = {"text": "", "files": []}


def build_tab(backend: PageBackend) -> None:
    """Builds the tab "Chat" inside the current Gradio block."""
    ChatTab(backend)


class ChatTab:
    """The components of the tab and their event handlers."""

    def __init__(self, backend: PageBackend) -> None:
        self.backend = backend
        self.history = ConversationHistory()
        self.chatbot = gr.Chatbot(
            label="Conversation",
            height=420,
            editable="all",  # "user" excludes turns with pictures; the style sheet hides the button at answers
            buttons=["copy"],
            feedback_options=None,
            render_markdown=False,  # answers are plain text: nothing in them may become a link or a picture
            allow_file_downloads=False,
            placeholder="Show a picture and ask about it.",
            elem_id="chat-talk",
        )
        self.textbox = gr.MultimodalTextbox(
            label="Your turn",
            placeholder="Ask something; drop or paste pictures here",
            sources=["upload"],
            file_types=["image"],
            file_count="multiple",
            submit_btn=False,
            max_lines=6,
            max_plain_text_length=10**6,  # longer pasted text would become a file
            elem_id="chat-box",
            elem_classes="takes-picture",
        )
        self.token_cost = gr.Markdown("", elem_id="chat-cost", elem_classes="note")
        self.run_buttons = RunButtons(backend, TAB_NAME, "Send")
        with self.run_buttons.row:
            self.new_button = gr.Button("New conversation", elem_id="chat-new", min_width=180, scale=0)
        self.run_buttons.disabled_while_running += [self.new_button, *self.history.controls]
        self.status_text = gr.Markdown("", elem_id="chat-note", elem_classes="note")
        with gr.Accordion("A picture from the webcam or by its address", open=False, elem_id="chat-more"):
            self.address_input = AddressInput(TAB_NAME, "Add")
            self.webcam = gr.Image(
                label="Webcam",
                sources=["webcam"],
                type="filepath",
                image_mode=None,
                height=240,
                elem_id="chat-webcam",
            )
        with gr.Accordion("Advanced", open=False, elem_id="chat-advanced"):
            self.controls = GenerationControls(
                TAB_NAME, DEFAULT_SAMPLING.max_new_tokens, backend.settings.initial_sampling
            )
        self.code_view = CodeView(TAB_NAME)
        build_examples(
            TAB_NAME, EXAMPLES, self.textbox, lambda payload, text: {"text": text, "files": [payload]}
        )
        self._connect_textbox_events()
        self._connect_answer_events()
        self._connect_new_conversation()

    def _connect_textbox_events(self) -> None:
        """Connects adding pictures by address or webcam, and the token cost of the pictures."""

        def add_file(value: TextboxValue, payload: FilePayload) -> TextboxValue:
            return {"text": value["text"], "files": [*value["files"], payload]}

        def add_from_address(value: TextboxValue, address: str) -> TextboxValue:
            return add_file(value, fetch_to_file(self.backend, address).payload)

        def add_webcam_picture(value: TextboxValue, payload: FilePayload | None) -> TextboxValue:
            return add_file(value, UploadedPicture.from_payload(payload).payload)

        event_kwargs: Any = {"outputs": self.textbox, "postprocess": False, **RAW_EVENT_KWARGS}
        address_event = gr.on(
            self.address_input.submit_events,
            show_errors(add_from_address),
            [self.textbox, self.address_input.address],
            **event_kwargs,
        ).success(lambda: "", None, self.address_input.address, queue=False, **PRIVATE_EVENT_KWARGS)
        webcam_event = self.webcam.input(
            show_errors(add_webcam_picture), [self.textbox, self.webcam], **event_kwargs
        ).then(lambda: None, None, self.webcam, queue=False, **PRIVATE_EVENT_KWARGS)
        # The textbox fires no change event when a handler adds pictures and leaves the text unchanged.
        for event in (
            self.textbox.change,
            self.controls.detail_control.change,
            address_event.then,
            webcam_event.then,
        ):
            event(
                show_errors(self._describe_token_cost),
                [self.textbox, self.controls.detail_control],
                self.token_cost,
                trigger_mode="always_last",
                **RAW_EVENT_KWARGS,
            )

    def _connect_answer_events(self) -> None:
        """Connects what asks for an answer (send, retry, edit), undo, and what follows an answer."""
        event_kwargs: Any = {"postprocess": False, **RAW_EVENT_KWARGS}
        connect_send = partial(
            gr.on,
            [self.run_buttons.button.click, self.textbox.submit],
            show_errors(self._append_user_turn),
            [self.chatbot, self.textbox],
            [self.chatbot, self.textbox],
            **event_kwargs,
        )
        start_events = [
            connect_send(),
            self.chatbot.retry(_retry_turn, self.chatbot, self.chatbot, **event_kwargs),
            self.chatbot.edit(
                show_errors(_edit_turn),
                self.chatbot,
                self.chatbot,
                js=FULL_CONVERSATION_SCRIPT,
                **event_kwargs,
            ),
        ]
        inputs = [self.chatbot, self.textbox, *self.controls.inputs]
        outputs = [self.chatbot, self.textbox, self.status_text]
        end_events = [
            self.run_buttons.connect_event(
                start.success, self._stream_answer, inputs, outputs, postprocess=False
            )
            for start in start_events
        ]
        self.code_view.connect(
            self._make_snippets,
            [self.chatbot, *self.controls.inputs],
            *(end.then for end in end_events),
            *self.controls.change_events,
        )
        undo_event = self.chatbot.undo(_undo_turn, self.chatbot, [self.chatbot, self.textbox], **event_kwargs)
        self.history.connect(
            self.chatbot, self.status_text, undo_event.then, *(end.then for end in end_events)
        )

    def _connect_new_conversation(self) -> None:
        """Connects the buttons that empty the conversation."""
        events: Any = [self.new_button.click, self.chatbot.clear]  # `clear`: the chatbot's own button
        cleared_components = [self.chatbot, self.status_text, self.history.conversation_list]
        gr.on(
            events,
            lambda: ([], "", None),
            None,
            cleared_components,
            queue=False,
            **PRIVATE_EVENT_KWARGS,
        )

    def _describe_token_cost(self, textbox_value: TextboxValue | None, detail: Detail) -> str:
        """The number of tokens of each picture in the textbox; empty without pictures."""
        files = [UploadedPicture.from_payload(file) for file in (textbox_value or EMPTY_TEXTBOX)["files"]]
        try:
            costs = [(upload.name, self.backend.count_tokens(upload, detail)) for upload in files]
        except BadPicture as error:  # shown below the textbox; sending the turn shows it as an error
            return f"{error}."
        if not costs:
            return ""
        cost_texts = ", ".join(f"{name}: {format_count(tokens, 'token')}" for name, tokens in costs)
        total_text = f" (together {sum(tokens for _, tokens in costs):,})" if len(costs) > 1 else ""
        return f"{cost_texts}{total_text}; the model reads {self.backend.max_positions:,}."

    def _append_user_turn(
        self, turns: Sequence[ChatTurn], textbox_value: TextboxValue
    ) -> tuple[list[ChatTurn], TextboxValue]:
        """The conversation with the textbox's text and pictures as a new turn, and the emptied textbox."""
        user_turn = make_user_turn(
            [UploadedPicture.from_payload(file) for file in textbox_value["files"]], textbox_value["text"]
        )
        new_turns = [*normalize_turns(turns), user_turn]
        return with_conversation_id(new_turns, get_or_create_conversation_id(new_turns)), EMPTY_TEXTBOX

    def _stream_answer(
        self, session: str, raw_turns: Sequence[ChatTurn], textbox_value: TextboxValue, *values: Any
    ) -> Iterator[tuple[Any, Any, str]]:
        """Streams the answer to the last turn; a turn that cannot be answered is moved back into the textbox."""
        turns = normalize_turns(raw_turns)
        try:
            options: Any = {
                "max_new_tokens": DEFAULT_SAMPLING.max_new_tokens,
                **self.controls.to_generation_kwargs(*values),
            }
            max_new_tokens = options["max_new_tokens"]
            conversation = to_messages(turns, self.backend.open_upload)
            for text_or_answer in self.backend.stream_answer(
                session,
                TAB_NAME,
                max_new_tokens,
                lambda: self.backend.vlm.chat(conversation, stream=True, **options),
            ):
                text, note = (
                    (text_or_answer.text, format_answer_cost(text_or_answer))
                    if isinstance(text_or_answer, Answer)
                    else (text_or_answer, "")
                )
                yield [*turns, make_turn("assistant", text)], textbox_value, note
        except Exception:
            yield turns[:-1], _textbox_value(turns[-1]), ""
            raise

    def _make_snippets(self, raw_turns: Sequence[ChatTurn], *values: Any) -> ChatSnippets:
        """The code for the last question of the conversation, for "Show code"."""
        turns = normalize_turns(raw_turns)
        if not turns:
            raise BadPrompt("the conversation is empty: ask a question first")
        settings = self.backend.settings
        turns_to_answer = turns_up_to_question(turns, len(turns) - 1)
        return ChatSnippets(
            messages=to_messages(turns_to_answer, lambda upload: Picture(upload.name)),
            options=self.controls.to_generation_kwargs(*values),
            model=settings.model,
            server=settings.server_url,
            has_key=settings.has_key,
            adapter=settings.adapter,
        )


def _retry_turn(raw_turns: Sequence[ChatTurn], data: gr.RetryData) -> list[ChatTurn]:
    """The conversation up to the question that is to be answered again."""
    return turns_up_to_question(normalize_turns(raw_turns), _turn_index(data.index))


def _edit_turn(raw_turns: Sequence[ChatTurn], data: gr.EditData) -> list[ChatTurn]:
    """The conversation up to the edited question, with its new text; its pictures stay."""
    turns = turns_up_to_question(normalize_turns(raw_turns), _turn_index(data.index))
    text = str(data.value).strip() or turn_text(turns[-1])
    user_turn = make_user_turn(turn_pictures(turns[-1]), text)
    return with_conversation_id([*turns[:-1], user_turn], get_or_create_conversation_id(turns))


def _undo_turn(raw_turns: Sequence[ChatTurn], data: gr.UndoData) -> tuple[list[ChatTurn], TextboxValue]:
    """The conversation before the question, and the question as the textbox's value."""
    turns = turns_up_to_question(normalize_turns(raw_turns), _turn_index(data.index))
    return turns[:-1], _textbox_value(turns[-1])


def _turn_index(index: Any) -> int:
    """The index of a turn; Gradio gives (turn, part) where a turn has several parts."""
    return int(index[0]) if isinstance(index, (list, tuple)) else int(index)


def _textbox_value(turn: ChatTurn) -> TextboxValue:
    """The text and pictures of a turn as the value of the textbox."""
    return {"text": turn_text(turn), "files": [upload.payload for upload in turn_pictures(turn)]}
