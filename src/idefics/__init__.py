"""Questions about pictures, answered on your own machine.

    >>> import idefics
    >>> vlm = idefics.load("demo")
    >>> print(vlm.ask("photo.jpg", "What is on the table?"))

The names below are all that is public. They are imported when first used, so `import idefics` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from idefics.config import Sampling
    from idefics.errors import IdeficsError
    from idefics.messages import Answer, Message, Picture, Ranking, Shot, Video, assistant, user
    from idefics.tasks.verbs import Idefics, load

__all__ = [
    "__version__",
    "Answer",
    "assistant",
    "Idefics",
    "IdeficsError",
    "load",
    "Message",
    "Picture",
    "Ranking",
    "Sampling",
    "Shot",
    "user",
    "Video",
]

__version__ = "0.1.0"

_HOME = {
    "Answer": "idefics.messages",
    "assistant": "idefics.messages",
    "Idefics": "idefics.tasks.verbs",
    "IdeficsError": "idefics.errors",
    "load": "idefics.tasks.verbs",
    "Message": "idefics.messages",
    "Picture": "idefics.messages",
    "Ranking": "idefics.messages",
    "Sampling": "idefics.config",
    "Shot": "idefics.messages",
    "user": "idefics.messages",
    "Video": "idefics.messages",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'idefics' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
