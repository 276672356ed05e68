"""Two tiny real checkpoints, and pictures of the only world that they know."""

from pathlib import Path


def pictures() -> list[Path]:
    """The bundled pictures, sorted by name."""
    return sorted((Path(__file__).parent / "pictures").glob("*.png"))
