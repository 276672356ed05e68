"""Few-shot examples of a row: drawn at random, or with the nearest pictures (RICES); which pictures are the same."""

from __future__ import annotations

import hashlib
import heapq
import io
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idefics.batch.report import MAX_PICTURE_PIXELS, THUMBNAIL_PIXELS
from idefics.batch.rows import Media
from idefics.errors import BadPicture, BadSetting, format_count
from idefics.evaluate.suite import EvaluationRow
from idefics.formats import SIGNATURE_BYTES, detect_video_format
from idefics.processing.fetch import is_url

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class PictureContents:
    """The contents of the pictures of rows; each is computed once."""

    def __init__(self) -> None:
        self._by_row: dict[tuple[str, str], tuple[str, ...]] = {}
        self._can_be_example: dict[tuple[str, str], bool] = {}

    def find(self, row: EvaluationRow) -> tuple[str, ...]:
        """The content of each picture of a row: SHA-256 (hex) of its bytes, or the address of one on the web.

        Raises:
            BadPicture: a picture cannot be read.
        """
        assert row.media is not None
        key = row.name, row.media.path  # rows of two folders may have the same names
        if key not in self._by_row:
            self._by_row[key] = tuple(_content(one) for one in (row.media, *row.more_media))
        return self._by_row[key]

    def can_be_example(self, row: EvaluationRow) -> bool:
        """Whether all pictures of a row can be read and decoded."""
        assert row.media is not None
        key = row.name, row.media.path
        if key not in self._can_be_example:
            self._can_be_example[key] = all(map(_can_be_decoded, (row.media, *row.more_media)))
        return self._can_be_example[key]


def _content(media: Media) -> str:
    """See `PictureContents.find`."""
    return media.path if is_url(media.path) else hashlib.sha256(media.read()).hexdigest()


def _can_be_decoded(media: Media) -> bool:
    """Whether a picture can be read and decoded; a video only has to be there."""
    from idefics.processing.picture_files import decode_trusted

    try:
        data = media.read()
        if detect_video_format(data[:SIGNATURE_BYTES]) is None:
            decode_trusted(io.BytesIO(data), media.path, MAX_PICTURE_PIXELS, min_side=THUMBNAIL_PIXELS)
    except BadPicture:
        return False
    return True


# As many as the support sets of the authors for ImageNet, of which the smaller one is for pictures to be embedded here.
MAX_SUPPORT_ROWS, MAX_EMBEDDED_ROWS = 5_000, 1_000


@dataclass(eq=False)
class ShotSelector:
    """Base of what chooses the few-shot examples of a row.

    Attributes:
        support_by_name: the rows that examples are taken from, by name.
        num_shots: how many are taken.
        contents: of the rows' pictures.
    """

    support_by_name: Mapping[str, EvaluationRow]
    num_shots: int
    contents: PictureContents

    def ordered_names(self, row: EvaluationRow) -> Iterable[str]:
        """The names of the rows in the order in which they are taken for a row; BadPicture: there is none."""
        raise NotImplementedError

    def select(self, row: EvaluationRow) -> list[EvaluationRow]:
        """The examples in the order of the prompt; never the row itself, nor one with its picture, by its content.

        Raises:
            BadPicture: the row's own picture cannot be read.
            BadSetting: there are fewer such rows whose pictures can be read than shots.
        """
        names, own_contents = self.ordered_names(row), set(self.contents.find(row))
        chosen: list[EvaluationRow] = []
        for shot in map(self.support_by_name.__getitem__, names):
            if len(chosen) == self.num_shots:
                break
            if shot.name == row.name or not self.contents.can_be_example(shot):
                continue
            if own_contents.isdisjoint(self.contents.find(shot)):
                chosen.append(shot)
        if len(chosen) < self.num_shots:
            raise BadSetting(
                f"shots is {self.num_shots}, but the examples with another picture than {row.name} are only "
                f"{len(chosen)}"
            )
        return chosen


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
        raise BadSetting(
            f"shots is {num_shots}, but the rows to take examples from are only {len(chosen)}: there has to be one more"
        )
    return chosen


