"""The tab "Batch": one thing done to many pictures, and a table of what came of it."""

from __future__ import annotations

import html
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import gradio as gr

from idefics.demo import pictures as bundled
from idefics.errors import BadPicture, BadPrompt
from idefics.formats import UNTRUSTED_FORMATS, titles
from idefics.tasks import TASKS
from idefics.tasks.write import STORY
from idefics.ui.archive import Sources
from idefics.ui.classify import labels
from idefics.ui.code import Many
from idefics.ui.codeview import CodeView
from idefics.ui.desk import PAUSE, Desk
from idefics.ui.files import written
from idefics.ui.given import Given, Payload
from idefics.ui.rows import Job, Row, as_csv, as_jsonl, rows
from idefics.ui.run import HIDDEN, Run
from idefics.ui.words import counted

PLACE = "batch"
CHOICES = [(task.help, task.name) for task in TASKS.values()]
HEADERS = ["Picture", "Answer"]
HINTS = {
    "complete": ("How each answer begins", "This is an image of"),
    "ask": ("Question", "What is on the table?"),
    "classify": ("Labels, with commas between", "cat, dog, bird"),
    "write": ("Instruction", STORY),
}


def job_of(task: str, words: str) -> Job:
    """What the person wants done.

    Raises:
        BadPrompt, BadSetting: the words or labels are missing.
    """
    words = words.strip()
    if task == "classify":
        return Job(task=task, labels=labels(words), options={})
    if not words and task in ("ask", "complete"):
        raise BadPrompt(f"the {TASKS[task].words} is empty: give one for all pictures")
    words = words or (STORY if task == "write" else "")
    return Job(
        task=task,
        words="" if task == "caption" else words,
        options={"max_new_tokens": TASKS[task].max_new_tokens},
    )


def tab(desk: Desk) -> None:
    """Makes it."""
    with gr.Row():
        with gr.Column(min_width=300):
            files = gr.File(
                label="Pictures, or a zip of pictures",
                file_count="multiple",
                file_types=["image", ".zip"],
                height=150,
                elem_id="batch-files",
            )
            example = gr.Button("Take the bundled pictures", size="sm", elem_id="batch-example")
            folder = gr.File(label="or a folder", file_count="directory", height=140, elem_id="batch-folder")
            task = gr.Radio(CHOICES, value="caption", label="What to do with each", elem_id="batch-task")
            words = gr.Textbox("", visible=False, max_lines=4, elem_id="batch-words")
            run = Run(desk, PLACE, "Start")
        with gr.Column(min_width=300, scale=2):
            progress = gr.HTML("", elem_id="batch-progress")
            table = gr.Dataframe(
                headers=HEADERS,
                datatype="str",
                interactive=False,
                wrap=True,
                label="Answers",
                column_widths=["34%", "66%"],
                elem_id="batch-table",
            )
            with gr.Row():
                as_lines = gr.DownloadButton("Download JSONL", interactive=False, elem_id="batch-jsonl")
                as_table = gr.DownloadButton("Download CSV", interactive=False, elem_id="batch-csv")
            code = CodeView(PLACE)

    task.change(_fit, task, words, **HIDDEN)
    example.click(_sample, None, files, postprocess=False, **HIDDEN)
    code.listen(partial(_written, desk), [task, words], task.change, words.blur)

    def respond(session: str, *given: Any) -> Iterator[Any]:
        for done, total, found, note in batch(desk, session, *given):
            cells = [[row.image, f"None: {row.error}" if row.error else row.text] for row in found]
            is_over = note is not None
            yield (
                bar(done, total, found, note or ""),
                {"headers": HEADERS, "data": cells, "metadata": None},
                _file(as_jsonl(found), "answers.jsonl") if is_over and found else None,
                _file(as_csv(found), "answers.csv") if is_over and found else None,
            )

    outputs = [progress, table, as_lines, as_table]
    done = run.follow(run.button.click, respond, [files, folder, task, words], outputs, postprocess=False)
    done.then(lambda: [gr.update(interactive=True)] * 2, None, [as_lines, as_table], queue=False, **HIDDEN)


def _fit(chosen: str) -> Any:
    """The field for words, as a task wants it."""
    label, hint = HINTS.get(chosen, ("", ""))
    return gr.update(visible=chosen in HINTS, label=label, placeholder=hint)


def _written(desk: Desk, chosen: str, said: str) -> Many:
    job, own = job_of(chosen, said), desk.settings
    return Many(
        task=job.task,
        words=job.words,
        labels=job.labels,
        model=own.model,
        server=own.server,
        has_key=own.has_key,
    )


def _sample() -> list[Payload]:
    return [{**Given(str(path), path.name).payload, "size": path.stat().st_size} for path in bundled()]


def batch(
    desk: Desk,
    session: str,
    files: Sequence[Payload] | None,
    folder: Sequence[Payload] | None,
    task: str,
    words: str,
) -> Iterator[tuple[int, int, list[Row], str | None]]:
    """(rows done, pictures, rows, note); the note is None until it is over."""
    job = job_of(task, words)
    with Sources([Given.of(file) for file in [*(files or ()), *(folder or ())]]) as sources:
        total, found, seen = len(sources.entries), [], 0.0
        if not total:
            raise BadPicture(
                f"there is no picture in it: give files, a folder or a zip with {titles(UNTRUSTED_FORMATS)}. "
                + _left_out(sources.left_out)
            )
        yield 0, total, [], None
        for row in rows(desk, session, PLACE, sources.entries, job):
            found.append(row)
            if time.monotonic() - seen >= 4 * PAUSE:
                yield len(found), total, list(found), None
                seen = time.monotonic()
        found.sort(key=lambda row: row.image)
        yield len(found), total, found, _left_out(sources.left_out)


def bar(done: int, total: int, found: Sequence[Row], note: str) -> str:
    """How far it is, for eyes and for screen readers."""
    failed = sum(bool(row.error) for row in found)
    text = f"{done:,} of {counted(total, 'picture')}" + (f", {failed:,} without an answer" if failed else "")
    text = html.escape(f"{text}. {note}".strip())
    return f'<progress max="{total}" value="{done}" aria-label="Pictures done"></progress><p role="status">{text}</p>'


def _left_out(files: Counter[str]) -> str:
    """How many files were not read, and why."""
    if not files:
        return ""
    named = [
        f"{count} {title} (not read here: convert to JPEG)"
        for title, count in files.items()
        if title != "other"
    ]
    others = [f"{files['other']} that are no pictures"] if files["other"] else []
    return f"{counted(files.total(), 'file')} left out: {', '.join([*named, *others])}."


def _file(data: bytes, name: str) -> Payload:
    return written(data, name).payload
