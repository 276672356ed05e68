"""`idefics run`: a task over any number of pictures, kept in a ledger; `idefics ledger`: what a ledger holds."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idefics.cli.batch_runs import (
    check_outputs,
    find_run_settings,
    report_end,
    run_until_stopped,
    write_run_report,
)
from idefics.cli.command import LoadModel, command
from idefics.cli.flags import ModelFlags, PositionalArguments, ShotsFlags, flag_group, output_flag, values_for
from idefics.cli.output import OutputWriter, one_line
from idefics.cli.run_flags import RayFlags, RunControlFlags, RunInputFlags, RunOutputFlags
from idefics.cli.run_progress import RunProgress
from idefics.cli.sampling import SamplingFlags
from idefics.cli.tasks import LabelFlags, read_shots_file
from idefics.errors import BadPicture, BadPrompt, BadSetting
from idefics.tasks import TASKS, classify
from idefics.validation import validate_choice

if TYPE_CHECKING:
    from idefics import Shot
    from idefics.batch.output_file import OutputFile
    from idefics.batch.prompt_template import PromptTemplate
    from idefics.batch.ray_engine import EngineSpec
    from idefics.batch.rows import RowSource
    from idefics.batch.run_settings import RunSettings


@command(
    "idefics run photos/ --out captions.jsonl",
    'idefics run photos/ --task ask --prompt "How many people are there?" --out people.csv',
    'idefics run photos/ --task classify --labels "indoors,outdoors" --out a.csv --report a.html',
    'idefics run goods.csv --task ask --prompt "What colour is the {item}?" --out colours.csv',
    "idefics run photos/ --sidecar txt --existing append --prefix 'sks, '",
    usage="INPUT...",
    has_json=False,
)
def run(
    writer: OutputWriter,
    load_model: LoadModel,
    inputs: RunInputFlags,
    labels: LabelFlags,
    shots: ShotsFlags,
    model: ModelFlags,
    sampling: SamplingFlags,
    control: RunControlFlags,
    ray: RayFlags,
    outputs: RunOutputFlags,
) -> None:
    """Run a task over any number of pictures; stop it and go on at any time.

    An INPUT is a picture, folder, pattern, address, archive (zip, tar), table (.jsonl, .csv, .parquet), PDF, data set
    of the Hugging Face hub (hf:owner/name) or batch file of OpenAI's API. --task is caption, ask, classify or others.

    Every answer is kept in a ledger next to the output file. The same command goes on where it was stopped, killed or
    interrupted: nothing is lost, and no picture is computed twice. Another prompt, option or model is another answer.
    A picture that cannot be read is a row with an error; --retry-failed tries such rows again. The exit code is 1 if
    rows failed.
    """
    from idefics.batch.ledger import Ledger
    from idefics.batch.output_file import LedgerExport
    from idefics.batch.run import BatchRun
    from idefics.batch.run_settings import hash_shots
    from idefics.batch.text_settings import TextSettings
    from idefics.batch.text_writer import TextWriter
    from idefics.cli.openai_run import run_if_openai_batch

    others = (labels, shots, sampling, ray)
    if run_if_openai_batch(writer, load_model, inputs, model, outputs, control, others):
        return
    validate_choice("task", inputs.task, tuple(TASKS))
    output_file = _checked_output(inputs, outputs, writer)
    template, options = _template(inputs), _task_options(inputs.task, labels, sampling)
    selection, shot_list = control.selection(), read_shots_file(shots.shots)
    source, ledger_path = _open_source(inputs, model, template), _ledger_path(inputs, outputs, control)
    found = find_run_settings(inputs.task, model, writer, options)
    prompt, shots_hash = "" if template is None else template.text, hash_shots(shot_list)
    settings = replace(found, prompt=prompt, shots=shots_hash, prefix=outputs.prefix, suffix=outputs.suffix)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(ledger_path))
        run_number = control.prepare_ledger(ledger, settings)
        export = LedgerExport(ledger, output_file, overwrite=control.overwrite) if output_file else None
        spec = _engine_spec(settings, model, shot_list, options | control.timeout_option())
        answerer = stack.enter_context(closing(ray.create_answerer(spec, lambda: load_model(model))))
        texts = TextWriter(ledger, settings, TextSettings(**values_for(TextSettings, outputs)))
        batch_run = BatchRun(
            *(source, settings, template, answerer, ledger, texts, export, selection),
            max_errors=control.max_errors,
            makes_thumbnails=outputs.report is not None,
            on_progress=RunProgress(writer).show,
        )
        started = datetime.now(UTC).astimezone()
        run_until_stopped(batch_run, writer)
        report_end(writer, batch_run, source.describe_skipped(), texts)
        if outputs.report is not None:
            write_run_report(outputs.report, ledger, run_number, settings, batch_run.counts, started)


def _engine_spec(
    settings: RunSettings, model: ModelFlags, shots: list[Shot], options: dict[str, Any]
) -> EngineSpec:
    """What answers the rows of a run; `options` are those of the task."""
    from idefics.batch.ray_engine import EngineSpec

    return EngineSpec(
        load_keywords=asdict(model),
        fingerprint=settings.fingerprint,
        shots=shots,
        task=settings.task,
        options=options,
    )


def _checked_output(
    inputs: RunInputFlags, outputs: RunOutputFlags, writer: OutputWriter
) -> OutputFile | None:
    """The output file, if there is one, once it and the report are found writable."""
    from idefics.batch.export import exporter_for
    from idefics.batch.output_file import OutputFile

    purpose = "run too: name another file for the output"
    check_outputs(outputs.out, outputs.report, (*inputs.inputs, inputs.list_file), purpose, writer)
    return None if outputs.out is None else OutputFile(outputs.out, exporter_for(outputs.out))


def _template(inputs: RunInputFlags) -> PromptTemplate | None:
    """The template of the prompts; None if the task takes none, or has one of its own."""
    from idefics.batch.prompt_template import PromptTemplate

    task, text = TASKS[inputs.task], inputs.prompt
    if inputs.prompt_column is not None:
        if text is not None:
            raise BadSetting(
                "--prompt and --prompt-column are both given: {column} in --prompt names a column"
            )
        text = "{" + inputs.prompt_column + "}"
    if text is None:
        if task.words_name and task.default_words is None and task is not classify.TASK:
            raise BadPrompt(f'no {task.words_name} given: --prompt "..." or --prompt-column COLUMN')
        return None
    if not task.words_name or task is classify.TASK:
        raise BadPrompt(f"{task.name} takes no prompt: `--task ask` and `--task complete` do")
    if not text.strip():
        raise BadPrompt(f"the {task.words_name} is empty: give a text with --prompt")
    return PromptTemplate(text)


def _task_options(task_name: str, labels: LabelFlags, sampling: SamplingFlags) -> dict[str, Any]:
    """The options of the task. Raises BadSetting if one is wrong, or belongs to another task."""
    options: dict[str, Any] = {**sampling.options(as_json=True)}
    if task_name != classify.TASK.name:
        if labels.labels or labels.label or labels.labels_file:
            raise BadSetting(f"labels are for --task classify, and the task is {task_name}")
        return options
    if others := sorted(options.keys() - {"detail", "max_tiles"}):
        raise BadSetting(f"{others[0]} is for tasks that write, and the task is classify")
    options["labels"] = labels.all_labels()
    for name in ("length_normalized", "calibrated"):
        if getattr(labels, name):
            options[name] = True
    return options


def _ledger_path(inputs: RunInputFlags, outputs: RunOutputFlags, control: RunControlFlags) -> Path:
    """The file of the ledger. Raises BadSetting if nothing says where answers are kept."""
    if control.ledger is not None:
        return control.ledger
    if outputs.out is not None:
        return outputs.out.with_name(f"{outputs.out.name}.ledger")
    writes_texts = outputs.sidecar is not None or outputs.write_metadata
    if writes_texts and len(inputs.inputs) == 1 and Path(inputs.inputs[0]).is_dir():
        return Path(inputs.inputs[0]) / ".idefics.ledger"
    raise BadSetting(
        "nothing says where the answers go: give --out answers.jsonl (or .csv, .parquet); or --sidecar txt and "
        "--ledger FILE"
    )


def _open_source(inputs: RunInputFlags, model: ModelFlags, template: PromptTemplate | None) -> RowSource:
    """The rows of the input, which have the columns of the template. Raises BadRequest if it cannot be read at all."""
    from idefics.batch.sources.inputs import list_source, open_source
    from idefics.batch.sources.settings import SourceSettings
    from idefics.processing.fetch import Fetcher

    if not inputs.inputs and inputs.list_file is None:
        raise BadPicture(
            "no input given: name pictures, a folder, an archive or a table, or a list with --from"
        )
    settings = SourceSettings(
        image_column=inputs.image_column,
        id_column=inputs.id_column,
        recursive=inputs.recursive,
        fetcher=Fetcher(policy=model.remote_images),
    )
    lists = [] if inputs.list_file is None else [list_source(str(inputs.list_file))]
    source = open_source([*inputs.inputs, *lists], settings)
    if template is not None:
        template.check_fields(source)
    return source


MAX_SHOWN_ERRORS = 20


@flag_group
class LedgerFlags:
    """The ledger, and the file to which its rows are written."""

    ledger: PositionalArguments
    out: Path | None = output_flag("Write all rows to this file: .jsonl, .csv or .parquet.")
    errors: bool = output_flag(f"List all rows that failed, not only {MAX_SHOWN_ERRORS}.", default=False)


@command(
    "idefics ledger captions.jsonl.ledger",
    "idefics ledger captions.jsonl.ledger --out captions.csv",
    usage="LEDGER",
)
def ledger(writer: OutputWriter, flags: LedgerFlags) -> None:
    """Show what `idefics run` has kept in a ledger, and what failed.

    It may be used while a run is going on.
    """
    from idefics.batch.export import exporter_for
    from idefics.batch.ledger import Ledger
    from idefics.batch.output_file import OutputFile, records_after

    if len(flags.ledger) != 1:
        raise BadSetting(f"{len(flags.ledger)} ledgers given: name one, such as captions.jsonl.ledger")
    with Ledger(Path(flags.ledger[0]), read_only=True) as opened:
        if flags.out is not None:
            if flags.out.exists():
                raise BadSetting(f"{flags.out} exists: name a new file")
            file = OutputFile(flags.out, exporter_for(flags.out))
            file.rewrite(record for _, record in records_after(opened, 0))
            writer.print_status(f"{flags.out} is written")
            return
        _show(writer, opened, flags.errors)


def _show(writer: OutputWriter, opened: Any, all_errors: bool) -> None:
    """Prints a paragraph for each run, and the rows that failed."""
    settings_by_run = opened.runs()
    counts = {run: (answered, failed) for run, answered, failed in opened.count_rows()}
    for run, settings in settings_by_run.items():
        answered, failed = counts.get(run, (0, 0))
        if writer.as_json:
            writer.write_json_line({"run": run, "answered": answered, "failed": failed, **settings})
            continue
        print(one_line(f"run {run}: {settings['task']} {settings['prompt']!r}".removesuffix(" ''")))
        shown = settings["options"]
        if adapter := settings.get("adapter"):  # ledgers of earlier versions have none
            shown = {"adapter": adapter, **shown}
        options = "".join(f"; {name} {value}" for name, value in shown.items())
        print(f"  model {one_line(settings['model'])} ({settings['revision']}){one_line(options)}")
        print(f"  {answered:,} answered, {failed:,} failed")
    errors = ((row, answer) for row, answer in opened.rows_after(0) if "error_type" in answer)
    for row, answer in errors if all_errors else islice(errors, MAX_SHOWN_ERRORS):
        if writer.as_json:
            writer.write_json_line({"run": row.run, "path": row.path, **answer})
        else:
            print("  failed:", one_line(f"{row.path}: {answer['error_type']}: {answer['error']}"))
