"""What all tabs share: the model, who may fetch what, and the answers that are being written.

Knows pictures, sessions and streams; does not know the browser.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from idefics.errors import BadPicture
from idefics.messages import Answer, Detail, Picture, Shot
from idefics.tasks import TASKS
from idefics.ui.code import Call
from idefics.ui.given import Given

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.pipeline import Stream
    from idefics.processing.fetch import Fetcher

PAUSE = 0.05  # seconds between two looks at a growing answer: a browser draws no faster
MOST_BYTES = 20 * 2**20  # of one picture, as of one that is fetched


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a page.

    Attributes:
        model: what the model was loaded by; "Show code" says it.
        fetcher: gets pictures by their address, as far as its policy allows.
        server: where the API answers, for "Show code".
        has_key: whether the API wants a key.
        start: sampling settings that "Advanced" begins with, where they are not the usual ones.
        side_by_side: answers that are written at once; more wait their turn.
        admit: given what ends it, its pictures and its tokens, a place for an answer while a block lasts, or an error.
    """

    model: str
    fetcher: Fetcher
    server: str = "http://127.0.0.1:8000"
    has_key: bool = False
    start: Mapping[str, Any] = field(default_factory=dict)
    side_by_side: int = 16
    admit: Callable[[Callable[[], None], int, int], AbstractContextManager[None]] = lambda *_: nullcontext()


class Running:
    """One answer that is being written; any thread may stop it, even before it has begun."""

    def __init__(self) -> None:
        self.stopped = False
        self.stream: Stream | None = None
        self._lock = threading.Lock()

    def begin(self, stream: Stream) -> None:
        """The answer is on its way."""
        with self._lock:
            self.stream = stream
            if self.stopped:
                stream.cancel()

    def stop(self) -> None:
        """Ends it here."""
        with self._lock:
            self.stopped = True
            if self.stream is not None:
                self.stream.cancel()


class Desk:
    """A model and the people who use it at once.

    Each browser tab is a session; what runs in a session is known by the place it runs in, such as "chat".
    """

    def __init__(self, vlm: Idefics, settings: Settings) -> None:
        self.vlm, self.settings = vlm.fetching(settings.fetcher), settings
        self._running: dict[tuple[str, str], set[Running]] = defaultdict(set)
        self._lock = threading.Lock()
        self._cost = lru_cache(1024)(self._cost_of)  # asked at each key that is typed beside a picture

    @contextmanager
    def running(self, session: str, place: str) -> Iterator[Running]:
        """Something that `stop` ends; whatever of it goes on when the block is left ends there."""
        one = Running()
        with self._lock:
            self._running[session, place].add(one)
        try:
            yield one
        finally:
            one.stop()
            with self._lock:
                self._running[session, place].discard(one)
                if not self._running[session, place]:
                    del self._running[session, place]

    def stop(self, session: str, place: str) -> None:
        """Ends what runs there."""
        with self._lock:
            found = list(self._running.get((session, place), ()))
        for one in found:
            one.stop()

    def leave(self, session: str) -> None:
        """Ends all of a session: its browser has gone."""
        with self._lock:
            found = [one for (whose, _), ones in self._running.items() if whose == session for one in ones]
        for one in found:
            one.stop()

    def answer(
        self, session: str, place: str, most: int, ask: Callable[[], Stream]
    ) -> Iterator[str | Answer]:
        """The text of an answer of at most so many tokens while it grows, a few times a second; at last the answer."""
        with self.running(session, place) as running:
            stream = ask()
            running.begin(stream)
            usage = stream.answer.usage
            with self.settings.admit(running.stop, usage.pictures, usage.prompt_tokens + most):
                text, seen = "", 0.0
                for piece in stream:
                    text += piece
                    if time.monotonic() - seen >= PAUSE:
                        yield text
                        seen = time.monotonic()
                yield stream.answer

    def stream(
        self, task: str, picture: Picture, words: str, options: Mapping[str, Any], shots: Sequence[Shot] = ()
    ) -> Stream:
        """The answer of a task about a picture, asked for."""
        vlm = self.vlm.with_shots(shots)
        given: Any = options
        return cast("Stream", vlm.run(TASKS[task], picture, words, stream=True, **given))

    def about(self, task: str, picture: str, **what: Any) -> Call:
        """A call of this model, for "Show code"."""
        own = self.settings
        return Call(
            task=task, picture=picture, model=own.model, server=own.server, has_key=own.has_key, **what
        )

    @property
    def room(self) -> int:
        """Tokens that the model reads."""
        return self.vlm.engine.model.layout.max_positions

    def picture(self, given: Given) -> Picture:
        """A file that came from the browser, known to be a picture; else BadPicture, by the person's name for it."""
        try:
            data = Path(given.path).read_bytes()
        except FileNotFoundError:
            raise BadPicture(f"the picture {given.name} is no longer kept: show it again") from None
        self.check(data, given.name)
        return Picture(data)

    def cost(self, given: Given, detail: Detail = "high") -> int:
        """How many tokens of a prompt a picture takes."""
        return self._cost(given, detail)

    def _cost_of(self, given: Given, detail: Detail) -> int:
        return self.vlm.cost(self.picture(given), detail=detail)

    def check(self, data: bytes, name: str) -> None:
        """Whether bytes are a picture; else BadPicture, by `name`."""
        from idefics.processing.images import name_of_bytes, open_picture

        if len(data) > MOST_BYTES:
            raise BadPicture(f"{name} is larger than {MOST_BYTES:,} bytes: make it smaller")
        try:
            open_picture(Picture(data), self.settings.fetcher)
        except BadPicture as error:
            raise BadPicture(str(error).replace(name_of_bytes(data), name)) from None

    def fetch(self, address: str) -> bytes:
        """The picture at an http(s) address or in a data URI, as far as the policy allows.

        Raises:
            BadPicture: it may not be had, or is none.
        """
        from idefics.processing.fetch import is_remote, short

        if not is_remote(address):
            raise BadPicture(f"{short(address)!r} is no address: it begins with http:// or https://")
        data = self.settings.fetcher.get(address)
        self.check(data, short(address))
        return data
