"""Answers of released checkpoints that others have recorded, with their sources, and checks that compare with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from idefics import demo
from idefics.errors import BadPicture
from idefics.evaluate.check.checks import CheckOutcome, CheckSubject, ModelCheck, judge, skipped
from idefics.evaluate.check.engine_checks import reference_logits, token_logprobs
from idefics.generation.prompts import make_scoring_prompt
from idefics.processing.fetch import Fetcher
from idefics.prompt import Prompt

if TYPE_CHECKING:
    from idefics.generation.prompts import PromptItems

ANSWERS_FILE = Path(__file__).parent / "known_answers.json"
MAX_SHOWN_CHARACTERS = 80
NEEDS_FETCH = "needs --fetch: its pictures are on the internet"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAnswer:
    """An answer that was recorded. What nobody recorded is None.

    Attributes:
        name: a few words.
        checkpoint: a hub id, or the short name of a demo checkpoint.
        items: the raw prompt: texts, and {"picture": index}.
        pictures: {"url", "sha256"} or {"bundled"}: the name of a bundled picture.
        max_new_tokens: tokens of the answer.
        prompt_ids: the ids of the prompt.
        ids, logprobs: of the answer; its stop id may be among them.
        texts: the answer; several if several were recorded.
        contains: a part of the answer.
        recorded_in: the number format.
        note: what is not known.
        source: repository, commit and file.
    """

    name: str
    checkpoint: str
    items: Sequence[Any]
    pictures: Sequence[Mapping[str, Any]]
    max_new_tokens: int
    prompt_ids: Sequence[int] | None
    ids: Sequence[int] | None
    logprobs: Sequence[float] | None
    texts: Sequence[str] | None
    contains: str | None
    recorded_in: str
    note: str
    source: Mapping[str, Any]

    @property
    def needs_fetch(self) -> bool:
        """Whether a picture is on the internet."""
        return any("url" in picture for picture in self.pictures)

    def fill_items(self, pictures: Sequence[bytes]) -> PromptItems:
        """The raw prompt with the contents of the pictures' files."""
        return [item if isinstance(item, str) else pictures[item["picture"]] for item in self.items]


@cache
def read_known_answers() -> tuple[dict[str, float], list[KnownAnswer]]:
    """The tolerances in nats by number format, and all known answers."""
    content = json.loads(ANSWERS_FILE.read_text(encoding="utf-8"))
    return content["tolerances"], [KnownAnswer(**answer) for answer in content["answers"]]


def known_answer_checks(subject: CheckSubject) -> list[ModelCheck]:
    """A check for each known answer of the checkpoint; none with an adapter, which changes the answers."""
    if subject.entry is None or subject.settings.adapter is not None:
        return []
    names = {subject.entry.hub_id, subject.entry.name}
    return [make_check(answer) for answer in read_known_answers()[1] if answer.checkpoint in names]


def make_check(answer: KnownAnswer) -> ModelCheck:
    """The check that compares with an answer."""
    source = answer.source
    where = "/".join(str(part) for part in (source["repository"], source["commit"], source["file"]) if part)
    return ModelCheck(
        name=f"answer: {answer.name}",
        shows=f"the model answers as it was recorded in {where}"
        + (f" ({answer.note})" if answer.note else ""),
        tolerance=f"nats for each token, recorded in {answer.recorded_in}; see `reason` in known_answers.json",
        run=partial(check_known_answer, answer),
    )


def check_known_answer(answer: KnownAnswer, subject: CheckSubject) -> CheckOutcome:
    """Computes the recorded ids, or generates a text, and compares with the record."""
    if answer.needs_fetch and not subject.fetch:
        return skipped(NEEDS_FETCH)
    try:
        pictures = [_read_picture(picture) for picture in answer.pictures]
    except BadPicture as error:
        return skipped(str(error))
    contents = [content for content, _ in pictures]
    prompt = subject.vlm.prompt(answer.fill_items(contents))
    if answer.prompt_ids is not None and list(prompt.ids) != list(answer.prompt_ids):
        return judge(f"{len(prompt)} prompt tokens", "the recorded ids", ["the prompt has other token ids"])
    new_hashes = "".join(f"; sha256 {digest}" for _, digest in pictures if digest)
    if answer.ids is not None:
        return _compare_ids(answer, subject, prompt, new_hashes)
    if answer.texts is not None:
        return _compare_texts(answer, subject, contents, new_hashes)
    return _compare_part(answer, subject, prompt, new_hashes)


