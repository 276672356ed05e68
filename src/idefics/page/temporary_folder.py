"""The folder of this process for the files that browsers upload and that the page writes; removed at its end.

Gradio's default is one folder for all of a user's processes, of which each deletes what the others still use.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "idefics-page-"
FILES, EXAMPLES = "GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE"  # Gradio reads them from the environment


def create_temporary_folder() -> Path:
    """Creates a folder for this process, in `GRADIO_TEMP_DIR` or the system's, and points Gradio to it.

    It must be called before Gradio is imported. Only the process that has created the folder removes it, not a fork.
    """
    given = os.environ.get(FILES)
    parent = Path(given) if given else Path(tempfile.gettempdir())
    if parent.name.startswith(PREFIX):  # of the process that has started this one
        parent = parent.parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
    os.environ[FILES], os.environ[EXAMPLES] = str(folder), str(folder / "examples")
    atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
