"""The temporary folder of this process for uploaded and written files; removed when the process exits.

By default Gradio has one folder for all processes of a user, and each process deletes files that the others still use.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "idefics-page-"
FILES, EXAMPLES = "GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE"  # Gradio reads them from the environment


def create_gradio_temporary_folder() -> Path:
    """Creates a folder for this process, in `GRADIO_TEMP_DIR` or the system's, and points Gradio to it.

    It must be called before Gradio is imported. Only the process that has created the folder removes it, not a fork.
    """
    given = os.environ.get(FILES)
    parent = Path(given) if given else Path(tempfile.gettempdir())
    if parent.name.startswith(PREFIX):  # inherited from a parent process that has called this
        parent = parent.parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
    os.environ[FILES], os.environ[EXAMPLES] = str(folder), str(folder / "examples")
    atexit.register(_remove_folder, folder, os.getpid())
    return folder


def _remove_folder(folder: Path, owner: int) -> None:
    """Removes the folder if this is the process that has created it."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
