"""Every error that idefics raises on purpose.

    IdeficsError                    the root: `except IdeficsError` catches all of it
    ├── BadRequest                  a ValueError: the caller named something that cannot be: change the call
    │   ├── BadSetting              a number or word outside its range
    │   │   └── BadCall             a TypeError too: an argument is missing, or one too many
    │   │       └── UnknownArgument a keyword that the call does not have
    │   ├── BadPicture              an OSError too: no such file, not a picture, broken, too large, refused address
    │   │   └── BadVideo            not a video, broken, too long, or the checkpoint was not trained with video
    │   ├── BadPrompt               pictures and their places disagree, an empty prompt, a malformed message
    │   └── PromptTooLong           more tokens than the model reads
    │       └── TextTooLong         so many characters that this is certain before they are tokenized
    ├── EngineBusy                  as many requests wait as may: try again later
    ├── RequestTimeout              a TimeoutError: the answer was not done in time
    ├── ModelError                  an OSError and a ValueError: the model cannot be had or used
    │   ├── ModelNotFound           no such folder or hub repository, or not cached and no network
    │   ├── UnsupportedModel        a checkpoint that this package does not run
    │   ├── BrokenCheckpoint        a file of a checkpoint is missing, damaged or contradicts another
    │   └── WeightsMismatch         a RuntimeError too: weights missing, unused or misshapen: all listed at once
    ├── OutOfMemory                 a MemoryError: weights or caches do not fit: says what they need, and what is free
    ├── ModelClosed                 a RuntimeError: the model was closed, or loaded by another process
    └── MissingExtra                an ImportError: an optional part is not installed: says which

The built-in classes are those that transformers and Pillow raise in the same place, so that clauses written for them
catch ours. (Of a checkpoint transformers raises OSError or ValueError, depending on the class that loads it.)

Each message holds the value, the limit and the way out, on one line. All survive `pickle` and `copy` with their text
and attributes. Knows no tensors and no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any


class IdeficsError(Exception):
    """The root of the tree; its text is one line for a person."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuilds the error from its text and attributes: not by `__init__`, whose arguments are others."""
        return _rebuild_error, (type(self), self.args), self.__dict__


def _rebuild_error(error_type: type[IdeficsError], args: tuple[Any, ...]) -> IdeficsError:
    # An OSError holds more than other exceptions: an error that is a ValueError too has to be made as an OSError.
    error = OSError.__new__(error_type) if issubclass(error_type, OSError) else error_type.__new__(error_type)
    error.args = args
    return error


class BadRequest(IdeficsError, ValueError):
    """The caller named something that cannot be."""


class BadSetting(BadRequest):
    """A setting is outside its range; the message names the range."""


class BadCall(BadSetting, TypeError):
    """A call lacks an argument or has one too many; the message says how it is called."""


class UnknownArgument(BadCall):
    """Keywords that a call does not have; the message names the nearest that it has, or lists all.

    Args:
        call: its name, as people write it.
        names: the unknown keywords.
        known: those that it has.
    """

    def __init__(self, call: str, names: Sequence[str], known: Sequence[str]) -> None:
        super().__init__(
            f"{call} has no argument {' and '.join(map(repr, names))}{did_you_mean(names, known)}; "
            f"it knows {', '.join(known)}"
        )
        self.names, self.known = tuple(names), tuple(known)


# Names that other libraries have for arguments of ours, for those that are not spelled alike.
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
    """` (did you mean 'x'?)` for the first of `names` that resembles one of `known`, else nothing."""
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
    """A picture file holds more than the one picture that was read of it; no error."""


class BadVideo(BadPicture):
    """A video cannot be read, or the checkpoint was not trained with video."""


class BadPrompt(BadRequest):
    """A prompt or conversation is malformed."""


class PromptTooLong(BadRequest):
    """A prompt has more tokens than the model reads."""

    def __init__(self, length: int, limit: int, pictures: int) -> None:
        super().__init__(
            f"the prompt has {length} tokens ({pictures} picture{'' if pictures == 1 else 's'} included); "
            f"this model reads {limit}: send fewer pictures or less text"
        )
        self.length, self.limit, self.pictures = length, limit, pictures


class TextTooLong(PromptTooLong):
    """A prompt's text has more characters than the model's positions can hold, however it is tokenized.

    Args:
        characters: of the text.
        limit: characters that no text can exceed.
        tokens: that the model reads.
    """

    def __init__(self, characters: int, limit: int, tokens: int) -> None:
        BadRequest.__init__(
            self,
            f"the text has {characters:,} characters, which are more than the {tokens:,} tokens that this model reads"
            f"{f' (at most {limit:,} characters, mostly far fewer)' if characters > limit else ''}: send less text",
        )
        self.characters, self.limit = characters, limit


class EngineBusy(IdeficsError):
    """As many requests wait as may."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} requests are waiting already, and more may not: try again in a moment")
        self.limit = limit


class RequestTimeout(IdeficsError, TimeoutError):
    """An answer was not done within the `timeout` of its call; what it used is free again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the answer was not done after {seconds:g} seconds (timeout={seconds:g}): "
            "give more time, or fewer max_new_tokens"
        )
        self.seconds = seconds


class ModelError(IdeficsError, OSError, ValueError):
    """The model cannot be had or used."""


class ModelNotFound(ModelError):
    """No such model, or it is not on this machine and cannot be downloaded."""


class UnsupportedModel(ModelError):
    """A checkpoint of an architecture or format that this package does not run."""


class BrokenCheckpoint(ModelError):
    """A file of a checkpoint is missing, damaged or contradicts another; the message names it."""


class WeightsMismatch(ModelError, RuntimeError):
    """The checkpoint's tensors are not exactly the model's.

    Args:
        missing: names that the model has and the checkpoint lacks.
        unused: names that the checkpoint has and the model lacks.
        shapes: name -> (shape in the checkpoint, shape in the model).
    """

    def __init__(
        self,
        missing: Sequence[str],
        unused: Sequence[str],
        shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    ) -> None:
        self.missing, self.unused, self.shapes = tuple(missing), tuple(unused), dict(shapes)
        parts = [_format_names("missing", self.missing), _format_names("unused", self.unused)]
        parts.append(
            _format_names("misshapen", [f"{n} is {a}, not {b}" for n, (a, b) in self.shapes.items()])
        )
        super().__init__(
            "the checkpoint does not fit the model: "
            + "; ".join(part for part in parts if part)
            + ": is its config.json the one that it was saved with?"
        )


class OutOfMemory(MemoryError, IdeficsError):  # in this order: a MemoryError is made in its own way
    """Weights or caches do not fit into what is free.

    Args:
        what: what needs it, as the beginning of a sentence.
        needed, free: bytes.
        way_out: what to do.
    """

    def __init__(self, what: str, needed: int, free: int, way_out: str) -> None:
        super().__init__(f"{what} needs {format_bytes(needed)}, {format_bytes(free)} free: {way_out}")
        self.needed, self.free = needed, free


def format_bytes(num_bytes: float) -> str:
    """Bytes for people: "1.2 GB", "513 MB"."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 999.5e6 else f"{num_bytes / 1e6:.0f} MB"


class ModelClosed(IdeficsError, RuntimeError):
    """The model was closed, or belongs to the process that this one was forked from."""


class MissingExtra(IdeficsError, ImportError):
    """An optional part of the package is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional part: pip install 'idefics[{extra}]'")


def _format_names(title: str, names: Sequence[str], max_names: int = 10) -> str:
    if not names:
        return ""
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return f"{len(names)} {title} ({', '.join(names[:max_names])}{more})"
