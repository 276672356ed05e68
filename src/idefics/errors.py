"""Every error that idefics raises on purpose.

    IdeficsError                    the root: `except IdeficsError` catches all of it
    ├── BadRequest                  a ValueError: the request cannot be fulfilled as it is: change the call
    │   ├── BadSetting              a number or word outside its range
    │   │   └── BadCall             a TypeError too: an argument is missing, or one too many
    │   │       └── UnknownArgument a keyword that the call does not have
    │   ├── BadPicture              an OSError too: no such file, not a picture, broken, too large, refused address
    │   │   └── BadVideo            not a video, broken, too long, or the checkpoint was not trained with video
    │   ├── BadPrompt               an empty prompt, a malformed message, an image token without a picture
    │   └── PromptTooLong           more tokens than the model reads
    │       └── TextTooLong         so many characters that this is certain before they are tokenized
    ├── EngineBusy                  the queue of waiting requests is full: try again later
    ├── RequestTimeout              a TimeoutError: the answer was not finished in time
    ├── ModelError                  an OSError and a ValueError: the model cannot be found, loaded or used
    │   ├── ModelNotFound           no such folder or hub repository, or not cached and no network
    │   ├── UnsupportedModel        a checkpoint that this package does not run
    │   ├── BrokenCheckpoint        a file of a checkpoint is missing, damaged or contradicts another
    │   ├── WeightsMismatch         a RuntimeError too: weights missing, unused or misshapen: all listed at once
    │   └── AdapterMismatch         an adapter does not fit the model: all that is wrong is listed at once
    ├── OutputError                 an OSError: an output file cannot be written: the disk is full, no such folder
    ├── OutOfMemory                 a MemoryError: weights or caches do not fit: says how much is needed and free
    ├── ModelClosed                 a RuntimeError: the model was closed, or loaded by another process
    └── MissingExtra                an ImportError: an optional dependency is not installed: says which

The built-in base classes are those that transformers and Pillow raise in the same places, so that `except` clauses
written for them catch these errors too. (For a checkpoint transformers raises OSError or ValueError, depending on the
class that loads it.)

Each message holds the value, the limit and what to do, on one line. All errors survive `pickle` and `copy` with their
text and attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any


class IdeficsError(Exception):
    """The base class of all errors of this package; `str(error)` is a message of one line."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the text and the attributes, since the arguments of `__init__` are not stored."""
        return _rebuild_error, (type(self), self.args), self.__dict__


def _rebuild_error(error_type: type[IdeficsError], args: tuple[Any, ...]) -> IdeficsError:
    """Creates an error with these `args` without its `__init__`; used by pickle and copy."""
    # OSError has a larger C structure: an error that is an OSError and a ValueError must be created as an OSError.
    error = OSError.__new__(error_type) if issubclass(error_type, OSError) else error_type.__new__(error_type)
    error.args = args
    return error


class BadRequest(IdeficsError, ValueError):
    """The request cannot be fulfilled as it is; the caller has to change it."""


class BadSetting(BadRequest):
    """A setting is out of range or of the wrong type; the message names what is allowed."""


class BadCall(BadSetting, TypeError):
    """A call lacks an argument or has too many; the message says how to call the function."""


class UnknownArgument(BadCall):
    """A call has unknown keywords; the message names the nearest known one and lists all.

    Args:
        call: the function's name, as in "ask()".
        names: the unknown keywords.
        known: the keywords that the function has.
    """

    def __init__(self, call: str, names: Sequence[str], known: Sequence[str]) -> None:
        super().__init__(
            f"{call} has no argument {' and '.join(map(repr, names))}{did_you_mean(names, known)}; "
            f"it takes {', '.join(known)}"
        )
        self.names, self.known = tuple(names), tuple(known)


# Other libraries' names for arguments of this package, where they are not spelled alike.
ARGUMENT_BY_FOREIGN_NAME = {
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "n_predict": "max_new_tokens",
    "do_sample": "temperature",
    "bad_words": "banned",
    "bad_words_ids": "banned",
    "stop_strings": "stop",
    "response_format": "schema",
    "json_schema": "schema",
    "guided_choice": "choices",
    "guided_regex": "regex",
    "guided_json": "schema",
    "random_seed": "seed",
    "load_in_8bit": "quantize",
    "load_in_4bit": "quantize",
    "quantization_config": "quantize",
    "quantization": "quantize",
    "torch_dtype": "dtype",
    "local_files_only": "offline",
    "candidate_labels": "labels",
    "prompt": "question",
    "picture": "image",
    "images": "image",
    "num_threads": "threads",
}


def did_you_mean(names: Sequence[str], known: Sequence[str]) -> str:
    """The hint " (did you mean 'x'?)" for the first of `names` that resembles one of `known`, else ""."""
    for name in names:
        near = ARGUMENT_BY_FOREIGN_NAME.get(name)
        if near not in known:
            near = next(iter(get_close_matches(name, known, n=1, cutoff=0.6)), None)
        if near is not None:
            return f" (did you mean {near!r}?)"
    return ""


class BadPicture(BadRequest, OSError):
    """A picture cannot be opened or may not be fetched."""


class PartialPictureWarning(UserWarning):
    """A warning: a picture file holds more than the one picture that was read of it."""


class BadVideo(BadPicture):
    """A video cannot be read, or the checkpoint was not trained with video."""


