"""Checks of trained weights by what they compute: a matrix in the wrong place leaves the pattern of its siblings.

Two patterns hold in every layer of a trained model, and in none of an untrained one:

- The inputs of a gated MLP's activation are negative in the mean, those that it is multiplied with are not: the
  activation is a gate that is shut most of the time. Where gate and up are exchanged, it is the other way round.
- A square projection is aligned with its inputs: its outputs are larger than those of its transpose. (Those of values
  are not, in half of the layers.)

Where the siblings of a weight show no pattern, nothing can be told without a record.

The colours of drawn shapes and plain English tell whether a model has learned something.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from idefics.evaluate.check.checks import CheckOutcome, CheckSubject, ModelCheck, judge, skipped
from idefics.evaluate.check.drawn_pictures import COLORS, PLAIN_TEXT, SHAPES, draw_shape, trained_prompts
from idefics.evaluate.check.logits_record import prompt_logprobs
from idefics.messages import Picture, user
from idefics.nn.decoder import GatedMLP

if TYPE_CHECKING:
    from idefics.generation.prompts import Conversation, PromptItems


MIN_SIBLINGS = 3  # layers of one kind, the suspected one not counted
MIN_OUTPUTS = 128  # of a layer: the smaller it is, the easier a pattern arises by chance
MIN_POSITIVE_SHARE = 0.9
GATE_PATTERN, ALIGNMENT_PATTERN = 0.08, 0.1
NO_PATTERN = "the weights show no pattern, as before training: only a record can tell"
QUANTIZED = "the weights are quantised: check the original"

Scores = dict[str, dict[str, float]]


@dataclass(slots=True)
class ActivationScores:
    """Scores of modules, by kind of module (its name with "n" for the first number) and by name.

    Attributes:
        gates: of gated MLPs, the mean input of "up" minus that of "gate", in standard deviations of each.
        alignments: of square projections, the logarithm of the size of their outputs over that of their transpose.
    """

    gates: Scores = field(default_factory=lambda: defaultdict(dict))
    alignments: Scores = field(default_factory=lambda: defaultdict(dict))


@torch.inference_mode()
def measure_activations(subject: CheckSubject) -> ActivationScores:
    """Computes questions about pictures, and looks at the inputs and outputs of all linear layers."""
    sums: dict[str, Tensor] = {}
    linears = {
        name: layer
        for name, layer in subject.network.named_modules()
        if isinstance(layer, nn.Linear) and "lm_head" not in name
    }
    hooks = [layer.register_forward_hook(_sum_hook(sums, name)) for name, layer in linears.items()]
    try:
        for prompt in trained_prompts(subject):
            subject.vlm.logits(prompt)
    finally:
        for hook in hooks:
            hook.remove()
    scores = ActivationScores()
    for name, module in subject.network.named_modules():
        if isinstance(module, GatedMLP) and module.gate_proj.weight.shape[0] >= MIN_OUTPUTS:
            gate, up = sums[f"{name}.gate_proj"], sums[f"{name}.up_proj"]
            scores.gates[_kind_of(name)][name] = _standardized_mean(up) - _standardized_mean(gate)
        shape = linears[name].weight.shape if name in sums else (0, 0)
        if shape[0] == shape[1] >= MIN_OUTPUTS and not name.endswith(".v_proj"):
            direct, transposed = float(sums[name][2]), float(sums[name][3])
            if direct and transposed:
                scores.alignments[_kind_of(name)][name] = math.log(direct / transposed) / 2
    return scores


def _sum_hook(sums: dict[str, Tensor], name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A forward hook that adds up, over all outputs y without bias: count, y, y squared, and (W' x) squared."""

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        weight, x = layer.weight, inputs[0].float()
        y = output.float() if layer.bias is None else output.float() - layer.bias.float()
        is_square = weight.shape[0] == weight.shape[1]
        transposed = (x @ weight.float()).square().sum() if is_square else y.new_zeros(())
        found = torch.stack((y.new_tensor(float(y.numel())), y.sum(), y.square().sum(), transposed))
        sums[name] = sums.get(name, 0.0) + found.cpu().double()

    return add


def _standardized_mean(sums: Tensor) -> float:
    """The mean in standard deviations, of count, sum and sum of squares."""
    count, total, squares = sums[:3].tolist()
    mean = total / count
    return float(mean / math.sqrt(max(squares / count - mean * mean, 1e-30)))


def _kind_of(name: str) -> str:
    """The name of a module with "n" for its first number."""
    return re.sub(r"\.\d+\.", ".n.", name, count=1)


def find_broken_patterns(scores: Scores, pattern: float) -> tuple[int, list[str]]:
    """The modules that do not follow the pattern of their siblings.

    A module follows a pattern where its siblings score at least `pattern` in the median and nearly all above 0. It
    breaks it with a score as far below 0 as half of that median is above: an exchanged module has its own score with
    the other sign.

    Args:
        scores: by kind and by name.
        pattern: the least median of a pattern.

    Returns:
        How many modules follow a pattern or break one, and the names of those that break one.
    """
    num_judged, broken = 0, []
    for layers in scores.values():
        for name, score in layers.items():
            siblings = [other for sibling, other in layers.items() if sibling != name]
            if len(siblings) < MIN_SIBLINGS or median(siblings) < pattern:
                continue
            if sum(other > 0 for other in siblings) < MIN_POSITIVE_SHARE * len(siblings):
                continue
            num_judged += 1
            if score <= -median(siblings) / 2:
                broken.append(name)
    return num_judged, broken


