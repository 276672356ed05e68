"""`GenerationCall`: the options of one call, checked and resolved for a model; it submits the prompts of the call."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

from idefics.config import Sampling
from idefics.engine.request import Deadline, Request, RequestProgress, compute_max_new_tokens
from idefics.errors import BadSetting, IdeficsError
from idefics.generation.call_inputs import ErrorPolicy, call_with_deadline, prefetch_map, result_or_error
from idefics.generation.loading import LoadedModel
from idefics.generation.prompts import as_string_tuple
from idefics.generation.streaming import Generation, GenerationResult, Stream
from idefics.messages import Answer
from idefics.options import GenerationOptions
from idefics.processing.checkpoint_generation_config import (
    GENERATION_CONFIG_FILE,
    AnswerConstraint,
    GenerationConfigConstraint,
)
from idefics.processing.detokenizer import Detokenizer
from idefics.processing.structured_output import BannedStrings, CompiledGrammar
from idefics.prompt import Prompt
from idefics.structured import OutputConstraint
from idefics.validation import validate_bool


class GenerationCall:
    """The options of one call, checked and combined with the checkpoint's generation config: generates the answers.

    Args:
        options: the keyword options of the call, without those about pictures.

    Attributes:
        model: generates the answers.
        sampling: how each token is chosen.
        stop_ids: ids that end an answer: the model's, and hidden tokens that are among the stop strings.
        stop_strings: strings that end an answer: the caller's and the checkpoint's.
        compiled_constraint: the structured output or the banned strings of the answers; None: free text.
        hidden_ids: ids that are left out of an answer's text.
        text_prefix: text that each answer's text begins with, before the generated text.
        is_continuation: an answer continues a text, so that the space at its beginning is kept.
        start_time: when the call began, by `time.perf_counter`.
        deadline: when the call fails with RequestTimeout; None: never.

    Raises:
        BadSetting: an option is wrong, or cannot be combined with the checkpoint's generation config.
    """

    def __init__(
        self,
        model: LoadedModel,
        options: GenerationOptions,
        *,
        text_prefix: str = "",
        is_continuation: bool = False,
    ) -> None:
        self.start_time = time.perf_counter()
        self.model, self.text_prefix, self.is_continuation = model, text_prefix, is_continuation
        remaining_options: dict[str, Any] = dict(options)
        skip_special_tokens = remaining_options.pop("skip_special_tokens", None)
        if skip_special_tokens is not None:
            validate_bool("skip_special_tokens", skip_special_tokens)
        self.deadline = Deadline.from_timeout(remaining_options.pop("timeout", None))
        stop_strings = as_string_tuple("stop", remaining_options.pop("stop", ()))
        banned_strings = as_string_tuple("banned", remaining_options.pop("banned", ()))
        output_constraint = OutputConstraint.from_options(
            *(remaining_options.pop(name, None) for name in ("regex", "choices", "schema"))
        )
        generation_config, tokenizer = model.generation_config, model.processor.tokenizer
        self.sampling = Sampling(
            **{"repetition_penalty": generation_config.repetition_penalty, **remaining_options}
        )
        self.compiled_constraint = _compile_constraint(
            model, output_constraint, banned_strings, skip_special_tokens
        )
        self.stop_strings = (*stop_strings, *generation_config.stop_strings)
        self.hidden_ids = tokenizer.special_ids_by_kind.hidden_ids(skip_special_tokens)
        # A hidden token has no text in which a stop string could be found, so that it stops by its id.
        hidden_stop_ids = self.hidden_ids.intersection(map(tokenizer.token_to_id, self.stop_strings))
        self.stop_ids = model.stop_ids | hidden_stop_ids

    def restart(self, *, text_prefix: str) -> GenerationCall:
        """The same options for a call that begins now, with its own deadline.

        Args:
            text_prefix: see the class.
        """
        call = copy.copy(self)
        call.start_time, call.text_prefix = time.perf_counter(), text_prefix
        call.deadline = None if self.deadline is None else Deadline.from_timeout(self.deadline.timeout)
        return call

    def answer(
        self,
        encode: Callable[[Any], Prompt],
        inputs: Sequence[Any],
        error_policy: ErrorPolicy,
    ) -> GenerationResult:
        """Encodes the inputs of a call into prompts and generates their answers.

        Args:
            encode: makes the prompt of one input; called on worker threads while earlier answers are generated.
            inputs: the inputs, such as conversations, or their errors; a single one if the caller gave no list.
            error_policy: handles errors about one input; also says whether to stream.

        Returns:
            A list of answers if the caller gave a list, else one answer; or a stream of the one answer.

        Raises:
            BadSetting: a list of inputs is to be streamed.
        """
        is_batch = error_policy.num_inputs > 0
        if error_policy.stream:
            if is_batch:
                raise BadSetting(f"stream=True takes one prompt, not {len(inputs)}: call it once for each")
            return Stream(self.submit(call_with_deadline(encode, inputs[0], self.deadline)))
        answers = self._generate_answers(prefetch_map(encode, inputs, self.deadline), error_policy)
        return answers if is_batch else answers[0]

    def submit(
        self,
        prompt: Prompt,
        *,
        wait: bool = True,
        on_progress: Callable[[RequestProgress], None] | None = None,
    ) -> Generation:
        """Submits a prompt to the engine.

        Args:
            prompt: the prompt.
            wait: wait while the engine's queue is full.
            on_progress: see `Request`.

        Returns:
            The answer, to be generated by the engine's thread.

        Raises:
            EngineBusy: the queue is full, and `wait` is False.
            BadRequest: the prompt does not fit the model, or no answer can satisfy the constraint.
        """
        constraint, beam_constraint = self._create_constraints(prompt)
        if isinstance(self.compiled_constraint, CompiledGrammar):
            keep_leading_space = not self.compiled_constraint.allows_leading_space
        else:
            keep_leading_space = self.is_continuation
        detokenizer = Detokenizer(
            self.model.processor.tokenizer,
            self.stop_strings,
            keep_leading_space=keep_leading_space or bool(self.text_prefix),
            hidden_ids=self.hidden_ids,
        )
        generation = Generation(
            detokenizer, constraint, text_prefix=self.text_prefix, start_time=self.start_time
        )
        request = Request(
            prompt,
            self.sampling,
            self.stop_ids,
            self.model.banned_ids,
            generation.on_token,
            constraint=constraint,
            beam_constraint=beam_constraint,
            deadline=self.deadline,
            on_progress=on_progress,
        )
        generation.handle = self.model.engine.submit(request, wait=wait)
        return generation

    def _create_constraints(
        self, prompt: Prompt
    ) -> tuple[AnswerConstraint | None, GenerationConfigConstraint | None]:
        """Creates the constraints of one answer, from the options and the checkpoint's generation config.

        Returns:
            The constraint on its tokens, and the constraint on the beams of a beam search; each may be None.
        """
        config, layout = self.model.generation_config, self.model.engine.model.layout
        has_step_rules = bool(config.step_dependent_fields)
        if self.compiled_constraint is None and not has_step_rules and not config.renormalize_logits:
            return None, None
        max_new_tokens = compute_max_new_tokens(prompt, self.sampling, layout)
        compiled = self.compiled_constraint
        constraint = None if compiled is None else compiled.create_constraint(max_new_tokens)
        config_constraint = GenerationConfigConstraint(
            config, prompt.ids, max_new_tokens, layout.vocab_size, self.stop_ids, constraint
        )
        if self.sampling.num_beams > 1:
            return constraint, config_constraint
        return config_constraint if has_step_rules else constraint, None

    def _generate_answers(
        self, prompts: Generator[Prompt | IdeficsError], error_policy: ErrorPolicy
    ) -> list[Answer | IdeficsError]:
        """Submits prompts as they are made and collects their answers in order; a raised error cancels the rest."""
        max_in_flight = 2 * self.model.engine.config.batch_rows  # bounded, since prompts hold pictures
        in_flight: deque[Generation | IdeficsError] = deque()
        answers: list[Answer | IdeficsError] = []

        def collect_first() -> None:
            result = result_or_error(Generation.result, in_flight[0])
            answers.append(error_policy.return_or_raise(len(answers), result))
            in_flight.popleft()

        try:
            with closing(prompts):
                for index, prompt in enumerate(prompts):
                    generation = result_or_error(self.submit, prompt)
                    in_flight.append(error_policy.return_or_raise(index, generation))
                    if len(in_flight) == max_in_flight:
                        collect_first()
            while in_flight:
                collect_first()
        finally:
            for generation in in_flight:
                if isinstance(generation, Generation):
                    generation.handle.cancel()
        return answers


def _compile_constraint(
    model: LoadedModel,
    output_constraint: OutputConstraint | None,
    banned_strings: tuple[str, ...],
    skip_special_tokens: bool | None,
) -> CompiledGrammar | BannedStrings | None:
    """Compiles the structured output or the banned strings of a call; None if it has neither.

    Raises:
        BadSetting: both are given, or structured output with a checkpoint whose generation config has rules that depend
            on the step.
    """
    if output_constraint is None:
        return (
            BannedStrings(banned_strings, model.token_bytes(skip_special_tokens)) if banned_strings else None
        )
    kind = output_constraint.kind
    if fields := model.generation_config.step_dependent_fields:
        raise BadSetting(
            f"{kind} is given, but {GENERATION_CONFIG_FILE} of this checkpoint sets {', '.join(fields)}, which may "
            f"exclude every text that satisfies it: leave {kind} out, or remove these fields from the file"
        )
    if banned_strings:
        raise BadSetting(
            f"banned and {kind} are both given: leave one of the two out, as {kind} already says what an answer may "
            "contain"
        )
    return model.compile_grammar(output_constraint, skip_special_tokens)
