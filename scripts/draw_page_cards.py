"""Draws the pictures of the page's first screen as one file: `python scripts/draw_page_cards.py`.

One file is one request, of which the first screen makes few.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "src" / "idefics" / "demo" / "pictures"
CARDS = ROOT / "src" / "idefics" / "page" / "static" / "cards.webp"
NAMES = ("tower.png", "picnic.png", "vegetables.png", "puppy.png")  # as the cards of index.html
CARD_SIZE = (256, 256)
QUALITY = 28  # of WebP: together about 7 kB


def draw_cards() -> Image.Image:
    """The pictures of the cards in a row."""
    width, height = CARD_SIZE
    cards = Image.new("RGB", (width * len(NAMES), height))
    for index, name in enumerate(NAMES):
        with Image.open(PICTURES / name) as picture:
            cards.paste(picture.convert("RGB").resize(CARD_SIZE), (index * width, 0))
    return cards


def main() -> None:
    """Writes the file."""
    draw_cards().save(CARDS, quality=QUALITY, method=6)
    print(f"{CARDS.relative_to(ROOT)}: {CARDS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
