"""Lays out examples as passages: in turn what the model is given, and what it has to learn to write.

Conversations go through the checkpoint's chat template. It never sees a text, so that it is rendered once for all
conversations of the same form: the same roles, and texts and pictures in the same places.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

from idefics.errors import UnsupportedModel
from idefics.generation.prompts import is_conversation
from idefics.messages import ContentPart, Message, Picture, PictureOrVideo, Role, assistant
from idefics.processing.chat_prompt import render_learned_conversation
from idefics.processing.processor import Processor
from idefics.processing.tokenizer import TextPiece
from idefics.train.data.examples import PICTURE, TrainingExample

Passage = Sequence[TextPiece | PictureOrVideo]
# The form of a conversation: for each message the role, and for each part the text with a number in the place of its
# words, or None for a picture.
Form = tuple[tuple[Role, tuple[str | None, ...]], ...]
MAX_FORMS = 1024


class PassageLayout:
    """Lays out the examples for one checkpoint.

    Args:
        processor: of the checkpoint.
        stop_ids: the ids that end an answer.

    Raises:
        UnsupportedModel: no token of the checkpoint ends an answer.
    """

    def __init__(self, processor: Processor, stop_ids: Collection[int]) -> None:
        self._processor = processor
        self._plain_text_processor = processor.with_image_detail(processor.image_detail)
        self._plain_text_processor.is_text_trusted = False
        tokenizer = processor.tokenizer
        self._turn_end_tokens = {token for id in stop_ids if (token := tokenizer.id_to_token(id)) is not None}
        turn_end = processor.prompt_format.turn_end_token if processor.prompt_format.kind == "chat" else ""
        candidates = [
            turn_end,
            tokenizer.token_by_role.get("eos_token"),
            *(tokenizer.id_to_token(id) for id in sorted(stop_ids)),
        ]
        end = next((one for one in candidates if one in self._turn_end_tokens), None)
        if end is None:
            raise UnsupportedModel(
                "no token of this checkpoint ends an answer: set eos_token_id in its generation_config.json"
            )
        self._document_end = TextPiece(end, trusted=True)
        self._render_form = lru_cache(MAX_FORMS)(self._render)

    def lay_out(self, example: TrainingExample) -> list[Passage]:
        """The passages of an example: what is given, what is learned, what is given, ...; the last is learned.

        Raises:
            BadPrompt: the chat template refuses the conversation.
            UnsupportedModel: answers cannot be learned with the chat template.
        """
        prompt, answer = example.prompt, example.answer
        if is_conversation(prompt):
            messages = [one for one in prompt if isinstance(one, Message)]
            if answer is None:
                return self._lay_out_conversation(messages)
            # Answers of few-shot examples are given, not learned.
            *given, learned = self._lay_out_conversation([*messages, assistant(answer)])
            return [[part for passage in given for part in passage], learned]
        parts = [one for one in prompt if not isinstance(one, Message)]
        if answer is None:
            return self._lay_out_document(parts)
        processor = self._processor if example.is_text_trusted else self._plain_text_processor
        pieces = processor.raw_items_to_prompt_parts(parts)
        follows_word = bool(parts) and isinstance(parts[-1], str) and not parts[-1][-1:].isspace()
        learned_text = TextPiece(f" {answer}" if follows_word else answer, trusted=False)
        return [_only_text_and_pictures(pieces), [learned_text, self._document_end]]

    def _lay_out_document(self, parts: Sequence[ContentPart]) -> list[Passage]:
        """The passages of a document: all of its text is learned."""
        prefix, *pieces = _only_text_and_pictures(self._plain_text_processor.raw_items_to_prompt_parts(parts))
        passages: list[list[TextPiece | PictureOrVideo]] = [[prefix], []]
        for piece in [*pieces, self._document_end]:
            if isinstance(piece, TextPiece):
                passages[-1].append(piece)
            elif passages[-1]:
                passages += [[piece], []]
            else:
                passages[-2].append(piece)
        return list(passages)

    def _lay_out_conversation(self, messages: Sequence[Message]) -> list[Passage]:
        """The passages of a conversation: all answers are learned."""
        words: list[str] = []
        form: Form = tuple(
            (message.role, tuple(_to_form(part, words) for part in message.parts)) for message in messages
        )
        return [
            [
                TextPiece(words[int(part.text)], trusted=False)
                if isinstance(part, TextPiece) and not part.trusted
                else part
                for part in passage
            ]
            for passage in self._render_form(form)
        ]

    def _render(self, form: Form) -> list[list[TextPiece | PictureOrVideo]]:
        """The passages of a form, with numbers in the place of words."""
        passages = render_learned_conversation(
            self._processor.prompt_format.chat_template,
            [
                Message(role, tuple(PICTURE if part is None else part for part in parts))
                for role, parts in form
            ],
            self._turn_end_tokens,
            variables=self._processor.tokenizer.token_by_role,
        )
        passages[0].insert(0, self._processor.prefix_piece)
        return passages


def _to_form(part: ContentPart, words: list[str]) -> str | None:
    """A part of a message as its form has it; its words are appended to `words`."""
    if isinstance(part, Picture):
        return None
    assert isinstance(part, str)
    core = part.strip()
    if not core:
        return part
    words.append(core)
    before, after = part.split(core, 1)
    return f"{before}{len(words) - 1}{after}"


def _only_text_and_pictures(parts: Sequence[object]) -> list[TextPiece | PictureOrVideo]:
    """The parts of a prompt, none of which is preprocessed."""
    return [part for part in parts if isinstance(part, (TextPiece, PictureOrVideo))]
