"""The tab "Batch": runs one task on many pictures and shows the answers in a table."""

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
from idefics.formats import UNTRUSTED_IMAGE_FORMATS, join_titles
from idefics.page.backend import UPDATE_INTERVAL, PageBackend
from idefics.page.batch_results import BatchJob, BatchResult, run_batch, to_csv, to_jsonl
from idefics.page.classify import parse_labels
from idefics.page.code_snippets import BatchSnippets
from idefics.page.code_view import CodeView
from idefics.page.files import save_file
from idefics.page.formatting import format_count
from idefics.page.picture_sources import PictureSources
from idefics.page.run_buttons import PRIVATE_EVENT_KWARGS, RunButtons
from idefics.page.uploaded_picture import FilePayload, UploadedPicture
from idefics.tasks import TASKS
from idefics.tasks.write import STORY

TAB_NAME = "batch"
TASK_CHOICES = [(task.help, task.name) for task in TASKS.values() if not task.needs_doctags]
TABLE_HEADERS = ["Picture", "Answer"]
LABEL_AND_PLACEHOLDER_BY_TASK = {
    "complete": ("How each answer begins", "This is an image of"),
    "ask": ("Question", "What is on the table?"),
    "classify": ("Labels, with commas between", "cat, dog, bird"),
    "write": ("Instruction", STORY),
}


def make_batch_job(task: str, text: str) -> BatchJob:
    """The job for a task and the text of its field, which holds labels for "classify".

    Raises:
        BadPrompt: the text is missing.
        BadSetting: fewer than two labels, or one twice.
    """
    text = text.strip()
    if task == "classify":
        return BatchJob(task=task, labels=parse_labels(text), options={})
    if not text and task in ("ask", "complete"):
        raise BadPrompt(f"the {TASKS[task].words_name} is empty: give one for all pictures")
    text = text or (STORY if task == "write" else "")
    return BatchJob(
        task=task,
        words="" if task == "caption" else text,
        options={"max_new_tokens": TASKS[task].max_new_tokens},
    )


def build_tab(backend: PageBackend) -> None:
    """Builds the tab "Batch" inside the current Gradio block."""
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
            task = gr.Radio(TASK_CHOICES, value="caption", label="What to do with each", elem_id="batch-task")
            text = gr.Textbox("", visible=False, max_lines=4, elem_id="batch-words")
            run_buttons = RunButtons(backend, TAB_NAME, "Start")
        with gr.Column(min_width=300, scale=2):
            progress = gr.HTML("", elem_id="batch-progress")
            table = gr.Dataframe(
                headers=TABLE_HEADERS,
                datatype="str",
                interactive=False,
                wrap=True,
                label="Answers",
                column_widths=["34%", "66%"],
                elem_id="batch-table",
            )
            with gr.Row():
                jsonl_download = gr.DownloadButton("Download JSONL", interactive=False, elem_id="batch-jsonl")
                csv_download = gr.DownloadButton("Download CSV", interactive=False, elem_id="batch-csv")
            code_view = CodeView(TAB_NAME)

    task.change(_update_text_field, task, text, **PRIVATE_EVENT_KWARGS)
    example.click(_bundled_files, None, files, postprocess=False, **PRIVATE_EVENT_KWARGS)
    code_view.connect(partial(_make_snippets, backend), [task, text], task.change, text.blur)

    def respond(session: str, *given: Any) -> Iterator[Any]:
        for num_done, total, found, note in run_batch_with_progress(backend, session, *given):
            cells = [[row.image, f"None: {row.error}" if row.error else row.text] for row in found]
            is_over = note is not None
            yield (
                progress_html(num_done, total, found, note or ""),
                {"headers": TABLE_HEADERS, "data": cells, "metadata": None},
                _save_payload(to_jsonl(found), "answers.jsonl") if is_over and found else None,
                _save_payload(to_csv(found), "answers.csv") if is_over and found else None,
            )

    outputs = [progress, table, jsonl_download, csv_download]
    finished_event = run_buttons.connect_event(
        run_buttons.button.click, respond, [files, folder, task, text], outputs, postprocess=False
    )
    finished_event.then(
        lambda: [gr.update(interactive=True)] * 2,
        None,
        [jsonl_download, csv_download],
        queue=False,
        **PRIVATE_EVENT_KWARGS,
    )


