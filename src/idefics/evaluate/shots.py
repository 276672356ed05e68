"""Few-shot examples of a row: drawn at random, or the rows with the nearest pictures (RICES)."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from idefics.errors import BadPicture, BadSetting
from idefics.evaluate.suite import EvaluationRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# As many as the support sets of the authors for ImageNet, of which the smaller one is for pictures to be embedded here.
MAX_SUPPORT_ROWS, MAX_EMBEDDED_ROWS = 5_000, 1_000


class ShotSelector(Protocol):
    """Chooses the few-shot examples of a row.

    Attributes:
        support_by_name: the rows that examples are taken from, by name.
    """

    support_by_name: Mapping[str, EvaluationRow]

    def select(self, row: EvaluationRow) -> Sequence[EvaluationRow]:
        """The examples in the order of the prompt; never the row itself, nor one with its picture."""
        ...


def choose_support(
    rows: Iterable[EvaluationRow], seed: int, num_shots: int, max_rows: int = MAX_SUPPORT_ROWS
) -> dict[str, EvaluationRow]:
    """The rows that examples are taken from: those that can be, and of many some that the seed decides.

    Raises:
        BadSetting: there are fewer than the shots of a prompt, and one more.
    """

    def order(row: EvaluationRow) -> bytes:
        return hashlib.sha256(f"{seed} {row.name}".encode("utf-8", "surrogateescape")).digest()

    usable = (row for row in rows if row.media is not None and row.references)
    chosen = {row.name: row for row in heapq.nsmallest(max_rows, usable, key=order)}
    if len(chosen) <= num_shots:
        raise BadSetting(f"shots is {num_shots}, but there are only {len(chosen)} rows to take examples from")
    return chosen


class RandomShots:
    """Draws the examples of each row with a generator of its own: the same whatever other rows there are.

    Args:
        support_by_name: the rows that examples are taken from.
        num_shots: how many are drawn.
        seed: of the draws.
    """

    def __init__(self, support_by_name: Mapping[str, EvaluationRow], num_shots: int, seed: int) -> None:
        self.support_by_name, self._num_shots, self._seed = support_by_name, num_shots, seed
        self._names = sorted(support_by_name)

    def select(self, row: EvaluationRow) -> list[EvaluationRow]:
        """See `ShotSelector.select`."""
        drawn = _draw(self._names, random.Random(f"{self._seed} {row.name}"))
        return _first((self.support_by_name[name] for name in drawn), row, self._num_shots)


def _draw(names: Sequence[str], generator: random.Random) -> Iterator[str]:
    """Yields the names in random order, each once (Fisher-Yates, as far as it is needed)."""
    left = list(names)
    while left:
        index = generator.randrange(len(left))
        left[index], left[-1] = left[-1], left[index]
        yield left.pop()


class NearestShots:
    """Takes the rows whose pictures have the nearest embeddings (cosine); the nearest is the last in the prompt.

    Args:
        support_by_name: the rows that examples are taken from.
        num_shots: how many are taken.
        embed: the embedding of a row's picture, a vector.
    """

    def __init__(
        self,
        support_by_name: Mapping[str, EvaluationRow],
        num_shots: int,
        embed: Callable[[EvaluationRow], NDArray[np.float32]],
    ) -> None:
        self.support_by_name, self._num_shots, self._embed = support_by_name, num_shots, embed
        self._names: list[str] = []
        self._matrix: NDArray[np.float32] | None = None

    def select(self, row: EvaluationRow) -> list[EvaluationRow]:
        """See `ShotSelector.select`."""
        import numpy as np

        matrix = self._support_matrix()
        similarity = matrix @ _normalized(self._embed(row))
        nearest = (
            self.support_by_name[self._names[index]] for index in np.argsort(-similarity, kind="stable")
        )
        return _first(nearest, row, self._num_shots)[::-1]

    def _support_matrix(self) -> NDArray[np.float32]:
        """The embeddings of the support rows, one a line; a picture that cannot be read is left out."""
        import numpy as np

        if self._matrix is None:
            vectors = []
            for name, row in self.support_by_name.items():
                try:
                    vectors.append(_normalized(self._embed(row)))
                except BadPicture:
                    continue
                self._names.append(name)
            if len(vectors) <= self._num_shots:
                raise BadSetting(f"only {len(vectors)} pictures to take examples from can be read")
            self._matrix = np.stack(vectors)
        return self._matrix


def _first(rows: Iterable[EvaluationRow], query: EvaluationRow, count: int) -> list[EvaluationRow]:
    """The first rows that are neither the query nor about its picture."""
    chosen: list[EvaluationRow] = []
    for row in rows:
        if len(chosen) == count:
            break
        assert row.media is not None
        is_query = row.name == query.name or (query.media is not None and row.media.path == query.media.path)
        if not is_query:
            chosen.append(row)
    if len(chosen) < count:
        raise BadSetting(
            f"shots is {count}, but only {len(chosen)} other pictures are there for {query.name}"
        )
    return chosen


def _normalized(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector with length 1."""
    import numpy as np

    normalized: NDArray[np.float32] = vector / np.float32(max(float(np.linalg.norm(vector)), 1e-12))
    return normalized


class EmbeddingFile:
    """Embeddings from a file: `FILE.npy`, (N, D) numbers, and `FILE.ids.txt` with the id or name of each row's line.

    Raises:
        BadSetting: a file is missing or does not fit the other.
    """

    def __init__(self, path: Path) -> None:
        import numpy as np

        ids_path = path.with_suffix(".ids.txt")
        try:
            matrix: Any = np.load(path, allow_pickle=False)
            ids = ids_path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise BadSetting(f"embeddings cannot be read from {path} and {ids_path}: {error}") from None
        if matrix.ndim != 2 or len(ids) != len(matrix):
            raise BadSetting(
                f"{path} has the shape {matrix.shape}, and {ids_path} {len(ids)} lines: give one vector for each line"
            )
        vectors: NDArray[np.float32] = matrix.astype(np.float32)
        self._vector_by_id: dict[str, NDArray[np.float32]] = dict(zip(ids, vectors, strict=True))

    def embed(self, row: EvaluationRow) -> NDArray[np.float32]:
        """The embedding of a row. Raises BadPicture if the file has none."""
        for id in (row.id, row.name):
            if id in self._vector_by_id:
                return self._vector_by_id[id]
        raise BadPicture(f"{row.id or row.name} is not among the ids of the embeddings")
