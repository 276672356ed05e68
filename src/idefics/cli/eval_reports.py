"""What `idefics eval` writes: the reports, and the figures on standard output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from idefics.cli.batch_runs import check_outputs, command_line, find_thumbnail, summarize_run
from idefics.cli.output import OutputWriter
from idefics.cli.run_flags import EvalOutputFlags
from idefics.errors import BadSetting, format_count

if TYPE_CHECKING:
    from idefics.batch.ledger import Ledger
    from idefics.batch.run import BatchRun
    from idefics.batch.run_settings import RowSelection
    from idefics.evaluate.evaluation import Evaluation
    from idefics.evaluate.scores import EvaluatedRow, Scores

MAX_NAMED_ROWS = 5  # with the score 0


def check_reports(
    outputs: EvalOutputFlags, inputs: Sequence[str], writer: OutputWriter, *, overwrites: bool
) -> Path:
    """Checks before an evaluation that its reports can be written, and returns the path of the JSON report.

    Args:
        outputs: the flags of the reports.
        inputs: what the evaluation reads.
        writer: prints a note on a disk that is almost full.
        overwrites: whether a file that is no report may be replaced by the JSON report.

    Raises:
        BadSetting: no path is given, both are the same, or one is an input or a file of another kind.
        OutputError: a path cannot be written.
    """
    from idefics.evaluate.report_comparison import read_report

    out, report = outputs.out, outputs.report
    if out is None:
        raise BadSetting("nothing says where the report goes: give --out report.json")
    if report is not None and report.resolve() == out.resolve():
        raise BadSetting(
            f"{out} is named twice: give the page of --report another name than the report of --out"
        )
    purpose = "evaluation too: name another file for the report"
    check_outputs(out, report, inputs, purpose, writer)
    if out.exists() and out.stat().st_size and not overwrites:
        try:
            read_report(out)
        except BadSetting as error:
            raise BadSetting(f"{error}: name another file, or replace it with --overwrite") from None
    return out


def write_reports(
    outputs: EvalOutputFlags,
    evaluation: Evaluation,
    batch_run: BatchRun,
    ledger: Ledger,
    run_number: int,
    selection: RowSelection,
    started: datetime,
) -> None:
    """Scores the rows that have an answer or an error, prints the figures, and writes the reports.

    Raises:
        BadSetting: no row can be scored.
        OutputError: a report cannot be written.
    """
    from idefics.evaluate.report import figure_text, report_json, write_html_report, write_json_report
    from idefics.evaluate.scoring import score_rows

    is_complete = not (batch_run.is_stopping or batch_run.counts.has_too_many_errors)
    found = list(evaluation.evaluated_rows(ledger, run_number, selection, is_complete=is_complete))
    unscored = [row for row, _ in found if not row.references]
    found = [(row, answer) for row, answer in found if row.references]
    if not found:
        reason = f"; the first: {unscored[0].error}" if unscored else ""
        raise BadSetting(f"no row has an answer and a right answer: there is nothing to score{reason}")
    rows, answers = [row for row, _ in found], [answer for _, answer in found]
    scores = score_rows(evaluation.suite.metric, rows, evaluation.settings.seed)
    if not is_complete:
        scores = replace(scores, notes=("the run was stopped: these are the rows so far", *scores.notes))
    report = report_json(
        *(evaluation, rows, answers, scores),
        unscored=unscored,
        is_complete=is_complete,
        command=command_line(),
        started=started,
        seconds=batch_run.counts.seconds,
    )
    assert outputs.out is not None
    write_json_report(outputs.out, report)
    figures = tuple((figure.name, figure_text(figure)) for figure in scores.figures)
    if outputs.report is not None:
        settings = replace(evaluation.run_settings, task=evaluation.suite.name)
        summary = summarize_run(settings, batch_run.counts, started, "Evaluation", figures)
        if scores.notes:
            summary = replace(summary, settings=dict(summary.settings) | {"notes": "; ".join(scores.notes)})
        write_html_report(
            *(outputs.report, evaluation, rows, answers, scores, summary),
            lambda record: find_thumbnail(ledger, record.path),
        )
    for name, text in figures:
        print(f"{name}: {text}")
    without = f", {len(unscored):,} more without a right answer" if unscored else ""
    print(
        f"{format_count(len(rows), 'row')}, {report['num_failed']:,} failed{without}; {outputs.out} has all of them"
    )
    _print_notes(evaluation, rows, scores)


def _print_notes(evaluation: Evaluation, rows: Sequence[EvaluatedRow], scores: Scores) -> None:
    """Prints the first rows with the score 0, what limits the figures, and those that were published."""
    from idefics.evaluate.report import figures_of_model, published_figures

    wrong = [row.name for row, score in zip(rows, scores.rows, strict=True) if not score]
    if wrong:
        have = "has" if len(wrong) == 1 else "have"
        such_as = ", such as" if len(wrong) > MAX_NAMED_ROWS else ":"
        print(
            f"{format_count(len(wrong), 'row')} {have} the score 0{such_as} {', '.join(wrong[:MAX_NAMED_ROWS])}"
        )
    for note in scores.notes:
        print(note)
    published, num_shots = published_figures(evaluation.suite.name), evaluation.settings.num_shots
    for one in figures_of_model(published, evaluation.run_settings.model):
        if one.shots == num_shots:
            print(
                f"published, {format_count(num_shots, 'shot')}: {one.model} {one.value:g} {one.metric} "
                f"{one.split}".rstrip(),
                f"({one.source})",
            )
    if published:
        print("published figures are in the report, with what is known of their settings")
