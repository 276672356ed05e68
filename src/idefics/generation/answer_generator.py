"""How the prompts of a call are answered: its options, and the requests and answers that come of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from idefics.config import Sampling
from idefics.engine.engine import Engine
from idefics.engine.request import Deadline, Request
from idefics.errors import BadSetting, IdeficsError
from idefics.generation.arguments import as_string_tuple
from idefics.generation.error_policy import ErrorPolicy
from idefics.generation.loading import LoadedModel
from idefics.generation.streaming import Generation
from idefics.messages import Answer
from idefics.options import GenerationOptions
from idefics.processing.checkpoint_generation_config import GENERATION_CONFIG_FILE, CheckpointGenerationConfig
from idefics.processing.generation_config_constraint import (
    GenerationConfigBeamConstraint,
    GenerationConfigConstraint,
)
from idefics.processing.structured_output import (
    BannedStrings,
    BannedStringsConstraint,
    CompiledGrammar,
    GrammarConstraint,
    compile_output_constraint,
)
from idefics.processing.tokenizer import Tokenizer
from idefics.prompt import Prompt
from idefics.structured import OutputConstraint
from idefics.validation import validate_bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerGenerator:
    """How prompts are answered, whatever they are.

    Attributes:
        stop_ids, banned_ids: as in `Request`.
        stop_strings: strings that end an answer.
        generation_config: what the checkpoint asks of every answer.
        compiled_constraint: the form of the answers, or words that are banned from them.
        hidden_ids: ids that an answer's text leaves out.
        text_prefix: the caller's words that each answer's text begins with.
        is_continuation: whether the answer goes on in the middle of a text, and so keeps a space at its beginning.
        start_time: when the caller asked.
        deadline: until when the caller waits.
    """

    engine: Engine
    tokenizer: Tokenizer
    sampling: Sampling
    stop_ids: frozenset[int]
    banned_ids: frozenset[int]
    stop_strings: tuple[str, ...]
    generation_config: CheckpointGenerationConfig
    compiled_constraint: CompiledGrammar | BannedStrings | None
    hidden_ids: frozenset[int]
    text_prefix: str
    is_continuation: bool
    start_time: float
    deadline: Deadline | None = None

    def submit(self, prompt: Prompt, *, wait: bool = True) -> Generation:
        """Asks for one answer, and waits for room in the queue unless told not to."""
        constraint: GrammarConstraint | BannedStringsConstraint | GenerationConfigConstraint | None = None
        beam_guide: GenerationConfigBeamConstraint | None = None
        if (
            self.compiled_constraint is not None
            or self.generation_config.step_dependent_fields
            or self.generation_config.renormalize_logits
        ):
            max_new_tokens, vocab_size = (
                self.engine.compute_max_new_tokens(prompt, self.sampling),
                self.engine.model.layout.vocab_size,
            )
            ruled = (self.generation_config, prompt.ids, max_new_tokens, vocab_size, self.stop_ids)
            constraint = (
                None
                if self.compiled_constraint is None
                else self.compiled_constraint.create_constraint(max_new_tokens)
            )
            if self.sampling.num_beams > 1:
                beam_guide = GenerationConfigBeamConstraint(*ruled)
            elif self.generation_config.step_dependent_fields:
                constraint = GenerationConfigConstraint(*ruled, constraint)
        generation = Generation(self, constraint)
        request = Request(
            prompt,
            self.sampling,
            self.stop_ids,
            self.banned_ids,
            generation.on_token,
            constraint=constraint,
            beam_constraint=beam_guide,
            deadline=self.deadline,
        )
        generation.handle = self.engine.submit(request, wait=wait)
        return generation

    def generate_one(self, prompt: Prompt) -> Answer:
        """One answer."""
        generation = self.submit(prompt)
        generation.handle.result()
        return generation.build_answer()

    def generate_many(
        self, prompts: Generator[Prompt | IdeficsError], error_policy: ErrorPolicy
    ) -> list[Answer | IdeficsError]:
        """Answers to many, which are asked for as they come; an error that is raised cancels the rest.

        Args:
            prompts: each prompt, or why there is none.
            error_policy: what is done about errors.
        """
        max_in_flight = 2 * self.engine.config.batch_rows  # asked for at once: prompts hold pictures
        in_flight: deque[Generation | IdeficsError] = deque()
        answers: list[Answer | IdeficsError] = []

        def collect_first() -> None:
            answers.append(error_policy.call_or_error(len(answers), partial(_wait_for_answer, in_flight[0])))
            in_flight.popleft()

        try:
            with closing(prompts):
                for index, prompt in enumerate(prompts):
                    in_flight.append(
                        error_policy.call_or_error(index, partial(self._submit_or_raise, prompt))
                    )
                    if len(in_flight) == max_in_flight:
                        collect_first()
            while in_flight:
                collect_first()
        finally:
            for generation in in_flight:
                if isinstance(generation, Generation):
                    generation.handle.cancel()
        return answers

    def _submit_or_raise(self, prompt: Prompt | IdeficsError) -> Generation:
        if isinstance(prompt, IdeficsError):
            raise prompt
        return self.submit(prompt)


def _wait_for_answer(generation: Generation | IdeficsError) -> Answer:
    if isinstance(generation, IdeficsError):
        raise generation
    generation.handle.result()
    return generation.build_answer()


def create_answer_generator(
    model: LoadedModel, start_time: float, options: GenerationOptions, text_prefix: str, is_continuation: bool
) -> AnswerGenerator:
    """How the prompts of a call are answered.

    Args:
        model: whose engine, tokens and stop ids are used.
        start_time: when the caller asked.
        options: the options of the call.
        text_prefix, is_continuation: as in `AnswerGenerator`.

    Raises:
        BadSetting: an option is wrong.
    """
    remaining_options: dict[str, Any] = dict(options)
    skip_special_tokens = remaining_options.pop("skip_special_tokens", None)
    if skip_special_tokens is not None:
        validate_bool("skip_special_tokens", skip_special_tokens)
    deadline = Deadline.from_timeout(remaining_options.pop("timeout", None))
    tokenizer = model.processor.tokenizer
    hidden_ids = tokenizer.special_tokens.hidden_ids(skip_special_tokens)
    stop_strings, banned_strings = (
        as_string_tuple(name, remaining_options.pop(name, ())) for name in ("stop", "banned")
    )
    output_constraint = OutputConstraint.from_options(
        *(remaining_options.pop(name, None) for name in ("regex", "choices", "schema"))
    )
    generation_config = model.generation_config
    sampling = Sampling(**{"repetition_penalty": generation_config.repetition_penalty, **remaining_options})
    stop_strings = (*stop_strings, *generation_config.stop_strings)
    _check_compatible(generation_config, output_constraint)
    # A hidden token has no text that a stop string could be found in: its name stops by its id.
    hidden_stop_ids = {
        id for stop in stop_strings if (id := tokenizer.token_to_id(stop)) in hidden_ids and id is not None
    }
    return AnswerGenerator(
        engine=model.engine,
        tokenizer=tokenizer,
        sampling=sampling,
        stop_ids=model.stop_ids | hidden_stop_ids,
        banned_ids=model.banned_ids,
        generation_config=generation_config,
        stop_strings=stop_strings,
        compiled_constraint=None
        if output_constraint is None and not banned_strings
        else compile_output_constraint(
            output_constraint,
            banned_strings,
            model.token_bytes(skip_special_tokens),
            lambda form: model.compile_grammar(form, skip_special_tokens),
        ),
        hidden_ids=hidden_ids,
        text_prefix=text_prefix,
        is_continuation=is_continuation,
        start_time=start_time,
        deadline=deadline,
    )


def _check_compatible(
    generation_config: CheckpointGenerationConfig, output_constraint: OutputConstraint | None
) -> None:
    """Refuses a form that cannot be combined with what the checkpoint asks of each step."""
    unsupported_fields = generation_config.step_dependent_fields
    if unsupported_fields and output_constraint is not None:
        raise BadSetting(
            f"{output_constraint.kind} is given, and {GENERATION_CONFIG_FILE} of this checkpoint sets {', '.join(unsupported_fields)}, which may not leave a text "
            f"of that form: leave {output_constraint.kind} out, or take these out of the file"
        )
