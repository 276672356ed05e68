"""Fuzzes picture files and addresses of untrusted senders, guided by code coverage.

    pip install atheris
    python scripts/fuzz_pictures.py CORPUS -max_total_time=600

`CORPUS` is the folder of inputs, which the fuzzer extends; it starts with a file of each format. An input whose first
byte is even is a picture file, otherwise an address. Anything but a picture or a
`BadPicture` is a finding, and so is more than `-rss_limit_mb` (2048) of memory or `-timeout` (20 by default) seconds.
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
    from idefics.processing import untrusted
    from idefics.processing.fetch import Fetcher
    from idefics.processing.image_processor import open_picture

PUBLIC_ADDRESS = "93.184.216.34"
FILE_FETCHER = Fetcher(policy="off", untrusted=True)
URL_FETCHER = Fetcher(policy="public", untrusted=True, timeout=1.0)
SAVE_OPTIONS_BY_FORMAT = {
    "JPEG": {"progressive": True},
    "PNG": {},
    "WEBP": {"lossless": True},
    "GIF": {},
    "BMP": {},
}


def fake_getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
    """Resolves numeric addresses in any spelling as the system does, and every name to a public address."""
    try:
        address = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        address = PUBLIC_ADDRESS
    return [(None, None, None, "", (address, port))]


def fake_create_connection(address: tuple[str, int], *_: object, **__: object) -> socket.socket:
    """Makes no connection; one to anything but the public address is a finding."""
    if address[0] != PUBLIC_ADDRESS:
        raise SystemError(f"connected to {address}")
    raise ConnectionRefusedError


def fuzz_one_input(data: bytes) -> None:
    """Opens one input."""
    try:
        if data[:1] and data[0] % 2:
            URL_FETCHER.get(data[1:].decode("utf-8", "replace"))
            return
        image = open_picture(Picture(data[1:]), FILE_FETCHER)
    except BadPicture as error:
        if "\n" in str(error):
            raise SystemError(f"more than one line: {error}") from None
    else:
        if image.mode != "RGB" or not 0 < image.width * image.height <= untrusted.MAX_UNTRUSTED_PIXELS:
            raise SystemError(f"{image.mode} {image.size}")


def write_seed_corpus(corpus: Path) -> None:
    """A file of each format, and two addresses, where the corpus is empty."""
    corpus.mkdir(parents=True, exist_ok=True)
    if any(corpus.iterdir()):
        return
    image = PIL.Image.effect_noise((24, 16), 40).convert("RGB")
    for format, options in SAVE_OPTIONS_BY_FORMAT.items():
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
    write_seed_corpus(Path(folders[0]))
    socket.getaddrinfo, socket.create_connection = fake_getaddrinfo, fake_create_connection  # type: ignore[assignment]
    timeout_flags = [
        flag for flag in ("-timeout=20",) if not any("timeout=" in argument for argument in sys.argv)
    ]
    atheris.Setup([*sys.argv, *timeout_flags], fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
