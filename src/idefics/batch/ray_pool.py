"""`RayAnswerer`: answers the rows of a batch run with a pool of engines on a Ray cluster."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from idefics.batch.answerers import Answerer, WorkItem
from idefics.batch.ray_cluster import connect, import_ray, last_line
from idefics.batch.ray_engine import EngineSpec, RayEngine, RayOptions
from idefics.errors import IdeficsError

BLOCKS_PER_ENGINE = 2  # one is answered while the next one is prepared
MAX_BLOCK_DEATHS = 3  # engines that die with a block, before its rows are answered one by one
MAX_ROW_DEATHS = 2  # engines that die with one row, before it is an error
MAX_LOAD_DEATHS = (
    3  # engines that die one after the other while they load the model, before no other one is tried
)
POLL_SECONDS = 1.0
SLOW_START_SECONDS = 60.0

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Block:
    """Rows that an engine answers in one call.

    Attributes:
        num_deaths: how many engines died while they had it.
        is_suspect: whether it may be what engines die of: then it is the only one that an engine has.
    """

    items: Sequence[WorkItem]
    num_deaths: int = 0
    is_suspect: bool = False


@dataclass(slots=True, eq=False)
class _EngineState:
    """An engine of the pool.

    Attributes:
        actor: the handle of its `RayEngine`.
        loading: the reference to the result of `load`; None once the model is loaded.
        blocks: the blocks in hand, by the references to their answers.
        batch_rows: rows of a block.
        num_load_deaths: how many engines in its place died before while they loaded the model.
    """

    actor: Any
    loading: Any
    blocks: dict[Any, _Block] = field(default_factory=dict)
    batch_rows: int = 0
    num_load_deaths: int = 0


class RayAnswerer(Answerer):
    """Answers rows with engines on a Ray cluster; see `Answerer`. It connects when the first row is to be answered.

    Each engine has at most two blocks of rows in hand; the rows of an engine that dies are given to another one. A
    row that engines die of becomes an error of the type "EngineDied".

    Args:
        options: the cluster, and the number and size of the engines.
        spec: what each engine loads and computes. Pictures of its shots are read here: nodes need not have the files.

    Raises:
        MissingExtra: Ray is not installed.
        BadPicture: the picture of a shot cannot be read.
    """

    def __init__(self, options: RayOptions, spec: EngineSpec) -> None:
        self._ray = import_ray("a run on a Ray cluster")
        self._options = options
        self._spec = spec.with_picture_bytes()
        self._is_connected_here = False
        self._engines: list[_EngineState] = []
        self._ahead: deque[WorkItem] = deque()
        self._suspects: deque[_Block] = deque()
        self._items: Iterator[WorkItem] = iter(())
        self._has_items = True

    def answer(self, items: Iterator[WorkItem]) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """See `Answerer.answer`.

        Raises:
            IdeficsError: there is no cluster, no node has room for an engine, or engines cannot load the model.
        """
        self._items, self._has_items = items, True
        self._read_ahead(1)
        if not self._ahead:
            return
        self._start_engines()
        warn_time = time.monotonic() + SLOW_START_SECONDS
        while True:
            self._hand_out_blocks()
            if not (
                self._has_items or self._ahead or self._suspects or any(one.blocks for one in self._engines)
            ):
                return
            engine_by_ref = {ref: one for one in self._engines for ref in (one.loading, *one.blocks) if ref}
            done, _ = self._ray.wait(list(engine_by_ref), num_returns=1, timeout=POLL_SECONDS)
            for ref in done:
                yield from self._take_result(engine_by_ref[ref], ref)
            if time.monotonic() > warn_time and all(one.loading for one in self._engines):
                warn_time = math.inf
                log.warning(
                    "no engine is ready after %g s: the model is being loaded, or the Ray cluster is full (see "
                    "`ray status`)",
                    SLOW_START_SECONDS,
                )

    def close(self) -> None:
        """Ends the engines, and the connection to the cluster if `answer` has made it."""
        for engine in self._engines:
            self._ray.kill(engine.actor)
        self._engines.clear()
        if self._is_connected_here:
            self._ray.shutdown()
            self._is_connected_here = False

    def _start_engines(self) -> None:
        """Connects to the cluster, and starts the engines unless they run."""
        if self._engines:
            return
        self._is_connected_here = connect(self._ray, self._options.address)
        options = self._options.resolve(self._ray.nodes())
        assert options.num_engines is not None
        assert options.num_cpus is not None
        self._spec = self._spec.with_threads(max(1, int(options.num_cpus)))
        self._actor_class = self._ray.remote(
            num_cpus=options.num_cpus,
            num_gpus=options.num_gpus,
            max_concurrency=BLOCKS_PER_ENGINE,
            scheduling_strategy="SPREAD",
        )(RayEngine)
        self._engines = [self._start_engine() for _ in range(options.num_engines)]

    def _start_engine(self, num_load_deaths: int = 0) -> _EngineState:
        """Starts an engine, which loads the model."""
        actor = self._actor_class.remote(self._spec)
        return _EngineState(actor, actor.load.remote(), num_load_deaths=num_load_deaths)

    def _hand_out_blocks(self) -> None:
        """Gives blocks to engines that have room for one, the emptiest first."""
        engines = [
            one
            for one in self._engines
            if not one.loading
            and len(one.blocks) < BLOCKS_PER_ENGINE
            and not any(block.is_suspect for block in one.blocks.values())
        ]
        engines.sort(key=lambda one: len(one.blocks))
        while self._suspects and engines and not engines[0].blocks:
            self._submit(engines.pop(0), self._suspects.popleft())
        del engines[: len(self._suspects)]  # they finish what they have, and then get a suspect
        while engines:
            engine = min(engines, key=lambda one: len(one.blocks))
            block = self._next_block(engine.batch_rows)
            if block is None:
                return
            self._submit(engine, block)
            if len(engine.blocks) == BLOCKS_PER_ENGINE:
                engines.remove(engine)

    def _submit(self, engine: _EngineState, block: _Block) -> None:
        """Gives a block to an engine."""
        engine.blocks[engine.actor.answer.remote(block.items)] = block

    def _next_block(self, num_rows: int) -> _Block | None:
        """Makes a block of the next rows; the last blocks are smaller, so that all engines have work to the end."""
        self._read_ahead(num_rows * len(self._engines))
        if not self._has_items:
            num_rows = min(num_rows, math.ceil(len(self._ahead) / (BLOCKS_PER_ENGINE * len(self._engines))))
        items = [self._ahead.popleft() for _ in range(min(num_rows, len(self._ahead)))]
        return _Block(items) if items else None

    def _read_ahead(self, num_rows: int) -> None:
        """Takes items until there are `num_rows` that no engine has, or there are no more."""
        missing = num_rows - len(self._ahead)
        if self._has_items and missing > 0:
            self._ahead.extend(islice(self._items, missing))
            self._has_items = len(self._ahead) >= num_rows

    def _take_result(self, engine: _EngineState, ref: Any) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Yields the answers of a block. The rows of an engine that died are handed out again, or become errors."""
        exceptions = self._ray.exceptions
        try:
            result = self._ray.get(ref)
        except exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, IdeficsError) else error) from None
        except exceptions.RayError as error:
            log.info("an engine died: %s", error)
            yield from self._replace(engine, error)
            return
        if ref is engine.loading:
            engine.loading, engine.batch_rows = None, result
        else:
            del engine.blocks[ref]
            yield from result

    def _replace(self, engine: _EngineState, error: BaseException) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Starts another engine in the place of one that died; yields the errors of rows that it should not get."""
        self._ray.kill(engine.actor)
        num_load_deaths = engine.num_load_deaths + 1 if engine.loading else 0
        if num_load_deaths < MAX_LOAD_DEATHS:
            self._engines[self._engines.index(engine)] = self._start_engine(num_load_deaths)
        else:
            self._engines.remove(engine)
            message = f"an engine died {num_load_deaths} times while it loaded the model ({last_line(error)})"
            if not self._engines:
                raise IdeficsError(f"{message}: is there memory for it, and idefics on each node?")
            log.warning("%s: going on with %d engines", message, len(self._engines))
        for block in engine.blocks.values():
            block.num_deaths += 1
            block.is_suspect = True
            if len(block.items) > 1 and block.num_deaths == MAX_BLOCK_DEATHS:
                self._suspects.extend(_Block([item], is_suspect=True) for item in block.items)
            elif len(block.items) == 1 and block.num_deaths >= MAX_ROW_DEATHS:
                error_text = (
                    f"{block.num_deaths} engines died while they answered this row: it may need more memory than a "
                    "node has"
                )
                yield block.items[0].key, {"error_type": "EngineDied", "error": error_text}
            else:
                self._suspects.append(block)
