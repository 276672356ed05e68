"""`Evaluation`: a suite, a checkpoint and settings as a batch run has them; and the rows with their answers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from idefics.batch.ledger import Ledger, LedgerRow
from idefics.batch.records import escape_surrogates
from idefics.batch.run_settings import RowSelection, RunSettings
from idefics.batch.sources.settings import SourceSettings
from idefics.errors import BadSetting, IdeficsError
from idefics.evaluate.evaluation_settings import CheckpointFacts, EvaluationSettings, checked_metric
from idefics.evaluate.prompt_style import PromptStyle, choose_style
from idefics.evaluate.prompts import SuitePrompts
from idefics.evaluate.scores import EvaluatedRow
from idefics.evaluate.shots import (
    MAX_EMBEDDED_ROWS,
    MAX_SUPPORT_ROWS,
    EmbeddingFile,
    NearestShots,
    PictureContents,
    RandomShots,
    ShotSelector,
    choose_support,
)
from idefics.evaluate.suite import EvaluationRow, Suite
from idefics.evaluate.suite_data import SuiteData
from idefics.evaluate.suites import SUITES
from idefics.lazy import cached_property

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from idefics import Idefics


IDEFICS3_MAX_NEW_TOKENS = 40  # of the authors' runs with SmolVLM


class Evaluation:
    """A suite for a checkpoint, ready for a `BatchRun`.

    Args:
        settings: what is evaluated, and how.
        checkpoint: what is known of the model.
        load_model: loads it; called only where its vision features choose the few-shot examples.
        sources: how tables are read.

    Attributes:
        suite: the suite, with the labels and the metric that the data and the settings decide.
        source: its rows.
        prompts: makes their requests.

    Raises:
        BadSetting: there is no data, or a setting does not fit the suite or the checkpoint.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        checkpoint: CheckpointFacts,
        load_model: Callable[[], Idefics],
        sources: SourceSettings,
    ) -> None:
        self.settings, self.checkpoint = settings, checkpoint
        self._load_model, self._sources = load_model, sources
        self._embedding_by_path: dict[str, NDArray[np.float32]] = {}
        suite = SUITES[settings.suite]
        self._data = SuiteData(
            suite, settings.data, settings.split or suite.split, settings.question, sources
        )
        self._check_data_settings()
        self.source = self._data.rows()
        suite = self._data.resolve_suite(self.source)
        if settings.metric is not None:
            suite = replace(suite, metric=checked_metric(settings.metric, suite))
        if settings.by == "generation" and suite.answer == "rank":
            if suite.metric != "accuracy" or not suite.has_questions:
                raise BadSetting(
                    f"by is 'generation', which is for multiple-choice questions, and not for {suite.name}"
                )
            suite = replace(suite, answer="text", prompts=suite.open_prompts)
            self._data = replace(self._data, lists_choices=True)
            self.source = self._data.rows()
        self.suite = suite
        contents = PictureContents()
        shots = self._create_shots(contents) if settings.num_shots else None
        self.prompts = SuitePrompts(
            suite, self.style, self.open_style, checkpoint.kind, shots, settings.seed, contents
        )

    def _check_data_settings(self) -> None:
        """Raises BadSetting for settings of tables where the data are a folder, and the other way around."""
        if self._data.is_table and self.settings.split:
            raise BadSetting(
                f"split is {self.settings.split!r}, but {self.settings.data} is a table, which has none; that of a "
                "data set of the hub follows its name: hf:owner/name:split"
            )
        for name, value in (
            ("question", self.settings.question),
            ("image_column", self._sources.image_column),
        ):
            if value is not None and not self._data.is_table:
                raise BadSetting(f"{name} is for tables, and the data of {self.settings.suite} are none")

    @cached_property
    def style(self) -> PromptStyle:
        """The wording where labels are ranked, or the suite has only one."""
        return self._choose_style(self.suite)

    @cached_property
    def open_style(self) -> PromptStyle:
        """The wording for generated answers."""
        if self.suite.answer != "rank" or not self.suite.open_prompts:
            return self.style
        return self._choose_style(replace(self.suite, answer="text", prompts=self.suite.open_prompts))

    def _choose_style(self, suite: Suite) -> PromptStyle:
        return choose_style(
            suite,
            family=self.checkpoint.family,
            kind=self.checkpoint.kind,
            choice=self.settings.prompts,
            has_shots=self.settings.num_shots > 0,
        )

    @property
    def generation_options(self) -> dict[str, Any]:
        """The options of generated answers."""
        default = self.suite.max_new_tokens
        if self.checkpoint.family == "idefics3":
            default = max(default, IDEFICS3_MAX_NEW_TOKENS)
        options: dict[str, Any] = {"max_new_tokens": self.settings.max_new_tokens or default}
        if self.settings.num_beams > 1:
            options["num_beams"] = self.settings.num_beams
        elif self.open_style.banned:
            options["banned"] = list(self.open_style.banned)
        return options

    @property
    def stop_words(self) -> tuple[str, ...]:
        """Regular expressions: a generated answer ends before the first match.

        Beam search cannot ban texts, so that what the authors banned ends its answers.
        """
        style = self.open_style
        return style.stop_words + (style.banned if self.settings.num_beams > 1 else ())

    @property
    def run_settings(self) -> RunSettings:
        """The settings of the batch run: with the request of a row all that its answer depends on."""
        base, suite = self.checkpoint.run_settings, self.suite
        options = self.generation_options | {"length_normalized": suite.is_length_normalized}
        if suite.labels:
            options["labels"] = hashlib.sha256(json.dumps(suite.labels).encode()).hexdigest()
        return replace(base, task=f"eval {suite.name}", options=options | dict(base.options))

    def describe_settings(self) -> dict[str, Any]:
        """The settings for the report, with where the prompts come from."""
        settings, is_ranked = self.settings, self.suite.answer == "rank"
        described: dict[str, Any] = {
            "prompts": self.style.source,
            "answers": "labels ranked by the sum of their log-probabilities"
            if is_ranked
            else "generated text",
            "shots": settings.num_shots,
        }
        if not is_ranked:
            described |= {"num_beams": settings.num_beams} | self.generation_options
            described["stop_words"] = list(self.stop_words)
        if settings.num_shots:
            described["selection"] = self._describe_selection()
        run_settings = self.checkpoint.run_settings
        if run_settings.adapter:
            described["adapter"] = run_settings.adapter
        return described | dict(run_settings.options)

    def _describe_selection(self) -> str:
        """How the few-shot examples were chosen, in words."""
        settings = self.settings
        if settings.selection == "random":
            return f"random, drawn for each row, seed {settings.seed}"
        by = (
            f"the embeddings in {settings.embeddings}"
            if settings.embeddings
            else "this model's own vision features"
        )
        return f"rices: nearest pictures (cosine) by {by}, the nearest last; the authors used CLIP ViT-B/32"

    def example_prompt(self) -> str:
        """The whole prompt of the first row that has one, for people; "" if there is none."""
        for row in self.source:
            if not row.error:
                with suppress(IdeficsError):  # it is in the row of the report
                    return self.prompts.make_request(row).describe()
        return ""

    def evaluated_rows(
        self, ledger: Ledger, run_number: int, selection: RowSelection, *, is_complete: bool
    ) -> Iterator[tuple[EvaluatedRow, dict[str, Any]]]:
        """Yields the rows that have an answer or an error in the ledger, with the fields of the answer.

        A row without a right answer has no score: see `EvaluatedRow.references`.

        Args:
            ledger, run_number, selection: of the run.
            is_complete: whether the run came to its end; else the ledger may have rows as they were before the data
                changed, which are left out.
        """
        pattern = re.compile("|".join(self.stop_words)) if self.stop_words else None
        for row in selection.select(self.source):
            assert isinstance(row, EvaluationRow)
            found = ledger.find_row(run_number, row.name)
            answer = None if found is None else ledger.find_answer(found.key)
            if found is None or answer is None:
                continue
            if is_complete or self._is_current(ledger, found, row, answer):
                yield _evaluated(row, answer, pattern, row.labels or self.suite.labels), answer

    def _is_current(
        self, ledger: Ledger, found: LedgerRow, row: EvaluationRow, answer: dict[str, Any]
    ) -> bool:
        """Whether a row of the ledger is about a row of the data as it is now."""
        if row.media is None:
            return bool(answer.get("error") == row.error)
        try:
            prompt = self.prompts.render(row, None)
            if "error_type" in answer or row.media.container is None:
                written = tuple(map(escape_surrogates, (row.media.path, prompt)))
                return (found.path, found.prompt) == written
            content = ledger.find_content(row.media.path, row.media.container.stat())
        except (IdeficsError, OSError) as error:
            return bool(answer.get("error") == str(error))
        if content is None:
            return False
        return found.key == self.run_settings.compute_key(ledger.original_content(content), prompt)

    def _create_shots(self, contents: PictureContents) -> ShotSelector:
        """What chooses the few-shot examples."""
        settings = self.settings
        is_embedded_here = settings.selection == "rices" and settings.embeddings is None
        max_rows = MAX_EMBEDDED_ROWS if is_embedded_here else MAX_SUPPORT_ROWS
        support_rows = choose_support(self._support(), settings.seed, settings.num_shots, max_rows)
        if settings.selection == "random":
            return RandomShots(support_rows, settings.num_shots, contents, settings.seed)
        embed = self._embed if settings.embeddings is None else EmbeddingFile(settings.embeddings).embed
        return NearestShots(support_rows, settings.num_shots, contents, embed)

    def _embed(self, row: EvaluationRow) -> NDArray[np.float32]:
        """The embedding of a row's picture by the model's own vision features."""
        assert row.media is not None
        path = row.media.path  # several rows may be about one picture
        if path not in self._embedding_by_path:
            self._embedding_by_path[path] = self._load_model().embed(row.media.read()).numpy()
        return self._embedding_by_path[path]

    def _support(self) -> Iterator[EvaluationRow]:
        """The rows that examples may be taken from."""
        location, suite = self.settings.support, self._data.suite
        if location:
            data = SuiteData(suite, location, suite.support_split, self.settings.question, self._sources)
            return iter(data.rows())
        if self._data.is_table:
            return iter(self.source)
        return iter(replace(self._data, split=suite.support_split).rows())


def _evaluated(
    row: EvaluationRow, answer: dict[str, Any], stop_pattern: re.Pattern[str] | None, labels: tuple[str, ...]
) -> EvaluatedRow:
    """A row with its answer, which is cut at the stop words unless it is a label."""
    text, label_scores = answer.get("text") or "", tuple(answer.get("label_scores", ()))
    if label_scores:
        cut = labels[max(range(len(label_scores)), key=label_scores.__getitem__)]
    else:
        cut = text if stop_pattern is None else stop_pattern.split(text, maxsplit=1)[0]
    return EvaluatedRow(
        name=row.name,
        id=row.id,
        path=row.media.path if row.media is not None else row.name,
        question=row.fields.get("question", ""),
        answer=cut,
        uncut_answer=cut if label_scores else text,
        label_scores=label_scores,
        references=row.references,
        labels=labels,
        relevance=row.relevance,
        group=row.group,
        error=answer.get("error", ""),
    )
