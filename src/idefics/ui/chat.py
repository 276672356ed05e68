"""The tab "Chat": a conversation with pictures at any turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from idefics.errors import BadPicture, BadPrompt
from idefics.messages import Answer, Detail, Picture
from idefics.ui.code import Talk
from idefics.ui.codeview import CodeView
from idefics.ui.desk import Desk
from idefics.ui.given import Given, Payload
from idefics.ui.history import WHOLE, History
from idefics.ui.pictures import AddressInput, examples, fetched
from idefics.ui.run import HIDDEN, RAW, Run
from idefics.ui.sliders import DEFAULT, Sliders
from idefics.ui.talk import (
    Turn,
    cleaned,
    messages,
    name_of,
    named,
    pictures_of,
    question,
    said,
    text_of,
    until_asked,
)
from idefics.ui.words import cost, counted, spoken

PLACE = "chat"
EXAMPLES = (
    ("tower.png", "What is in this image?"),
    ("shapes.png", "What color is the star?"),
    ("puppy.png", "Where is the puppy?"),
    ("picnic.png", "What is on the left?"),
)
Box = dict[str, Any]  # what stands in the box, as the browser knows it
EMPTY: Box = {"text": "", "files": []}


def tab(desk: Desk) -> None:
    """Makes it."""
    Chat(desk)


class Chat:
    """The tab's components and what they do."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.history = History()
        self.talk = gr.Chatbot(
            label="Conversation",
            height=420,
            editable="all",  # "user" is for turns without pictures alone; the style hides it from answers
            buttons=["copy"],
            feedback_options=None,
            render_markdown=False,  # models write plain text; nothing in it shall become a link or a picture
            allow_file_downloads=False,
            placeholder="Show a picture and ask about it.",
            elem_id="chat-talk",
        )
        self.box = gr.MultimodalTextbox(
            label="Your turn",
            placeholder="Ask something; drop or paste pictures here",
            sources=["upload"],
            file_types=["image"],
            file_count="multiple",
            submit_btn=False,
            max_lines=6,
            max_plain_text_length=10**6,  # of what is pasted: more would become a file, which is no picture
            elem_id="chat-box",
            elem_classes="takes-picture",
        )
        self.price = gr.Markdown("", elem_id="chat-cost", elem_classes="note")
        self.run = Run(desk, PLACE, "Send")
        with self.run.row:
            self.new = gr.Button("New conversation", elem_id="chat-new", min_width=180, scale=0)
        self.run.resting += [self.new, *self.history.controls]
        self.note = gr.Markdown("", elem_id="chat-note", elem_classes="note")
        with gr.Accordion("A picture from the webcam or by its address", open=False, elem_id="chat-more"):
            self.other = AddressInput(PLACE, "Add")
            self.webcam = gr.Image(
                label="Webcam",
                sources=["webcam"],
                type="filepath",
                image_mode=None,
                height=240,
                elem_id="chat-webcam",
            )
        with gr.Accordion("Advanced", open=False, elem_id="chat-advanced"):
            self.sliders = Sliders(PLACE, DEFAULT.max_new_tokens, desk.settings.start)
        self.code = CodeView(PLACE)
        examples(PLACE, EXAMPLES, self.box, lambda given, words: {"text": words, "files": [given]})
        self._listen_to_box()
        self._listen_to_talk()

    def _listen_to_box(self) -> None:
        def add(box: Box, given: Payload) -> Box:
            return {"text": box["text"], "files": [*box["files"], given]}

        def add_fetched(box: Box, address: str) -> Box:
            return add(box, fetched(self.desk, address).payload)

        def add_seen(box: Box, seen: Payload | None) -> Box:
            return add(box, Given.of(seen).payload)

        into: Any = {"outputs": self.box, "postprocess": False, **RAW}
        named = gr.on(self.other.events, spoken(add_fetched), [self.box, self.other.address], **into).success(
            lambda: "", None, self.other.address, queue=False, **HIDDEN
        )
        taken = self.webcam.input(spoken(add_seen), [self.box, self.webcam], **into).then(
            lambda: None, None, self.webcam, queue=False, **HIDDEN
        )
        # A box whose words stay as they are does not tell that it has been given pictures.
        for event in (self.box.change, self.sliders.detail.change, named.then, taken.then):
            event(
                spoken(self._price),
                [self.box, self.sliders.detail],
                self.price,
                trigger_mode="always_last",
                **RAW,
            )

    def _listen_to_talk(self) -> None:
        def again(talk: Sequence[Turn], data: gr.RetryData) -> list[Turn]:
            return until_asked(cleaned(talk), _place(data.index))

        def edited(talk: Sequence[Turn], data: gr.EditData) -> list[Turn]:
            kept = until_asked(cleaned(talk), _place(data.index))
            asked = question(pictures_of(kept[-1]), str(data.value).strip() or text_of(kept[-1]))
            return named([*kept[:-1], asked], name_of(kept))

        def undone(talk: Sequence[Turn], data: gr.UndoData) -> tuple[list[Turn], Box]:
            kept = until_asked(cleaned(talk), _place(data.index))
            return kept[:-1], _box(kept[-1])

        shown: Any = {"postprocess": False, **RAW}
        sent = partial(
            gr.on,
            [self.run.button.click, self.box.submit],
            spoken(self._send),
            [self.talk, self.box],
            [self.talk, self.box],
            **shown,
        )
        starts = [
            sent(),
            self.talk.retry(again, self.talk, self.talk, **shown),
            self.talk.edit(spoken(edited), self.talk, self.talk, js=WHOLE, **shown),
        ]
        inputs = [self.talk, self.box, *self.sliders.inputs]
        outputs = [self.talk, self.box, self.note]
        ends = [
            self.run.follow(start.success, self._answer, inputs, outputs, postprocess=False)
            for start in starts
        ]
        self.code.listen(
            self._code, [self.talk, *self.sliders.inputs], *(end.then for end in ends), *self.sliders.changes
        )
        taken_back = self.talk.undo(undone, self.talk, [self.talk, self.box], **shown)
        self.history.listen(self.talk, self.note, taken_back.then, *(end.then for end in ends))
        both: Any = [self.new.click, self.talk.clear]  # Gradio's conversation has such a button too
        cleared = [self.talk, self.note, self.history.list]
        gr.on(both, lambda: ([], "", None), None, cleared, queue=False, **HIDDEN)

    def _price(self, box: Box | None, detail: Detail) -> str:
        files = [Given.of(file) for file in (box or EMPTY)["files"]]
        try:
            costs = [(given.name, self.desk.cost(given, detail)) for given in files]
        except (
            BadPicture
        ) as error:  # said beside the box, as often as the box changes; and again if it is sent
            return f"{error}."
        if not costs:
            return ""
        each = ", ".join(f"{name}: {counted(tokens, 'token')}" for name, tokens in costs)
        total = f" (together {sum(tokens for _, tokens in costs):,})" if len(costs) > 1 else ""
        return f"{each}{total}; the model reads {self.desk.room:,}."

    def _send(self, talk: Sequence[Turn], box: Box) -> tuple[list[Turn], Box]:
        asked = question([Given.of(file) for file in box["files"]], box["text"])
        turns = [*cleaned(talk), asked]
        return named(turns, name_of(turns)), EMPTY

    def _answer(
        self, session: str, talk: Sequence[Turn], box: Box, *values: Any
    ) -> Iterator[tuple[Any, Any, str]]:
        """Answers the last question; one that cannot be answered goes back into the box."""
        turns = cleaned(talk)
        try:
            options: Any = {"max_new_tokens": DEFAULT.max_new_tokens, **self.sliders.options(*values)}
            most = options["max_new_tokens"]
            conversation = messages(turns, self.desk.picture)
            for one in self.desk.answer(
                session, PLACE, most, lambda: self.desk.vlm.chat(conversation, stream=True, **options)
            ):
                text, note = (one.text, cost(one)) if isinstance(one, Answer) else (one, "")
                yield [*turns, said("assistant", text)], box, note
        except Exception:
            yield turns[:-1], _box(turns[-1]), ""
            raise

    def _code(self, talk: Sequence[Turn], *values: Any) -> Talk:
        turns = cleaned(talk)
        if not turns:
            raise BadPrompt("nothing has been said yet: ask something first")
        own = self.desk.settings
        asked = until_asked(turns, len(turns) - 1)
        return Talk(
            messages=messages(asked, lambda given: Picture(given.name)),
            options=self.sliders.options(*values),
            model=own.model,
            server=own.server,
            has_key=own.has_key,
        )


def _place(index: Any) -> int:
    """Of a turn: a component may count the parts of a turn too."""
    return int(index[0]) if isinstance(index, (list, tuple)) else int(index)


def _box(turn: Turn) -> Box:
    return {"text": text_of(turn), "files": [given.payload for given in pictures_of(turn)]}