@dataclass(eq=False)
class RandomShots(ShotSelector):
    """Draws the examples of each row with a generator of its own: the same whatever other rows there are.

    Attributes:
        seed: of the draws.
    """

    seed: int

    def __post_init__(self) -> None:
        self._names = sorted(self.support_by_name)

    def ordered_names(self, row: EvaluationRow) -> Iterator[str]:
        """Yields the names in random order, each once (Fisher-Yates, as far as it is needed)."""
        left, generator = list(self._names), random.Random(f"{self.seed} {row.name}")
        while left:
            index = generator.randrange(len(left))
            left[index], left[-1] = left[-1], left[index]
            yield left.pop()


@dataclass(eq=False)
class NearestShots(ShotSelector):
    """Takes the rows whose pictures have the nearest embeddings (cosine); the nearest is the last in the prompt.

    Attributes:
        embed: the embedding of a row's picture, a vector; raises BadPicture if it has none.

    Raises:
        BadSetting: too few of the rows have an embedding.
    """

    embed: Callable[[EvaluationRow], NDArray[np.float32]]

    def __post_init__(self) -> None:
        import numpy as np

        vector_by_name = {}  # rows without an embedding are left out
        for name, row in self.support_by_name.items():
            with suppress(BadPicture):
                vector_by_name[name] = _normalized(self.embed(row))
        if len(vector_by_name) <= self.num_shots:
            raise BadSetting(
                f"shots is {self.num_shots}, but only {len(vector_by_name)} of {len(self.support_by_name)} rows to "
                "take examples from have an embedding of their picture"
            )
        self._names, self._matrix = list(vector_by_name), np.stack(list(vector_by_name.values()))

    def ordered_names(self, row: EvaluationRow) -> Iterator[str]:
        """The names, that of the row with the nearest picture first."""
        import numpy as np

        similarity = self._matrix @ _normalized(self.embed(row))
        return (self._names[index] for index in np.argsort(-similarity, kind="stable"))

    def select(self, row: EvaluationRow) -> list[EvaluationRow]:
        """See `ShotSelector.select`."""
        return super().select(row)[::-1]


def _normalized(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vector with length 1."""
    import numpy as np

    normalized: NDArray[np.float32] = vector / np.float32(max(float(np.linalg.norm(vector)), 1e-12))
    return normalized


class EmbeddingFile:
    """Embeddings from a file: `FILE.npy`, (N, D) numbers, and `FILE.ids.txt` with the id or name of each row's line.

    Raises:
        BadSetting: a file is missing, malformed or does not fit the other.
    """

    def __init__(self, path: Path) -> None:
        import numpy as np

        ids_path = path.with_suffix(".ids.txt")
        try:
            matrix: Any = np.load(path, allow_pickle=False)
            ids = ids_path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError, EOFError) as error:
            raise BadSetting(f"embeddings cannot be read from {path} and {ids_path}: {error}") from None
        if not isinstance(matrix, np.ndarray) or matrix.dtype.kind not in "fiu":
            raise BadSetting(f"{path} is no array of numbers: write it with numpy.save")
        if matrix.ndim != 2 or len(ids) != len(matrix):
            raise BadSetting(
                f"{path} has the shape {matrix.shape}, and {ids_path} {format_count(len(ids), 'line')}: give one "
                "vector for each line"
            )
        if not np.isfinite(matrix).all():
            raise BadSetting(f"{path} has numbers that are infinite or NaN")
        self._vector_by_id = dict(zip(ids, matrix.astype(np.float32), strict=True))
        if len(self._vector_by_id) < len(ids):
            twice = next(id for index, id in enumerate(ids) if id in ids[:index])
            raise BadSetting(f"{ids_path} has the id {twice!r} twice: give each row its own")

    def embed(self, row: EvaluationRow) -> NDArray[np.float32]:
        """The embedding of a row. Raises BadPicture if the file has none."""
        for id in (row.id, row.name):
            if id in self._vector_by_id:
                vector: NDArray[np.float32] = self._vector_by_id[id]
                return vector
        raise BadPicture(f"{row.id or row.name} is not among the ids of the embeddings")