class BadPrompt(BadRequest):
    """A prompt or a conversation is empty or malformed; the message says where."""


class PromptTooLong(BadRequest):
    """A prompt has more tokens than the model reads.

    Args:
        length: tokens of the prompt.
        limit: tokens that the model reads.
        pictures: number of pictures in the prompt.
    """

    def __init__(self, length: int, limit: int, pictures: int) -> None:
        super().__init__(
            f"the prompt has {length} tokens ({pictures} picture{'' if pictures == 1 else 's'} included); "
            f"this model reads {limit}: send fewer pictures or less text"
        )
        self.length, self.limit, self.pictures = length, limit, pictures


class TextTooLong(PromptTooLong):
    """A prompt's text is too long for the model, however it is tokenized.

    Args:
        characters: characters of the text.
        limit: characters that no text that fits can exceed.
        tokens: tokens that the model reads.
    """

    def __init__(self, characters: int, limit: int, tokens: int) -> None:
        BadRequest.__init__(
            self,
            f"the text has {characters:,} characters, which are more than the {tokens:,} tokens that this model reads"
            f"{f' (at most {limit:,} characters, mostly far fewer)' if characters > limit else ''}: send less text",
        )
        self.characters, self.limit = characters, limit


class EngineBusy(IdeficsError):
    """The queue of waiting requests is full.

    Args:
        limit: how many requests may wait.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} requests are already waiting, which is the limit: try again in a moment")
        self.limit = limit


class RequestTimeout(IdeficsError, TimeoutError):
    """An answer was not finished within the `timeout` of its call; its memory has been released.

    Args:
        seconds: the `timeout`.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the answer was not finished after {seconds:g} seconds (timeout={seconds:g}): "
            "give more time, or fewer max_new_tokens"
        )
        self.seconds = seconds


class ModelError(IdeficsError, OSError, ValueError):
    """The model cannot be found, loaded or used."""


class ModelNotFound(ModelError):
    """The model does not exist, or it is not on this machine and cannot be downloaded."""


class UnsupportedModel(ModelError):
    """A checkpoint of an architecture or format that this package does not run."""


class BrokenCheckpoint(ModelError):
    """A file of a checkpoint is missing, damaged or contradicts another; the message names it."""


class WeightsMismatch(ModelError, RuntimeError):
    """The checkpoint's tensors differ from the model's parameters.

    Args:
        missing: tensors that the model has and the checkpoint lacks.
        unused: tensors that the checkpoint has and the model lacks.
        shapes: name -> (shape in the checkpoint, shape in the model).
    """

    def __init__(
        self,
        missing: Sequence[str],
        unused: Sequence[str],
        shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    ) -> None:
        self.missing, self.unused, self.shapes = tuple(missing), tuple(unused), dict(shapes)
        problems = {
            "missing": self.missing,
            "unused": self.unused,
            "misshapen": [f"{n} is {a}, not {b}" for n, (a, b) in self.shapes.items()],
        }
        super().__init__(
            f"the checkpoint does not fit the model: {_format_problems(problems)}: is its config.json the one that it "
            "was saved with?"
        )


class AdapterMismatch(ModelError, RuntimeError):
    """An adapter does not fit its own config or the model.

    Args:
        adapter: its folder.
        problems: what is wrong -> the tensors or modules of which it is true.
    """

    def __init__(self, adapter: str, problems: Mapping[str, Sequence[str]]) -> None:
        self.problems = {title: tuple(names) for title, names in problems.items() if names}
        super().__init__(
            f"the adapter {adapter} does not fit the model: {_format_problems(self.problems)}: give the model that it "
            "was trained on, or save the adapter again"
        )


class OutputError(IdeficsError, OSError):
    """An output file cannot be written; the message names it and says why."""


class OutOfMemory(MemoryError, IdeficsError):  # in this order, as MemoryError has its own `__new__`
    """Weights or caches do not fit into the free memory.

    Args:
        what: what needs the memory, as the beginning of a sentence.
        needed, free: bytes.
        advice: what to do about it.
    """

    def __init__(self, what: str, needed: int, free: int, advice: str) -> None:
        super().__init__(f"{what} needs {format_bytes(needed)}, {format_bytes(free)} free: {advice}")
        self.needed, self.free = needed, free


def format_bytes(num_bytes: float) -> str:
    """A number of bytes in decimal units for messages: "1.2 GB", "513 MB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 999.5e6 else f"{num_bytes / 1e6:.0f} MB"


def format_count(count: int, noun: str) -> str:
    """A number of things for messages: "1 row", "2 rows"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class ModelClosed(IdeficsError, RuntimeError):
    """The model was closed, or belongs to the process that this one was forked from."""


class MissingExtra(IdeficsError, ImportError):
    """An optional dependency is not installed.

    Args:
        what: what needs it, as the beginning of a sentence.
        extra: the extra that installs it, as in `pip install 'idefics[extra]'`.
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'idefics[{extra}]'")


MAX_NAMES = 10  # of tensors, that a message has


def _format_problems(problems: Mapping[str, Sequence[str]]) -> str:
    """Lists of names for messages: "12 missing (a, b, ... and 2 more); 1 unused (c)"; empty lists are left out."""
    parts = []
    for title, names in problems.items():
        more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
        if names:
            parts.append(f"{len(names)} {title} ({', '.join(names[:MAX_NAMES])}{more})")
    return "; ".join(parts)
