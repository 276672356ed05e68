"""How the prompts of a call are answered: its options, and the requests and answers that come of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from idefics.calls import checked_flag
from idefics.config import Sampling
from idefics.engine.engine import Engine
from idefics.engine.request import Deadline, Request
from idefics.errors import BadSetting, IdeficsError
from idefics.form import Form
from idefics.messages import Answer
from idefics.options import Wishes
from idefics.pipeline.answering import Growing
from idefics.pipeline.arguments import strings
from idefics.pipeline.failures import Failures
from idefics.pipeline.loading import Loaded
from idefics.processing.generation_rules import FILE, GenerationRules
from idefics.processing.guides import BannedGuide, BannedWords, FormGuide, Shape, limits
from idefics.processing.rule_guide import BeamRuleGuide, RuleGuide
from idefics.processing.tokenizer import Tokenizer
from idefics.prompt import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How prompts are answered, whatever they are.

    Attributes:
        stop_ids, banned_ids: as in `Request`.
        stops: strings that end an answer.
        rules: what the checkpoint asks of every answer.
        limits: the form of the answers, or words that are banned from them.
        hidden: ids that an answer's text leaves out.
        start: the caller's words that each answer's text begins with.
        continues: whether the answer goes on in the middle of a text, and so keeps a space at its beginning.
        began: when the caller asked.
        deadline: until when the caller waits.
    """

    engine: Engine
    tokenizer: Tokenizer
    sampling: Sampling
    stop_ids: frozenset[int]
    banned_ids: frozenset[int]
    stops: tuple[str, ...]
    rules: GenerationRules
    limits: Shape | BannedWords | None
    hidden: frozenset[int]
    start: str
    continues: bool
    began: float
    deadline: Deadline | None = None

    def submit(self, prompt: Prompt, *, wait: bool = True) -> Growing:
        """Asks for one answer, and waits for room in the queue unless told not to."""
        guide: FormGuide | BannedGuide | RuleGuide | None = None
        beam_guide: BeamRuleGuide | None = None
        if self.limits is not None or self.rules.stepwise or self.rules.renormalize_logits:
            room, vocabulary = self.engine.room(prompt, self.sampling), self.engine.model.layout.vocabulary
            ruled = (self.rules, prompt.ids, room, vocabulary, self.stop_ids)
            guide = None if self.limits is None else self.limits.guide(room)
            if self.sampling.num_beams > 1:
                beam_guide = BeamRuleGuide(*ruled)
            elif self.rules.stepwise:
                guide = RuleGuide(*ruled, guide)
        growing = Growing(self, guide)
        request = Request(
            prompt,
            self.sampling,
            self.stop_ids,
            self.banned_ids,
            growing.push,
            guide=guide,
            beam_guide=beam_guide,
            deadline=self.deadline,
        )
        growing.handle = self.engine.submit(request, wait=wait)
        return growing

    def answer(self, prompt: Prompt) -> Answer:
        """One answer."""
        growing = self.submit(prompt)
        growing.handle.result()
        return growing.answer()

    def answers(
        self, prompts: Generator[Prompt | IdeficsError], failures: Failures
    ) -> list[Answer | IdeficsError]:
        """Answers to many, which are asked for as they come; an error that is raised cancels the rest.

        Args:
            prompts: each prompt, or why there is none.
            failures: what is done about errors.
        """
        most = 2 * self.engine.config.batch_rows  # asked for at once: prompts hold pictures
        growing: deque[Growing | IdeficsError] = deque()
        answers: list[Answer | IdeficsError] = []

        def collect() -> None:
            answers.append(failures.attempt(len(answers), partial(_whole, growing[0])))
            growing.popleft()

        try:
            with closing(prompts):
                for index, prompt in enumerate(prompts):
                    growing.append(failures.attempt(index, partial(self._begun, prompt)))
                    if len(growing) == most:
                        collect()
            while growing:
                collect()
        finally:
            for one in growing:
                if isinstance(one, Growing):
                    one.handle.cancel()
        return answers

    def _begun(self, prompt: Prompt | IdeficsError) -> Growing:
        if isinstance(prompt, IdeficsError):
            raise prompt
        return self.submit(prompt)


def _whole(growing: Growing | IdeficsError) -> Answer:
    if isinstance(growing, IdeficsError):
        raise growing
    growing.handle.result()
    return growing.answer()


def asking_for(model: Loaded, began: float, wishes: Wishes, start: str, continues: bool) -> Asking:
    """How the prompts of a call are answered.

    Args:
        model: whose engine, tokens and stop ids are used.
        began: when the caller asked.
        wishes: the options of the call.
        start, continues: as in `Asking`.

    Raises:
        BadSetting: an option is wrong.
    """
    chosen: dict[str, Any] = dict(wishes)
    skip = chosen.pop("skip_special_tokens", None)
    if skip is not None:
        checked_flag("skip_special_tokens", skip)
    deadline = Deadline.of(chosen.pop("timeout", None))
    tokenizer = model.processor.tokenizer
    hidden = tokenizer.special_tokens.hidden(skip)
    stops, banned = (strings(name, chosen.pop(name, ())) for name in ("stop", "banned"))
    form = Form.of(*(chosen.pop(name, None) for name in ("regex", "choices", "schema")))
    rules = model.rules
    sampling = Sampling(**{"repetition_penalty": rules.repetition_penalty, **chosen})
    stops = (*stops, *rules.stop_strings)
    _check_rules(rules, form)
    # A hidden token has no text that a stop string could be found in: its name stops by its id.
    named = {id for stop in stops if (id := tokenizer.token_id(stop)) in hidden and id is not None}
    return Asking(
        engine=model.engine,
        tokenizer=tokenizer,
        sampling=sampling,
        stop_ids=model.stop_ids | named,
        banned_ids=model.banned_ids,
        rules=rules,
        stops=stops,
        limits=None
        if form is None and not banned
        else limits(form, banned, model.spelling(skip), lambda form: model.shape(form, skip)),
        hidden=hidden,
        start=start,
        continues=continues,
        began=began,
        deadline=deadline,
    )


def _check_rules(rules: GenerationRules, form: Form | None) -> None:
    """Refuses a form that cannot be combined with what the checkpoint asks of each step."""
    names = rules.stepwise
    if names and form is not None:
        raise BadSetting(
            f"{form.name} is given, and {FILE} of this checkpoint sets {', '.join(names)}, which may not leave a text "
            f"of that form: leave {form.name} out, or take these out of the file"
        )
