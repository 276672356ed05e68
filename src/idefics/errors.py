"""Every error that idefics raises on purpose.

    IdeficsError                    the root: `except IdeficsError` catches all of it
    ├── BadRequest                  the caller named something that cannot be: change the call
    │   ├── BadSetting              a number or word outside its range
    │   │   └── UnknownArgument     a keyword that the call does not have; a TypeError too
    │   ├── BadPicture              no such file, not a picture, broken, too large, refused address
    │   │   └── BadVideo            not a video, broken, too long, or the checkpoint was not trained with video
    │   ├── BadPrompt               pictures and their places disagree, an empty prompt, a malformed message
    │   └── PromptTooLong           more tokens than the model reads
    ├── EngineBusy                  as many requests wait as may: try again later
    ├── ModelError                  the model cannot be had or used
    │   ├── ModelNotFound           no such folder or hub repository, or not cached and no network
    │   ├── UnsupportedModel        a checkpoint that this package does not run
    │   ├── BrokenCheckpoint        a file of a checkpoint is missing, damaged or contradicts another
    │   └── WeightsMismatch         weights missing, unused or misshapen: all listed at once
    └── MissingExtra                an optional part is not installed: says which

Each message holds the value, the limit and the way out, on one line. Knows no tensors and no files.
"""

from collections.abc import Mapping, Sequence


class IdeficsError(Exception):
    """The root of the tree; its text is one line for a person."""


class BadRequest(IdeficsError):
    """The caller named something that cannot be."""


class BadSetting(BadRequest):
    """A setting is outside its range; the message names the range."""


class UnknownArgument(BadSetting, TypeError):
    """Keywords that a call does not have; the message lists those that it has."""

    def __init__(self, call: str, names: Sequence[str], known: Sequence[str]) -> None:
        unknown = " and ".join(map(repr, names))
        super().__init__(f"{call} has no argument {unknown}; it knows {', '.join(known)}")


class BadPicture(BadRequest):
    """A picture cannot be opened or may not be fetched."""


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


class EngineBusy(IdeficsError):
    """As many requests wait as may."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} requests are waiting already, and more may not: try again in a moment")
        self.limit = limit


class ModelError(IdeficsError):
    """The model cannot be had or used."""


class ModelNotFound(ModelError):
    """No such model, or it is not on this machine and cannot be downloaded."""


class UnsupportedModel(ModelError):
    """A checkpoint of an architecture or format that this package does not run."""


class BrokenCheckpoint(ModelError):
    """A file of a checkpoint is missing, damaged or contradicts another; the message names it."""


class WeightsMismatch(ModelError):
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
        parts = [_list("missing", self.missing), _list("unused", self.unused)]
        parts.append(_list("misshapen", [f"{n} is {a}, not {b}" for n, (a, b) in self.shapes.items()]))
        super().__init__(
            "the checkpoint does not fit the model: "
            + "; ".join(part for part in parts if part)
            + ": is its config.json the one that it was saved with?"
        )


class MissingExtra(IdeficsError):
    """An optional part of the package is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional part: pip install 'idefics[{extra}]'")


def _list(title: str, names: Sequence[str], most: int = 10) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {title} ({', '.join(names[:most])}{more})"
