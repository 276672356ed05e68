"""Checks of the engine: each way to compute a token gives what the uncached reference implementation gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from idefics.config import Sampling
from idefics.engine.handle import RequestHandle
from idefics.engine.reference import ReferenceModel
from idefics.engine.request import Request
from idefics.errors import OutOfMemory
from idefics.evaluate.check.checks import CheckOutcome, CheckSubject, ModelCheck, judge, skipped
from idefics.prompt import Prompt
from idefics.tasks.idefics_model import Idefics

NUM_NEW_TOKENS = 6
EXACT_LIMIT = 1e-3  # float32 everywhere: only the order of sums differs
ROUNDED_LIMIT = 0.1  # activations, keys or inputs of products have 16 bits
QUANTIZED_LIMIT = 0.3  # inputs of products have 8 bits, and another scale in another batch
MIN_KERNEL_AGREEMENT = 0.9


def logprob_limit(subject: CheckSubject) -> float:
    """How much the log-probability of a token may depend on the way in which it is computed."""
    if subject.is_quantized:
        return QUANTIZED_LIMIT
    return ROUNDED_LIMIT if subject.rounds_inputs else EXACT_LIMIT


def check_cached(subject: CheckSubject) -> CheckOutcome:
    """Scores the end of each prompt over the cache of its beginning, and compares with one pass over the whole."""
    limit, largest, wrong = logprob_limit(subject), 0.0, []
    for name, prompt in subject.fixed_prompts.items():
        start = _cut_after_pictures(prompt)
        continuation = prompt.ids[len(start) :]
        subject.vlm.engine.clear_caches()
        [cached] = subject.vlm.engine.score(start, [continuation])
        expected = token_logprobs(reference_logits(subject.vlm, start, continuation), continuation)
        difference = float((torch.tensor(cached) - expected).abs().max())
        largest = max(largest, difference)
        if not difference <= limit:
            wrong.append(f"{name}: log-probabilities differ by {difference:.2g}")
    return judge(f"{largest:.2g}", f"{limit:g}", wrong)


def _cut_after_pictures(prompt: Prompt) -> Prompt:
    """The prompt without its last tokens, at most `NUM_NEW_TOKENS` and all after its pictures."""
    last_picture = max((positions[-1] for positions in prompt.image_token_positions), default=0)
    end = max(last_picture + 2, len(prompt) - NUM_NEW_TOKENS)
    return replace(prompt, ids=prompt.ids[:end], image_index=prompt.image_index[:end])


@torch.inference_mode()
def reference_logits(vlm: Idefics, prompt: Prompt, continuation: Sequence[int]) -> Tensor:
    """(T, V) float32 logits before each of the T tokens after a prompt, by the uncached reference."""
    model = vlm.engine.model
    hidden_states = ReferenceModel(model, prompt).hidden_states(tuple(continuation))
    return model.logits(hidden_states[len(prompt) - 1 :])[: len(continuation)].float()


def token_logprobs(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """(T,) log-probabilities of T ids, of (T, V) logits."""
    return logits.log_softmax(-1)[torch.arange(len(ids)), list(ids)].cpu()


def check_decode(subject: CheckSubject) -> CheckOutcome:
    """Generates a few tokens one by one, and compares each with the uncached reference."""
    limit, largest, wrong = logprob_limit(subject), 0.0, []
    for name, prompt in subject.fixed_prompts.items():
        subject.vlm.engine.clear_caches()
        [answer] = _generate(subject.vlm, [prompt])
        difference, lead = compare_with_reference(subject.vlm, prompt, answer)
        largest = max(largest, difference)
        if not difference <= limit:
            wrong.append(f"{name}: log-probabilities differ by {difference:.2g}")
        if lead > 2 * limit:
            wrong.append(f"{name}: the reference prefers another token, by {lead:.2g}")
    return judge(f"{largest:.2g}", f"{limit:g}", wrong)


@torch.inference_mode()
def compare_with_reference(vlm: Idefics, prompt: Prompt, answer: RequestHandle) -> tuple[float, float]:
    """Compares the ids of an answer with the uncached reference.

    Returns:
        The largest difference of a token's log-probability, and by how much the reference prefers another token.
    """
    logits = reference_logits(vlm, prompt, answer.ids)
    logits[:, sorted(vlm.loaded_model.banned_ids)] = -torch.inf
    expected = token_logprobs(logits, answer.ids)
    difference = (torch.tensor(answer.logprobs) - expected).abs().max()
    lead = (logits.log_softmax(-1).max(-1).values.cpu() - expected).max()
    return float(difference), float(lead)


def _generate(vlm: Idefics, prompts: Iterable[Prompt]) -> list[RequestHandle]:
    """`NUM_NEW_TOKENS` greedy tokens after each of several prompts that are submitted together; no id ends them."""
    sampling = Sampling(max_new_tokens=NUM_NEW_TOKENS, logprobs=True)
    banned_ids = vlm.loaded_model.banned_ids
    handles = [
        vlm.engine.submit(Request(prompt, sampling, banned_ids=banned_ids), wait=True) for prompt in prompts
    ]
    return [handle.result() for handle in handles]


def check_batch(subject: CheckSubject) -> CheckOutcome:
    """Answers the prompts together, and compares with the answers one by one."""
    limit, largest, wrong = logprob_limit(subject), 0.0, []
    prompts = subject.fixed_prompts
    alone = []
    for prompt in prompts.values():
        subject.vlm.engine.clear_caches()
        alone += _generate(subject.vlm, [prompt])
    subject.vlm.engine.clear_caches()
    together = _generate(subject.vlm, prompts.values())
    for name, one, other in zip(prompts, alone, together, strict=True):
        num_equal = next(
            (n for n, (a, b) in enumerate(zip(one.ids, other.ids, strict=True)) if a != b), len(one.ids)
        )
        # At the first other token too: two that are equally likely may change places.
        pairs = list(zip(one.logprobs, other.logprobs, strict=True))[: num_equal + 1]
        difference = max(abs(a - b) for a, b in pairs)
        largest = max(largest, difference)
        if not difference <= limit:
            wrong.append(f"{name}: log-probabilities differ by {difference:.2g}")
    return judge(f"{largest:.2g}", f"{limit:g}", wrong)


def check_reference_kernels(subject: CheckSubject) -> CheckOutcome:
    """Loads the model a second time with torch's plain operations, and compares the logits of all prompts."""
    if subject.settings.kernels == "reference":
        return skipped("the model is loaded with the reference kernels")
    prompts, fast, limit = subject.fixed_prompts, subject.fixed_logits, logprob_limit(subject)
    try:
        with subject.second_model(kernels="reference") as reference:
            plain = {name: reference.logits(prompt) for name, prompt in prompts.items()}
    except OutOfMemory as error:
        return skipped(f"no memory for it: {error}")
    difference, agreement = compare_logits(fast, plain, prompts)
    wrong = []
    if not difference <= limit:
        wrong.append(f"the log-probabilities of the prompts' tokens differ by {difference:.2g} in the mean")
    if agreement < (MIN_KERNEL_AGREEMENT if subject.rounds_inputs else 1.0):
        wrong.append(f"the likeliest next token is the same at {agreement:.0%} of the positions only")
    return judge(
        f"{difference:.2g}, same first token at {agreement:.0%}",
        f"{limit:g}, {MIN_KERNEL_AGREEMENT if subject.rounds_inputs else 1.0:.0%}",
        wrong,
    )


