"""Data sets of Hugging Face, `hf:owner/name` or `hf:owner/name:split`, streamed. Needs the extra `datasets`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from idefics.batch.rows import Media
from idefics.batch.sources.settings import MAX_MEDIA_BYTES, cell_media, too_large_error
from idefics.batch.sources.tables import TableInput
from idefics.errors import BadPicture, MissingExtra
from idefics.processing.fetch import Fetcher, is_url

HUB_PREFIX = "hf:"
DEFAULT_SPLIT = "train"


class HubReader:
    """Reads the records of a data set; pictures are not decoded. Implements `TableReader`.

    Args:
        argument: "hf:", the data set's name on the hub or a folder, and a colon and the split; without a split it is
            "train", or the only one that there is.
    """

    def __init__(self, argument: str) -> None:
        self.argument = argument
        self._name, _, self._split = argument.removeprefix(HUB_PREFIX).partition(":")
        self._loaded: Any = None

    @property
    def key(self) -> str:
        """The argument."""
        return self.argument

    def read_columns(self) -> Sequence[str]:
        """The names of the features; the keys of the first record where no features are declared."""
        dataset = self._dataset()
        return list(dataset.column_names or next(self.records(), {}))

    def declared_image_column(self) -> str | None:
        """The first feature that is a picture or a video."""
        return next(iter(_media_features(self._dataset())), None)

    def records(self) -> Iterator[Mapping[str, Any]]:
        """Yields the records; raises BadPicture if they cannot be had to the end."""
        dataset = self._dataset()
        try:
            yield from dataset
        except Exception as error:  # of the network, of any file format, or of the data set's own code
            raise self._error(error) from None

    def media(self, value: object, name: str, fetcher: Fetcher) -> Media:
        """The picture or video that a record gives: bytes, a local file, or a file of the hub that is read later."""
        if isinstance(value, Mapping) and value.get("bytes") is None:
            value = value.get("path")
        if isinstance(value, str) and "://" in value and not is_url(value):
            return Media(path=name, read=partial(_read_hub_file, value, name))
        return cell_media(value, name, Path(), None, fetcher)

    def count(self) -> None:
        """None: it is not known of a data set that is streamed."""

    def _dataset(self) -> Any:
        """The data set, loaded once; raises BadPicture if it cannot be."""
        if self._loaded is None:
            try:
                import datasets
            except ImportError:
                raise MissingExtra("reading a data set of Hugging Face", "datasets") from None
            try:
                loaded = datasets.load_dataset(self._name, split=self._split or None, streaming=True)
            except Exception as error:  # as above
                raise self._error(error) from None
            if not self._split:
                loaded = self._only_split(loaded)
            for column, feature in _media_features(loaded).items():
                loaded = loaded.cast_column(column, type(feature)(decode=False))
            self._loaded = loaded
        return self._loaded

    def _only_split(self, splits: Mapping[str, Any]) -> Any:
        """The split that is read if none is named."""
        if DEFAULT_SPLIT in splits:
            return splits[DEFAULT_SPLIT]
        if len(splits) == 1:
            return next(iter(splits.values()))
        raise BadPicture(
            f"{self.argument} has the splits {', '.join(splits)}: name one, as in {self.argument}:{next(iter(splits))}"
        )

    def _error(self, error: Exception) -> BadPicture:
        return BadPicture(f"{self.argument} cannot be read: {str(error).partition(chr(10))[0]}")


class HubDataset(TableInput):
    """A data set as an input, read by `HubReader`."""

    def check(self) -> None:
        """Raises BadPicture if the data set cannot be loaded, and BadSetting if a column is missing."""
        self.choose_image_column()


def _media_features(dataset: Any) -> dict[str, Any]:
    """The features of a data set that are pictures or videos."""
    import datasets

    features = dataset.features or {}
    return {name: one for name, one in features.items() if isinstance(one, (datasets.Image, datasets.Video))}


def _read_hub_file(url: str, name: str) -> bytes:
    """The bytes of a file of the hub, or of a member of an archive there ("hf://...", "zip://...::hf://...").

    Raises:
        BadPicture: it cannot be read, or has more than `MAX_MEDIA_BYTES`.
    """
    from datasets.utils.file_utils import xopen

    try:
        with xopen(url, "rb") as file:
            data: bytes = file.read(MAX_MEDIA_BYTES + 1)
    except Exception as error:  # of the network or of the archive's format
        raise BadPicture(f"{name} cannot be read: {str(error).partition(chr(10))[0]}") from None
    if len(data) > MAX_MEDIA_BYTES:
        raise too_large_error(name)
    return data
