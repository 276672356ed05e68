"""`idefics eval`: a suite of published or of the user's own data, with its metrics and their 95 % intervals."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

from idefics.cli.batch_runs import find_run_settings, report_end, run_until_stopped
from idefics.cli.command import LoadModel, command
from idefics.cli.eval_reports import check_reports, write_reports
from idefics.cli.flags import ModelFlags, values_for
from idefics.cli.output import OutputWriter
from idefics.cli.run_flags import EvalFlags, EvalOutputFlags, RayFlags, RunControlFlags
from idefics.cli.run_progress import RunProgress
from idefics.errors import BadSetting


@command(
    "idefics eval --list",
    "idefics eval easy-vqa --model demo --limit 60 --out easy.json",
    "idefics eval folder --data answers.csv --out report.json --report report.html",
    "idefics eval folder --data answers.csv --shots 4 --selection rices --out shots.json",
    "idefics eval --compare before.json after.json",
    usage="SUITE",
    has_json=False,
)
def eval(
    writer: OutputWriter,
    load_model: LoadModel,
    evaluation: EvalFlags,
    model: ModelFlags,
    control: RunControlFlags,
    ray: RayFlags,
    outputs: EvalOutputFlags,
) -> None:
    """Score a model on a data set, published or your own, with 95 % intervals.

    SUITE is one of `idefics eval --list`; "folder" is a table of your own: a CSV with the columns image, question and
    answer is enough. The report has every row with its answer and score, and stands next to published figures.

    Every answer is kept in a ledger next to the report: the same command goes on where it was stopped or killed. A row
    that failed counts as wrong, and is named; --retry-failed tries such rows again.
    """
    if evaluation.list:
        from idefics.evaluate.scoring import METRICS
        from idefics.evaluate.suites import SUITES

        for suite in SUITES.values():
            title = METRICS[suite.metric].title
            print(f"{suite.name:<14} {suite.help}: {title}. --data: {suite.files}")
        return
    if outputs.compare:
        from idefics.evaluate.report_comparison import comparison_lines

        if len(evaluation.arguments) != 2:
            raise BadSetting("give two reports to compare: `idefics eval --compare a.json b.json`")
        for line in comparison_lines(*map(Path, evaluation.arguments)):
            print(line)
        return
    if len(evaluation.arguments) != 1:
        raise BadSetting("give the name of one suite, such as easy-vqa; `idefics eval --list` names them")
    _run(writer, load_model, evaluation, model, control, ray, outputs)


def _run(
    writer: OutputWriter,
    load_model: LoadModel,
    flags: EvalFlags,
    model: ModelFlags,
    control: RunControlFlags,
    ray: RayFlags,
    outputs: EvalOutputFlags,
) -> None:
    """Runs a suite, and writes the reports."""
    from idefics import weights
    from idefics.batch.ledger import Ledger
    from idefics.batch.run import BatchRun
    from idefics.batch.sources.settings import SourceSettings
    from idefics.batch.text_settings import TextSettings
    from idefics.batch.text_writer import TextWriter
    from idefics.evaluate.answerer import EvaluationEngineSpec
    from idefics.evaluate.evaluation import Evaluation
    from idefics.evaluate.evaluation_settings import EvaluationSettings, read_checkpoint_facts
    from idefics.processing.fetch import Fetcher

    settings = EvaluationSettings(
        suite=flags.arguments[0], num_shots=flags.shots, **values_for(EvaluationSettings, flags)
    )
    selection = control.selection()
    inputs = (flags.data, flags.support, str(flags.embeddings or ""))
    out = check_reports(outputs, inputs, writer, overwrites=control.overwrite)
    sources = SourceSettings(image_column=flags.image_column, fetcher=Fetcher(policy=model.remote_images))

    load = cache(partial(load_model, model))
    run_settings = find_run_settings("eval", model, writer)
    folder = weights.find_checkpoint(model.model, revision=model.revision, offline=True)
    evaluation = Evaluation(settings, read_checkpoint_facts(folder, run_settings), load, sources)
    run_settings = evaluation.run_settings
    with ExitStack() as stack:
        ledger_path = control.ledger or out.with_name(f"{out.name}.ledger")
        ledger = stack.enter_context(Ledger(ledger_path))
        run_number = control.prepare_ledger(ledger, run_settings)
        spec = EvaluationEngineSpec(
            load_keywords=asdict(model),
            fingerprint=run_settings.fingerprint,
            shots=(),
            task=run_settings.task,
            options=evaluation.generation_options | control.timeout_option(),
            labels=evaluation.suite.labels,
            is_length_normalized=evaluation.suite.is_length_normalized,
        )
        answerer = stack.enter_context(closing(ray.create_answerer(spec, load)))
        texts = TextWriter(ledger, run_settings, TextSettings())
        batch_run = BatchRun(
            *(evaluation.source, run_settings, evaluation.prompts, answerer, ledger, texts, None, selection),
            max_errors=control.max_errors,
            makes_thumbnails=outputs.report is not None,
            on_progress=RunProgress(writer).show,
        )
        started = datetime.now(UTC).astimezone()
        run_until_stopped(batch_run, writer)
        report_end(writer, batch_run)
        write_reports(outputs, evaluation, batch_run, ledger, run_number, selection, started)
