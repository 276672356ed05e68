"""Files and addresses from strangers, bent by a fuzzer that watches which code they reach.

    pip install atheris
    python scripts/fuzz_pictures.py CORPUS -max_total_time=600

`CORPUS` is a folder that the fuzzer keeps what it finds in; it begins with a file of each format. An input whose first
byte is even is a picture file, else an address of one. Whatever comes out but a picture or a `BadPicture` is a find,
and so is what takes more than `-rss_limit_mb` (2048) or `-timeout` (20 seconds, unless said otherwise).
"""

from __future__ import annotations

import io
import socket
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["PIL", "httpx", "idefics"]):
    import PIL.Image

    from idefics.errors import BadPicture
    from idefics.messages import Picture
    from idefics.processing import strangers
    from idefics.processing.fetch import Fetcher
    from idefics.processing.images import open_picture

OUTSIDE = "93.184.216.34"
FILES = Fetcher(policy="off", strangers=True)
ADDRESSES = Fetcher(policy="public", strangers=True, timeout=1.0)
SAVED = {"JPEG": {"progressive": True}, "PNG": {}, "WEBP": {"lossless": True}, "GIF": {}, "BMP": {}}


def look_up(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
    """Numbers as a system reads them, however they are spelled; any name is outside."""
    try:
        address = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        address = OUTSIDE
    return [(None, None, None, "", (address, port))]


def connect(address: tuple[str, int], *_: object, **__: object) -> socket.socket:
    """No connection is made; one to anywhere but outside is a find."""
    if address[0] != OUTSIDE:
        raise SystemError(f"connected to {address}")
    raise ConnectionRefusedError


def test(data: bytes) -> None:
    """One input."""
    try:
        if data[:1] and data[0] % 2:
            ADDRESSES.get(data[1:].decode("utf-8", "replace"))
            return
        image = open_picture(Picture(data[1:]), FILES)
    except BadPicture as error:
        if "\n" in str(error):
            raise SystemError(f"more than one line: {error}") from None
    else:
        if image.mode != "RGB" or not 0 < image.width * image.height <= strangers.MOST_PIXELS:
            raise SystemError(f"{image.mode} {image.size}")


def sow(corpus: Path) -> None:
    """A file of each format, and two addresses, where the corpus is empty."""
    corpus.mkdir(parents=True, exist_ok=True)
    if any(corpus.iterdir()):
        return
    image = PIL.Image.effect_noise((24, 16), 40).convert("RGB")
    for format, options in SAVED.items():
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        (corpus / format.lower()).write_bytes(b"\0" + buffer.getvalue())
    for number, address in enumerate(
        ("https://photos.example.com:443/a.png?b#c", "http://[::1]/", "http://0x7f.1/")
    ):
        (corpus / f"address{number}").write_bytes(b"\1" + address.encode())


def main() -> None:
    """Runs until the fuzzer is told to stop, or finds something."""
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if len(folders) != 1:
        sys.exit("give one folder for the corpus: python scripts/fuzz_pictures.py CORPUS -max_total_time=600")
    sow(Path(folders[0]))
    socket.getaddrinfo, socket.create_connection = look_up, connect  # type: ignore[assignment]
    limits = [flag for flag in ("-timeout=20",) if not any("timeout=" in argument for argument in sys.argv)]
    atheris.Setup([*sys.argv, *limits], test)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
