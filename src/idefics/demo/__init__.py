"""Two tiny checkpoints and pictures like those that they were trained on; bundled with the package."""

from pathlib import Path


def pictures() -> list[Path]:
    """The paths of the bundled pictures, sorted by name."""
    return sorted((Path(__file__).parent / "pictures").glob("*.png"))