def _read_picture(picture: Mapping[str, Any]) -> tuple[bytes, str]:
    """The content of a picture's file, and its SHA-256 (hex) if that is not known, else "".

    Raises:
        BadPicture: it cannot be fetched, or is no longer the recorded one.
    """
    if "bundled" in picture:
        [path] = [path for path in demo.pictures() if path.name == picture["bundled"]]
        return path.read_bytes(), ""
    content = Fetcher().get(picture["url"])
    digest = hashlib.sha256(content).hexdigest()
    if picture["sha256"] is None:
        return content, digest
    if digest != picture["sha256"]:
        raise BadPicture(
            f"{picture['url']} is another picture now: sha256 {digest}, recorded {picture['sha256']}"
        )
    return content, ""


def _tolerance(answer: KnownAnswer, subject: CheckSubject) -> float:
    """How far log-probabilities may be from the recorded ones, in nats."""
    tolerances, _ = read_known_answers()
    if subject.rounding == "quantised":
        return tolerances["quantized"]
    if subject.rounding == "16 bits":
        return tolerances["bfloat16"]
    return tolerances["demo"] if not answer.needs_fetch else tolerances["float32"]


def _compare_ids(answer: KnownAnswer, subject: CheckSubject, prompt: Prompt, more: str) -> CheckOutcome:
    """Compares the log-probabilities of the recorded ids."""
    assert answer.ids is not None
    assert answer.logprobs is not None
    [found] = subject.vlm.engine.score(prompt, [tuple(answer.ids)])
    steps = [abs(a - b) for a, b in zip(found, answer.logprobs, strict=True)]
    limit = _tolerance(answer, subject)
    wrong = [
        f"token {index + 1} (id {answer.ids[index]}) has log-probability {found[index]:.3f}, "
        f"recorded {answer.logprobs[index]:.3f}"
        for index, step in enumerate(steps)
        if not step <= limit
    ]
    return judge(f"{len(steps)} tokens, {max(steps):.2g}{more}", f"{limit:g}", _with_note(answer, wrong[:1]))


def _with_note(answer: KnownAnswer, wrong: list[str]) -> list[str]:
    """What is wrong, and what is not known of the recorded answer."""
    return [*wrong, f"note: {answer.note}"] if wrong and answer.note else wrong


def _compare_texts(
    answer: KnownAnswer, subject: CheckSubject, pictures: Sequence[bytes], more: str
) -> CheckOutcome:
    """Asks by how much the model prefers other tokens to those of a recorded text, and takes the best of several texts.

    Tokens that are nearly equally likely change places in other number formats; a text that is as good is right.
    """
    assert answer.texts is not None
    prompt, continuations = make_scoring_prompt(
        subject.vlm.processor, answer.fill_items(pictures), answer.texts
    )
    leads = {}
    for text, ids in zip(answer.texts, continuations, strict=True):
        logits = reference_logits(subject.vlm, prompt, ids)
        logits = logits.index_fill(
            1, torch.tensor(sorted(subject.vlm.loaded_model.banned_ids)).to(logits.device), -torch.inf
        )
        leads[text] = float((logits.log_softmax(-1).max(-1).values.cpu() - token_logprobs(logits, ids)).max())
    best = min(leads, key=lambda text: leads[text])
    limit = 2 * _tolerance(answer, subject)
    wrong = [f"the model prefers another token to one of {best!r} by {leads[best]:.2f} nats"]
    return judge(
        f"{leads[best]:.2g} from {_shorten(best)!r}{more}",
        f"{limit:g}",
        _with_note(answer, wrong) if not leads[best] <= limit else (),
    )


def _compare_part(answer: KnownAnswer, subject: CheckSubject, prompt: Prompt, more: str) -> CheckOutcome:
    """Generates greedily, and looks for the recorded part of the text."""
    assert answer.contains is not None
    text = "".join(subject.vlm.submit(prompt, max_new_tokens=answer.max_new_tokens, continues=True))
    wrong = [f"{text!r}, recorded a text with {answer.contains!r}"]
    return judge(
        f"{_shorten(text)!r}{more}",
        f"a text with {answer.contains!r}",
        () if answer.contains in text else _with_note(answer, wrong),
    )


def _shorten(text: str) -> str:
    """At most `MAX_SHOWN_CHARACTERS` of a text."""
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."