def compare_logits(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], prompts: Mapping[str, Prompt], tie: float = 1e-3
) -> tuple[float, float]:
    """Compares logits (N, V) of prompts.

    Args:
        one, other, prompts: by name.
        tie: tokens count as equally likely if their log-probabilities in `other` differ by at most this.

    Returns:
        The mean difference of the log-probabilities of the prompts' tokens, image tokens left out; and the share of
        positions with the same likeliest next token.
    """
    differences, same = [], []
    for name, prompt in prompts.items():
        ids = torch.tensor(prompt.ids)
        is_text = torch.ones(len(ids), dtype=torch.bool)
        for positions in prompt.image_token_positions:
            is_text[list(positions)] = False
        rows = is_text[1:].nonzero()[:, 0]
        a, b = (x.cpu()[:-1].log_softmax(-1)[rows] for x in (one[name], other[name]))
        targets = ids[1:][rows][:, None]
        differences.append((a.gather(1, targets) - b.gather(1, targets)).abs())
        chosen = a.argmax(-1, keepdim=True)
        same.append(b.max(-1).values - b.gather(1, chosen)[:, 0] <= tie)
    return float(torch.cat(differences).mean()), float(torch.cat(same).float().mean())


REASON = (
    f"nats: {EXACT_LIMIT:g} in float32, where only the order of sums differs; {ROUNDED_LIMIT:g} where activations, "
    f"cached keys or inputs of products have 16 bits; {QUANTIZED_LIMIT:g} with quantised weights"
)
ENGINE_CHECKS = (
    ModelCheck(
        name="cached logits",
        shows="tokens over cached keys and values are as likely as in one pass over the whole prompt",
        tolerance=REASON,
        run=check_cached,
    ),
    ModelCheck(
        name="decode steps",
        shows="tokens generated one by one are those of the uncached reference, with its log-probabilities",
        tolerance=REASON,
        run=check_decode,
    ),
    ModelCheck(
        name="batch",
        shows="prompts that are answered together get the answers that they get alone",
        tolerance=REASON,
        run=check_batch,
    ),
    ModelCheck(
        name="reference kernels",
        shows="the kernels in use compute what torch's plain operations compute, through all layers",
        tolerance=f"{REASON}; the mean over all tokens of the prompts",
        run=check_reference_kernels,
        is_quick=False,
    ),
)
