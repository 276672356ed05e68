"""Files of the keys and values of the beginnings of prompts, up to the end of the last picture.

A later process that asks about the same picture reads them, and computes only the text after it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from idefics.engine.kv_cache import PagedKVCache
from idefics.engine.page_pool import PAGE_SIZE, PageContent, PagePool
from idefics.engine.request_state import SequenceState
from idefics.engine.tensor_files import TensorFileCache

log = logging.getLogger(__name__)


class PrefixFiles:
    """Reads the beginnings of prompts into the prefix cache, as if an earlier request had left them; writes them.

    For inline-image models only: in the others little text comes before the end of the last picture. Not thread-safe:
    callers hold the engine's lock.

    Args:
        files: those of one model.
        kv_cache: on the CPU.
        page_pool: that of `kv_cache`.
    """

    def __init__(self, files: TensorFileCache, kv_cache: PagedKVCache, page_pool: PagePool) -> None:
        self.files, self.kv_cache, self.page_pool = files, kv_cache, page_pool
        self._missing: list[PageContent] = []  # the latest beginning that had no file

    def load(self, sequence: SequenceState) -> None:
        """Adds the beginning of a sequence's prompt to the prefix cache, if it has a file and is not there.

        No request is running, so that all pages are free or evictable.
        """
        contents = _list_page_contents(sequence)
        if not contents or self._find_pages(contents):
            return
        tensors = self.files.load(self._file_key(contents))
        if tensors is None:
            self._missing = contents
            return
        pages = [self.page_pool.allocate() for _ in contents]
        for layer_pages, tensor in zip(self._list_page_bytes(), tensors, strict=True):
            layer_pages[pages] = tensor.numpy()
        for page, content in zip(pages, contents, strict=True):
            self.page_pool.add_to_prefix_cache(page, content)
        self.page_pool.release(pages)
        log.debug("read the keys and values of %d pages from a file", len(pages))

    def store_missing(self) -> None:
        """Writes the latest beginning that had no file, if all of it is in the prefix cache."""
        contents, self._missing = self._missing, []
        pages = self._find_pages(contents) if contents else []
        if not pages:
            return
        page_bytes = [layer_pages[pages] for layer_pages in self._list_page_bytes()]
        for layer_pages in page_bytes:  # the rest of the last page belongs to the text after the picture
            layer_pages[-1, :, len(contents[-1].tokens) :] = 0
        self.files.store(self._file_key(contents), [torch.from_numpy(one) for one in page_bytes])

    def _find_pages(self, contents: Sequence[PageContent]) -> list[int]:
        """The pages of the prefix cache that hold `contents`, or more after it; [] if one is not there."""
        *full, last = contents
        pages = self.page_pool.match_prefix([content.key for content in full])
        page, num_tokens = self.page_pool.match_partial_page(last.parent_key, last.tokens)
        is_complete = len(pages) == len(full) and num_tokens == len(last.tokens)
        return [*pages, page] if is_complete else []

    def _file_key(self, contents: Sequence[PageContent]) -> str:
        """The key of a beginning's file; a page's key is a hash of all pages up to it."""
        return f"{self.kv_cache.dtype} {contents[-1].key.hex()}"

    def _list_page_bytes(self) -> list[np.ndarray]:
        """The pages of each layer's keys and values as bytes, (P, h, 16, K * bytes of a number).

        NumPy copies them with one thread: torch's threads would wait for each other longer than the copy takes.
        """
        return [pages.view(torch.uint8).numpy() for pages in (*self.kv_cache.keys, *self.kv_cache.values)]


def _list_page_contents(sequence: SequenceState) -> list[PageContent]:
    """The pages of a prompt's beginning, up to the end of its last picture; [] if it has none, or is not stored.

    A prompt with a covered picture is not stored: it is computed only to explain an answer.
    """
    prompt, image_token_positions = (
        sequence.request_state.request.prompt,
        sequence.page_keys.image_token_positions,
    )
    if not image_token_positions or any(image.base is not None for image in prompt.pictures):
        return []
    length = image_token_positions[-1][-1] + 1
    if length == len(prompt):  # the last token is always computed
        return []
    return [
        sequence.page_keys.page_content(sequence.ids, page_index, length)
        for page_index in range(-(-length // PAGE_SIZE))
    ]
