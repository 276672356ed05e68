"""The few-shot examples of the page, and the JSONL file that holds them for `--shots` and `read_shots`."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from idefics.errors import BadPicture, BadPrompt
from idefics.messages import Shot
from idefics.page.backend import PageBackend
from idefics.page.picture_input import fetch_to_file
from idefics.page.uploaded_picture import UploadedPicture
from idefics.tasks.shots import MAX_SHOTS, read_shots

MAX_FILE_BYTES = 256 * 2**20  # of a file of examples, which may contain its pictures


@dataclass(frozen=True, slots=True)
class ExampleShot:
    """One example; where `question` is empty, the task's own prompt is used."""

    upload: UploadedPicture
    question: str
    answer: str

    def to_shot(self, backend: PageBackend) -> Shot:
        """The example as a `Shot`, with its picture opened."""
        return Shot(backend.open_upload(self.upload), self.answer, self.question)


def make_example(backend: PageBackend, upload: UploadedPicture, question: str, answer: str) -> ExampleShot:
    """Makes an example; raises BadPrompt if the answer is empty, BadPicture if the upload is not a picture."""
    if not answer.strip():
        raise BadPrompt("the example has no answer: write what the model should have said")
    backend.open_upload(upload)
    return ExampleShot(upload, question.strip(), answer.strip())


def check_num_examples(shots: Sequence[ExampleShot]) -> None:
    """Raises BadPrompt if there are more than `MAX_SHOTS` examples."""
    if len(shots) > MAX_SHOTS:
        raise BadPrompt(f"{len(shots)} examples are too many: give at most {MAX_SHOTS}")


def to_jsonl(shots: Sequence[ExampleShot]) -> bytes:
    """The content of `shots.jsonl`, with the pictures as data URIs."""
    lines = []
    for shot in shots:
        data = base64.b64encode(Path(shot.upload.path).read_bytes()).decode()
        row = {"image": f"data:;base64,{data}", "answer": shot.answer}
        lines.append(
            json.dumps(row | ({"question": shot.question} if shot.question else {}), ensure_ascii=False)
        )
    return "".join(f"{line}\n" for line in lines).encode()


def read_examples(backend: PageBackend, files: Sequence[UploadedPicture]) -> list[ExampleShot]:
    """Reads uploaded examples: one `.jsonl` file and the pictures that it names.

    Pictures are found among the uploaded files only; other files of the server are not opened.

    Raises:
        BadPrompt: not exactly one `.jsonl` file, or one of its lines is invalid.
        BadPicture: a picture is missing or cannot be read.
    """
    jsonl_files = [upload for upload in files if upload.name.lower().endswith(".jsonl")]
    if len(jsonl_files) != 1:
        raise BadPrompt(
            f"{len(jsonl_files)} .jsonl files were given: choose one, and the pictures that it names"
        )
    if Path(jsonl_files[0].path).stat().st_size > MAX_FILE_BYTES:
        raise BadPrompt(
            f"{jsonl_files[0].name} is larger than {MAX_FILE_BYTES:,} bytes: give fewer or smaller pictures"
        )
    try:
        shots = read_shots(jsonl_files[0].path)
    except BadPrompt as error:
        raise BadPrompt(str(error).replace(str(jsonl_files[0].path), jsonl_files[0].name)) from None
    upload_by_name = {Path(upload.name).name: upload for upload in files}
    return [
        _make_example_from_shot(backend, shot, upload_by_name, number)
        for number, shot in enumerate(shots, start=1)
    ]


def _make_example_from_shot(
    backend: PageBackend, shot: Shot, upload_by_name: dict[str, UploadedPicture], number: int
) -> ExampleShot:
    """Converts line `number` of the file; its picture is fetched, or found among the uploads by name."""
    source = shot.picture.source
    if isinstance(source, str):
        upload = fetch_to_file(backend, source, f"example-{number}")
    elif isinstance(source, Path) and source.name in upload_by_name:
        upload = upload_by_name[source.name]
    else:
        raise BadPicture(
            f"example {number} names {Path(str(source)).name}: choose that picture together with the .jsonl file"
        )
    return make_example(backend, upload, shot.question, shot.answer)


def example_tuples(shots: Sequence[ExampleShot]) -> list[tuple[str, str, str]]:
    """(name of the picture, question, answer) of each example, for "Show code"."""
    return [(shot.upload.name, shot.question, shot.answer) for shot in shots]
