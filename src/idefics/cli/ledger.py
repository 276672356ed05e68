"""`idefics ledger`: what a ledger holds and what failed in it; writes its rows again in any form."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from idefics.cli.command import command
from idefics.cli.flags import PositionalArguments, flag_group, output_flag
from idefics.cli.output import OutputWriter, one_line
from idefics.errors import BadSetting

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
    from idefics.batch.ledger_export import records_after
    from idefics.batch.output_file import OutputFile

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
