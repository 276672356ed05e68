"""Training data for tests: the processors of tiny checkpoints, folders of rows, and the prompts of inference."""

import json
from dataclasses import dataclass
from pathlib import Path

import PIL.Image

from idefics.generation.loading import collect_stop_ids, create_processor
from idefics.generation.prompts import make_prompt
from idefics.messages import ImageDetail, Picture
from idefics.models import Checkpoint, read_checkpoint
from idefics.processing.fetch import Fetcher
from idefics.tasks import TASKS
from idefics.tasks.task import compose_task_prompt
from idefics.train.data.training_rows import read_training_rows
from idefics.train.settings import TrainSettings
from models.checkpoint_folders import write_hub_layout
from models.released import RELEASED_BY_NAME

BASE = ("9b", "idefics2-8b-base")
CHAT = (
    "9b-instruct",
    "idefics2-8b",
    "idefics2-8b-chatty",
    "idefics3-8b",
    "smolvlm-256m",
    "smolvlm-2.2b",
    "smolvlm2-500m",
    "smoldocling-256m",
    "granite-docling-258m",
)
FAMILIES = (*BASE, *CHAT)
QUESTION, ANSWER = "What is on the table?", "A red ball."
CHAT_MODEL, BASE_MODEL = "smolvlm-256m", "9b"  # where one of each kind is enough
SIZE_BY_PICTURE = {"wide.png": (90, 40), "tall.jpg": (37, 61), "small.png": (20, 20)}


@dataclass(frozen=True)
class TinyCheckpoint:
    """What training reads of a checkpoint before its weights."""

    folder: Path
    checkpoint: Checkpoint
    processor: object
    stop_ids: frozenset

    def read(self, path, **settings):
        """The rows of a file or suite."""
        options = {"data": str(path), "model": str(self.folder), "out": Path("out"), **settings}
        return read_training_rows(str(path), self.checkpoint, self.processor, TrainSettings(**options))

    def prompt_of(self, items, max_tiles=None, **options):
        """The prompt that tasks make of items: special tokens in their text are plain characters."""
        processor = self.processor.with_image_detail(ImageDetail(max_tiles=max_tiles))
        processor.is_text_trusted = False
        return make_prompt(processor, items, **options)

    def task_prompt(self, task, picture, words="", shots=(), **options):
        """The prompt of `ask` or `caption` about a file."""
        kind = self.processor.prompt_format.kind
        items = compose_task_prompt(TASKS[task], kind, Picture(picture), words, shots).items
        return self.prompt_of(items, **options)

    def text(self, ids):
        """All characters of token ids, special tokens included."""
        return self.processor.tokenizer.decode_bytes(list(map(int, ids)), hidden_ids=()).decode()

    def learned(self, row):
        """The text of each run of learned tokens."""
        runs, previous = [], -2
        for position in row.is_target.nonzero()[0]:
            if position != previous + 1:
                runs.append([])
            runs[-1].append(row.ids[position])
            previous = position
        return [self.text(run) for run in runs]


def tiny_checkpoint(folder, name):
    """A released checkpoint, tiny."""
    return open_checkpoint(write_hub_layout(folder / name, RELEASED_BY_NAME[name]))


def open_checkpoint(folder):
    checkpoint = read_checkpoint(Path(folder))
    processor = create_processor(checkpoint, Fetcher(policy="off"))
    return TinyCheckpoint(Path(folder), checkpoint, processor, collect_stop_ids(checkpoint, processor))


def write_pictures(folder):
    """A few pictures of different shapes."""
    for name, size in SIZE_BY_PICTURE.items():
        PIL.Image.radial_gradient("L").resize(size).convert("RGB").save(folder / name)
    return folder


def write_rows(path, *rows):
    """A JSON Lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def first_target(row):
    """The position of the first learned token."""
    return int(row.is_target.argmax())


def prefix(row):
    """The ids before the first learned token."""
    return tuple(row.ids[: first_target(row)].tolist())


def image_part(**source):
    return {"type": "image", **source}


def text_part(text):
    return {"type": "text", "text": text}


def message(role, *parts):
    return {"role": role, "content": list(parts)}
