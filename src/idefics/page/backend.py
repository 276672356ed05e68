"""What all tabs share: the model, the checks of uploaded and fetched pictures, and the running answers.

Does not import Gradio.
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
    from idefics import Idefics, MapResults, Stream
    from idefics.processing.fetch import Fetcher

UPDATE_INTERVAL = 0.05  # seconds between two updates of a streamed answer in the browser
MAX_PICTURE_BYTES = 20 * 2**20  # of one picture; the fetcher has the same limit


@dataclass(frozen=True, slots=True)
class PageSettings:
    """Settings of a page.

    Attributes:
        model: the name, folder or hub id of the model, for the title and "Show code".
        fetcher: fetches pictures from addresses that its policy allows.
        server_url: the base URL of the API, for "Show code".
        has_key: whether the API requires a key.
        adapter: the folder or hub id of the model's adapter, for "Show code".
        initial_sampling: sampling settings that differ from the package's defaults when the page opens.
        max_concurrent_answers: answers that are generated at once; further ones wait.
        admission_slot: `(cancel, num_pictures, num_tokens)` -> a context manager that holds a slot of the server's
            admission control while an answer runs, or raises IdeficsError if it is busy.
    """

    model: str
    fetcher: Fetcher
    server_url: str = "http://127.0.0.1:8000"
    has_key: bool = False
    adapter: str | None = None
    initial_sampling: Mapping[str, Any] = field(default_factory=dict)
    max_concurrent_answers: int = 16
    admission_slot: Callable[[Callable[[], None], int, int], AbstractContextManager[None]] = lambda *_: (
        nullcontext()
    )


class RunningAnswer:
    """An answer that is being generated; any thread may stop it, even before its stream exists."""

    def __init__(self) -> None:
        self.is_stopped = False
        self.stream: Stream | MapResults | None = None
        self._lock = threading.Lock()

    def attach_stream(self, stream: Stream | MapResults) -> None:
        """Sets the stream of the answer, or the results of a batch; cancels it if the answer was stopped before."""
        with self._lock:
            self.stream = stream
            if self.is_stopped:
                stream.cancel()

    def stop(self) -> None:
        """Stops the answer where it is: cancels its stream, now or once it is attached."""
        with self._lock:
            self.is_stopped = True
            if self.stream is not None:
                self.stream.cancel()


class PageBackend:
    """The model of the page, and the running answers of all sessions.

    A session is one browser tab. A running answer is registered under its session and its tab's name, such as "chat".
    """

    def __init__(self, vlm: Idefics, settings: PageSettings) -> None:
        self.vlm, self.settings = vlm.fetching(settings.fetcher), settings
        self._running: dict[tuple[str, str], set[RunningAnswer]] = defaultdict(set)
        self._lock = threading.Lock()
        # Cached, because the chat counts at every key press.
        self._cached_count_tokens = lru_cache(1024)(self._count_tokens)

    @contextmanager
    def track_running_answer(self, session: str, tab_name: str) -> Iterator[RunningAnswer]:
        """Registers a running answer, so that `stop_tab` finds it; leaving the block stops it."""
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
        """Stops all answers of one tab of a session."""
        with self._lock:
            running_answers = list(self._running.get((session, tab_name), ()))
        for one in running_answers:
            one.stop()

    def stop_session(self, session: str) -> None:
        """Stops all answers of a session, as when its browser tab was closed."""
        with self._lock:
            running_answers = [
                one for (whose, _), ones in self._running.items() if whose == session for one in ones
            ]
        for one in running_answers:
            one.stop()

    def stream_answer(
        self, session: str, tab_name: str, max_new_tokens: int, start_stream: Callable[[], Stream]
    ) -> Iterator[str | Answer]:
        """Yields an answer's text so far, at most every `UPDATE_INTERVAL` seconds, and finally the whole Answer.

        Args:
            session: the browser tab.
            tab_name: the tab of the page.
            max_new_tokens: the longest answer, for admission control.
            start_stream: starts the generation.
        """
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
        """Starts a task about a picture with few-shot examples and returns the stream of its answer."""
        vlm = self.vlm.with_shots(shots)
        stream_options: Any = options
        return cast("Stream", vlm.run(TASKS[task], picture, text, stream=True, **stream_options))

    def make_task_snippets(self, task: str, picture: str, **fields: Any) -> TaskSnippets:
        """The code of a task's call, for "Show code"; `fields` are further fields of `TaskSnippets`."""
        settings = self.settings
        return TaskSnippets(
            task=task,
            picture=picture,
            model=settings.model,
            server=settings.server_url,
            has_key=settings.has_key,
            adapter=settings.adapter,
            **fields,
        )

    @property
    def max_positions(self) -> int:
        """The longest sequence of the model, in tokens."""
        return self.vlm.engine.model.layout.max_positions

    def open_upload(self, upload: UploadedPicture) -> Picture:
        """Reads an uploaded file. Raises BadPicture, with the name on the person's machine, if it is not a picture."""
        try:
            data = Path(upload.path).read_bytes()
        except FileNotFoundError:
            raise BadPicture(
                f"the picture {upload.name} has been deleted from the server: upload it again"
            ) from None
        self.check_picture(data, upload.name)
        return Picture(data)

    def count_tokens(self, upload: UploadedPicture, detail: Detail = "high") -> int:
        """The number of tokens that a picture takes in a prompt."""
        return self._cached_count_tokens(upload, detail)

    def _count_tokens(self, upload: UploadedPicture, detail: Detail) -> int:
        """As `count_tokens`, without the cache."""
        return self.vlm.cost(self.open_upload(upload), detail=detail)

    def check_picture(self, data: bytes, name: str) -> None:
        """Raises BadPicture, with `name` in the message, unless the bytes are a picture within the limits."""
        from idefics.processing.image_processor import describe_bytes, open_picture

        if len(data) > MAX_PICTURE_BYTES:
            raise BadPicture(f"{name} is larger than {MAX_PICTURE_BYTES:,} bytes: make it smaller")
        try:
            open_picture(Picture(data), self.settings.fetcher)
        except BadPicture as error:
            raise BadPicture(str(error).replace(describe_bytes(data), name)) from None

    def fetch_picture(self, address: str) -> bytes:
        """Fetches a picture from an http(s) address or a data URI.

        Raises:
            BadPicture: the policy does not allow the address, it cannot be fetched, or it is not a picture.
        """
        from idefics.processing.fetch import is_url, name_for_message

        if not is_url(address):
            raise BadPicture(
                f"{name_for_message(address)!r} is not an address: give one that begins with http:// or https://"
            )
        data = self.settings.fetcher.get(address)
        self.check_picture(data, name_for_message(address))
        return data
