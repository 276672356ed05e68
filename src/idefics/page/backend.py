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
from idefics.page.code_snippets import TaskSnippets
from idefics.page.uploaded_picture import UploadedPicture
from idefics.tasks import TASKS

if TYPE_CHECKING:
    from idefics import Idefics
    from idefics.generation import Stream
    from idefics.processing.fetch import Fetcher

UPDATE_INTERVAL = 0.05  # seconds between two looks at a growing answer: a browser draws no faster
MAX_PICTURE_BYTES = 20 * 2**20  # of one picture, as of one that is fetched


@dataclass(frozen=True, slots=True)
class PageSettings:
    """Of a page.

    Attributes:
        model: what the model was loaded by; "Show code" says it.
        fetcher: gets pictures by their address, as far as its policy allows.
        server_url: where the API answers, for "Show code".
        has_key: whether the API wants a key.
        initial_sampling: sampling settings that "Advanced" begins with, where they are not the usual ones.
        max_concurrent_answers: answers that are written at once; more wait their turn.
        admission_slot: given what ends it, its pictures and its tokens, a place for an answer while a block lasts, or an error.
    """

    model: str
    fetcher: Fetcher
    server_url: str = "http://127.0.0.1:8000"
    has_key: bool = False
    initial_sampling: Mapping[str, Any] = field(default_factory=dict)
    max_concurrent_answers: int = 16
    admission_slot: Callable[[Callable[[], None], int, int], AbstractContextManager[None]] = lambda *_: (
        nullcontext()
    )


class RunningAnswer:
    """One answer that is being written; any thread may stop it, even before it has begun."""

    def __init__(self) -> None:
        self.is_stopped = False
        self.stream: Stream | None = None
        self._lock = threading.Lock()

    def attach_stream(self, stream: Stream) -> None:
        """The answer is on its way."""
        with self._lock:
            self.stream = stream
            if self.is_stopped:
                stream.cancel()

    def stop(self) -> None:
        """Ends it here."""
        with self._lock:
            self.is_stopped = True
            if self.stream is not None:
                self.stream.cancel()


class PageBackend:
    """A model and the people who use it at once.

    Each browser tab is a session; what runs in a session is known by the place it runs in, such as "chat".
    """

    def __init__(self, vlm: Idefics, settings: PageSettings) -> None:
        self.vlm, self.settings = vlm.fetching(settings.fetcher), settings
        self._running: dict[tuple[str, str], set[RunningAnswer]] = defaultdict(set)
        self._lock = threading.Lock()
        self._cached_count_tokens = lru_cache(1024)(
            self._count_tokens
        )  # asked at each key that is typed beside a picture

    @contextmanager
    def track_running_answer(self, session: str, tab_name: str) -> Iterator[RunningAnswer]:
        """Something that `stop` ends; whatever of it goes on when the block is left ends there."""
        running_answer = RunningAnswer()
        with self._lock:
            self._running[session, tab_name].add(running_answer)
        try:
            yield running_answer
        finally:
            running_answer.stop()
            with self._lock:
                self._running[session, tab_name].discard(running_answer)
                if not self._running[session, tab_name]:
                    del self._running[session, tab_name]

    def stop_tab(self, session: str, tab_name: str) -> None:
        """Ends what runs there."""
        with self._lock:
            running_answers = list(self._running.get((session, tab_name), ()))
        for one in running_answers:
            one.stop()

    def stop_session(self, session: str) -> None:
        """Ends all of a session: its browser has gone."""
        with self._lock:
            running_answers = [
                one for (whose, _), ones in self._running.items() if whose == session for one in ones
            ]
        for one in running_answers:
            one.stop()

    def stream_answer(
        self, session: str, tab_name: str, max_new_tokens: int, start_stream: Callable[[], Stream]
    ) -> Iterator[str | Answer]:
        """The text of an answer of at most so many tokens while it grows, a few times a second; at last the answer."""
        with self.track_running_answer(session, tab_name) as running_answer:
            stream = start_stream()
            running_answer.attach_stream(stream)
            usage = stream.answer.usage
            with self.settings.admission_slot(
                running_answer.stop, usage.pictures, usage.prompt_tokens + max_new_tokens
            ):
                text, last_update_time = "", 0.0
                for piece in stream:
                    text += piece
                    if time.monotonic() - last_update_time >= UPDATE_INTERVAL:
                        yield text
                        last_update_time = time.monotonic()
                yield stream.answer

    def start_task(
        self, task: str, picture: Picture, text: str, options: Mapping[str, Any], shots: Sequence[Shot] = ()
    ) -> Stream:
        """The answer of a task about a picture, asked for."""
        vlm = self.vlm.with_shots(shots)
        stream_options: Any = options
        return cast("Stream", vlm.run(TASKS[task], picture, text, stream=True, **stream_options))

    def make_task_snippets(self, task: str, picture: str, **fields: Any) -> TaskSnippets:
        """A call of this model, for "Show code"."""
        settings = self.settings
        return TaskSnippets(
            task=task,
            picture=picture,
            model=settings.model,
            server=settings.server_url,
            has_key=settings.has_key,
            **fields,
        )

    @property
    def max_positions(self) -> int:
        """Tokens that the model reads."""
        return self.vlm.engine.model.layout.max_positions

    def open_upload(self, upload: UploadedPicture) -> Picture:
        """A file that came from the browser, known to be a picture; else BadPicture, by the person's name for it."""
        try:
            data = Path(upload.path).read_bytes()
        except FileNotFoundError:
            raise BadPicture(f"the picture {upload.name} is no longer kept: show it again") from None
        self.check_picture(data, upload.name)
        return Picture(data)

    def count_tokens(self, upload: UploadedPicture, detail: Detail = "high") -> int:
        """How many tokens of a prompt a picture takes."""
        return self._cached_count_tokens(upload, detail)

    def _count_tokens(self, upload: UploadedPicture, detail: Detail) -> int:
        return self.vlm.cost(self.open_upload(upload), detail=detail)

    def check_picture(self, data: bytes, name: str) -> None:
        """Whether bytes are a picture; else BadPicture, by `name`."""
        from idefics.processing.image_processor import describe_bytes, open_picture

        if len(data) > MAX_PICTURE_BYTES:
            raise BadPicture(f"{name} is larger than {MAX_PICTURE_BYTES:,} bytes: make it smaller")
        try:
            open_picture(Picture(data), self.settings.fetcher)
        except BadPicture as error:
            raise BadPicture(str(error).replace(describe_bytes(data), name)) from None

    def fetch_picture(self, address: str) -> bytes:
        """The picture at an http(s) address or in a data URI, as far as the policy allows.

        Raises:
            BadPicture: it may not be had, or is none.
        """
        from idefics.processing.fetch import is_url, shorten_url

        if not is_url(address):
            raise BadPicture(f"{shorten_url(address)!r} is no address: it begins with http:// or https://")
        data = self.settings.fetcher.get(address)
        self.check_picture(data, shorten_url(address))
        return data