def _update_text_field(task: str) -> Any:
    """Label, placeholder and visibility of the text field for a task."""
    label, placeholder = LABEL_AND_PLACEHOLDER_BY_TASK.get(task, ("", ""))
    return gr.update(visible=task in LABEL_AND_PLACEHOLDER_BY_TASK, label=label, placeholder=placeholder)


def _make_snippets(backend: PageBackend, task: str, text: str) -> BatchSnippets:
    """The code for a task and the text of its field, for "Show code"."""
    job, settings = make_batch_job(task, text), backend.settings
    return BatchSnippets(
        task=job.task,
        words=job.words,
        labels=job.labels,
        model=settings.model,
        server=settings.server_url,
        has_key=settings.has_key,
        adapter=settings.adapter,
    )


def _bundled_files() -> list[FilePayload]:
    """The bundled pictures as the value of the file field."""
    return [
        {**UploadedPicture(str(path), path.name).payload, "size": path.stat().st_size} for path in bundled()
    ]


def run_batch_with_progress(
    backend: PageBackend,
    session: str,
    files: Sequence[FilePayload] | None,
    folder: Sequence[FilePayload] | None,
    task: str,
    text: str,
) -> Iterator[tuple[int, int, list[BatchResult], str | None]]:
    """Yields (number done, number of pictures, results, note); the note is None until the batch is finished."""
    job = make_batch_job(task, text)
    with PictureSources(
        [UploadedPicture.from_payload(file) for file in [*(files or ()), *(folder or ())]]
    ) as sources:
        total, results, last_update_time = len(sources.entries), [], 0.0
        if not total:
            raise BadPicture(
                "no picture was given: give files, a folder or a zip with "
                f"{join_titles(UNTRUSTED_IMAGE_FORMATS)}. "
                + _describe_skipped_files(sources.num_skipped_by_format)
            )
        yield 0, total, [], None
        for row in run_batch(backend, session, TAB_NAME, sources.entries, job):
            results.append(row)
            if time.monotonic() - last_update_time >= 4 * UPDATE_INTERVAL:
                yield len(results), total, list(results), None
                last_update_time = time.monotonic()
        results.sort(key=lambda row: row.image)
        yield len(results), total, results, _describe_skipped_files(sources.num_skipped_by_format)


def progress_html(num_done: int, num_pictures: int, results: Sequence[BatchResult], note: str) -> str:
    """The progress bar and, for screen readers too, a line of text."""
    failed = sum(bool(row.error) for row in results)
    text = f"{num_done:,} of {format_count(num_pictures, 'picture')}" + (
        f", {failed:,} without an answer" if failed else ""
    )
    text = html.escape(f"{text}. {note}".strip())
    bar = f'<progress max="{num_pictures}" value="{num_done}" aria-label="Pictures done"></progress>'
    return f'{bar}<p role="status">{text}</p>'


def _describe_skipped_files(num_skipped_by_format: Counter[str]) -> str:
    """One sentence: how many files were skipped, by format; "" where none was."""
    if not num_skipped_by_format:
        return ""
    skipped_pictures = [
        f"{count} {title} (not read here: convert to JPEG)"
        for title, count in num_skipped_by_format.items()
        if title != "other"
    ]
    other_files = (
        [f"{num_skipped_by_format['other']} that are not pictures"] if num_skipped_by_format["other"] else []
    )
    num_skipped = format_count(num_skipped_by_format.total(), "file")
    return f"{num_skipped} skipped: {', '.join([*skipped_pictures, *other_files])}."


def _save_payload(data: bytes, name: str) -> FilePayload:
    """Saves bytes in a file, and returns it as the value of a download button."""
    return save_file(data, name).payload