def check_gate_up(subject: CheckSubject) -> CheckOutcome:
    """Looks for gated MLPs whose gate and up projections are exchanged."""
    if subject.is_quantized:
        return skipped(QUANTIZED)
    scores = subject.activation_scores.gates
    num_judged, broken = find_broken_patterns(scores, GATE_PATTERN)
    if not num_judged:
        return skipped(NO_PATTERN)
    typical = median(score for layers in scores.values() for score in layers.values())
    return judge(
        f"{num_judged} MLPs, typically {typical:+.2f}",
        "above half of the siblings' median below 0",
        [f"{name}: gate_proj and up_proj seem to be exchanged" for name in broken],
    )


def check_orientation(subject: CheckSubject) -> CheckOutcome:
    """Looks for square projections that are transposed."""
    if subject.is_quantized:
        return skipped(QUANTIZED)
    scores = subject.activation_scores.alignments
    num_judged, broken = find_broken_patterns(scores, ALIGNMENT_PATTERN)
    if not num_judged:
        return skipped(NO_PATTERN)
    num_modules = sum(map(len, scores.values()))
    return judge(
        f"{num_judged} of {num_modules} square projections can be judged",
        "above half of the siblings' median below 0",
        [f"{name} seems to be transposed" for name in broken],
    )


ACTIVATION_CHECKS = (
    ModelCheck(
        name="gate and up",
        shows="no MLP has its gate and its up projection exchanged (trained weights)",
        tolerance=f"standard deviations; judged where the siblings' median is at least {GATE_PATTERN:g}. Measured on "
        "the demo checkpoints, where all are above 0.08; not on released ones",
        run=check_gate_up,
    ),
    ModelCheck(
        name="orientation",
        shows="no output projection is transposed (trained weights; others show no pattern)",
        tolerance=f"logarithm of a ratio; judged where the siblings' median is at least {ALIGNMENT_PATTERN:g}. "
        "Measured on the demo checkpoints; not on released ones",
        run=check_orientation,
    ),
)


MIN_TRAINED_PARAMETERS = 100_000_000  # of a model that knows English and everyday pictures
MIN_RIGHT = 8  # of 12 drawn pictures; guessing reaches it once in 360 times
TOO_SMALL = f"fewer than {MIN_TRAINED_PARAMETERS // 10**6} million parameters: it need not know this"


def check_plain_text(subject: CheckSubject) -> CheckOutcome:
    """Measures how surprising plain English is."""
    if subject.num_parameters < MIN_TRAINED_PARAMETERS:
        return skipped(TOO_SMALL)
    prompt = subject.vlm.prompt([PLAIN_TEXT])
    surprise = -float(prompt_logprobs(prompt, subject.vlm.logits(prompt)).mean())
    text = subject.checkpoint.config.text
    limit = math.log(text.vocab_size + text.additional_vocab_size) / 2
    wrong = [f"{surprise:.2f} nats a token for plain English: the weights do not fit together"]
    return judge(f"{surprise:.2f} nats a token", f"{limit:.2f}", wrong if not surprise <= limit else ())


def check_drawn_pictures(subject: CheckSubject) -> CheckOutcome:
    """Asks for the colour of drawn shapes: the likeliest of four."""
    if subject.num_parameters < MIN_TRAINED_PARAMETERS:
        return skipped(TOO_SMALL)
    pictures = list(product(SHAPES, COLORS))
    right, mistakes = 0, []
    for shape, color in pictures:
        scores = _score_colors(subject, shape, color)
        best = max(zip(scores, COLORS, strict=True), key=lambda pair: sum(pair[0]))[1]
        right += best == color
        if best != color:
            mistakes.append(f"a {color} {shape} is called {best}")
    return judge(
        f"{right} of {len(pictures)}",
        f"{MIN_RIGHT} of {len(pictures)}",
        mistakes if right < MIN_RIGHT else (),
    )


def _score_colors(subject: CheckSubject, shape: str, color: str) -> list[list[float]]:
    """The log-probabilities of each colour after the picture of a shape, asked as the checkpoint was trained."""
    pixels, start = draw_shape(shape, color), f"The color of this {shape} is"
    names = [f" {name}" for name in COLORS]
    if subject.processor.prompt_format.kind == "chat":
        question: Conversation = [user(Picture(pixels), f"What is the color of this {shape}?")]
        return subject.vlm.score(question, names, answer_start=start, detail="low", max_tiles=1)[1]
    items: PromptItems = [pixels, start]
    return subject.vlm.score(items, names, detail="low", max_tiles=1)[1]


TRAINED_CHECKS = (
    ModelCheck(
        name="plain text",
        shows="the decoder's weights fit together: plain English is likely",
        tolerance="half of the logarithm of the vocabulary's size, which is the surprise of an untrained model. "
        "Not measured on released checkpoints",
        run=check_plain_text,
    ),
    ModelCheck(
        name="drawn pictures",
        shows="pictures reach the decoder: the colours of drawn circles, squares and triangles are seen",
        tolerance=f"{MIN_RIGHT} of 12, of four colours each. Not measured on released checkpoints",
        run=check_drawn_pictures,
    ),
)
