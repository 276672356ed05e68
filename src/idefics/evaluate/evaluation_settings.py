"""`EvaluationSettings`, what is evaluated and how, and `CheckpointFacts`, what is known of a model not yet loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from idefics.batch.run_settings import RunSettings
from idefics.config import Sampling
from idefics.errors import BadSetting
from idefics.evaluate.prompt_style import PromptChoice
from idefics.evaluate.scoring import METRICS
from idefics.evaluate.suite import LAYOUT_METRICS, Suite
from idefics.evaluate.suites import SUITES
from idefics.validation import validate_choice, validate_range

MAX_SHOTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """What is evaluated, and how.

    Attributes:
        suite: a key of `SUITES`.
        data: a folder in the suite's layout, a table, or "hf:owner/name:split"; "": what is installed.
        split: the part that is evaluated; "": the suite's own.
        num_shots: few-shot examples of each row, 0 to 32.
        selection: how they are chosen: at random, or those with the nearest pictures.
        embeddings: a file with embeddings for "rices"; None: the model's own vision features.
        support: where examples are taken from, as `data`; "": the suite's support split, or the rows themselves.
        seed: of the draws, and of the intervals.
        prompts: which wording; see `choose_style`.
        by: whether multiple-choice questions are answered by ranking their choices or by generated text.
        num_beams: of generated answers.
        max_new_tokens: of generated answers; None: the suite's own.
        question: of the rows of a table that have none of their own.
        metric: a key of `METRICS`; None: the suite's own.

    Raises:
        BadSetting: a value is not allowed.
    """

    suite: str
    data: str = ""
    split: str = ""
    num_shots: int = 0
    selection: Literal["random", "rices"] = "random"
    embeddings: Path | None = None
    support: str = ""
    seed: int = 0
    prompts: PromptChoice = "auto"
    by: Literal["ranking", "generation"] = "ranking"
    num_beams: int = 1
    max_new_tokens: int | None = None
    question: str | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        validate_choice("suite", self.suite, tuple(SUITES))
        validate_range("shots", self.num_shots, 0, MAX_SHOTS)
        if self.metric is not None:
            validate_choice("metric", self.metric, tuple(METRICS))
        # Checks the numbers, with the limits of every answer.
        max_new_tokens = 1 if self.max_new_tokens is None else self.max_new_tokens
        Sampling(num_beams=self.num_beams, max_new_tokens=max_new_tokens, seed=self.seed)
        if self.question is not None and not self.question.strip():
            raise BadSetting("question is blank: give a text, or leave it out")
        if self.embeddings is not None and self.selection != "rices":
            raise BadSetting("embeddings are for --selection rices, and the selection is random")
        if not self.num_shots and (self.support or self.selection == "rices"):
            name = "support" if self.support else "selection"
            raise BadSetting(f"{name} is about few-shot examples, and shots is 0: give --shots too")


def checked_metric(metric: str, suite: Suite) -> str:
    """A metric that takes the place of a suite's own. Raises BadSetting if it does not fit the answers."""
    if metric == suite.metric:
        return metric
    if metric in LAYOUT_METRICS:
        raise BadSetting(f"metric is {metric!r}, which is for its own suite, and not for {suite.name}")
    needs = {"accuracy": "choices or labels", "roc-auc": "two labels"}.get(metric)
    fits = suite.answer == "rank" and (metric != "roc-auc" or len(suite.labels) == 2)
    if needs is not None and not fits:
        raise BadSetting(f"metric is {metric!r}, which needs {needs}: give exact-match, vqa, anls or cider")
    return metric


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    """What an evaluation knows of the checkpoint before it is loaded.

    Attributes:
        run_settings: those of a run without a task: the model's name, revision, fingerprint, and the options of `load`
            that change answers.
        family: "idefics1", "idefics2" or "idefics3".
        kind: "chat", or "base" for one that continues documents.
    """

    run_settings: RunSettings
    family: str
    kind: Literal["base", "chat"]


def read_checkpoint_facts(folder: Path, run_settings: RunSettings) -> CheckpointFacts:
    """The facts of a checkpoint from its small files.

    Args:
        folder: of the checkpoint.
        run_settings: see `CheckpointFacts`.

    Raises:
        ModelError: a file is missing or malformed.
    """
    from idefics.generation.loading import create_processor
    from idefics.models import read_checkpoint
    from idefics.models.checkpoint import MODEL_REGISTRY
    from idefics.processing.checkpoint_settings import read_json_object
    from idefics.processing.fetch import Fetcher

    model_type = read_json_object(folder / "config.json").get("model_type", "")
    prompt_format = create_processor(read_checkpoint(folder), Fetcher()).prompt_format
    return CheckpointFacts(
        run_settings=run_settings, family=MODEL_REGISTRY[model_type], kind=prompt_format.kind
    )
