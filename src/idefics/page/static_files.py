"""The page's files: HTML, CSS, JavaScript modules and the bundled pictures, served from memory.

The page is a client of the public API on the same server. Nothing of it is made or stored here.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response

from idefics.demo import pictures as bundled_pictures

STATIC_FOLDER = Path(__file__).parent / "static"
INDEX_NAME = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".webp": "image/webp",
}
COMPRESSED_SUFFIXES = (".css", ".html", ".js")
# Comments that fill lines; comments after code that have no quotes, so that they are no part of a text; indents.
_COMMENTS_AND_INDENTS = re.compile(
    r"""^[ \t]*(?:/\*.*?\*/[ \t]*$|//[^\n]*$)|(?<=[;{},)(\]])[ ]//[ ][^'"`\n]*$|^[ \t]+""",
    re.DOTALL | re.MULTILINE,
)
_BLANK_LINES = re.compile(r"\n{2,}")
_CSS_SPACES = re.compile(r"\s*([{};])\s*|(?<=[:,]) ")
# Scripts and styles of this server alone, and none inside the HTML: text of a model could not run even as HTML.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


def make_security_headers(servers: Sequence[str]) -> dict[str, str]:
    """The headers of every file.

    Args:
        servers: addresses of other servers that the page may send requests to.
    """
    connections = f"; connect-src 'self' {' '.join(servers)}" if servers else ""
    return {
        "content-security-policy": CONTENT_SECURITY_POLICY + connections,
        "cross-origin-opener-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }


def drop_comments(source: str) -> str:
    """JavaScript or CSS without comments, indents and blank lines.

    Text of a template that goes over several lines would lose them too: the page has none.
    """
    return _BLANK_LINES.sub("\n", _COMMENTS_AND_INDENTS.sub("", source)).lstrip()


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file in memory, with what HTTP needs to send it.

    Attributes:
        content: its bytes.
        media_type: its type.
        compressed: its bytes in gzip; empty for files that are compressed already.
        etag: identifies the content, so that a browser asks whether its copy is still right.
    """

    content: bytes
    media_type: str
    compressed: bytes = b""
    etag: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "etag", f'"{hashlib.sha256(self.content).hexdigest()[:20]}"')

    @classmethod
    def read(cls, path: Path) -> StaticFile:
        """Reads a file of one of `MEDIA_TYPES`."""
        content = path.read_bytes()
        if path.suffix in (".css", ".js"):
            source = drop_comments(content.decode())
            content = (_CSS_SPACES.sub(r"\1", source) if path.suffix == ".css" else source).encode()
        is_compressed = path.suffix in COMPRESSED_SUFFIXES
        compressed = gzip.compress(content, 9, mtime=0) if is_compressed else b""
        return cls(content, MEDIA_TYPES[path.suffix], compressed)

    def respond(self, request: Request, security_headers: Mapping[str, str]) -> Response:
        """The response to a request for the file: 304 without content if the browser's copy is the same."""
        headers = {**security_headers, "cache-control": "no-cache", "etag": self.etag}
        if self.compressed:
            headers["vary"] = "Accept-Encoding"
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if self.compressed and "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(self.compressed, headers=headers, media_type=self.media_type)
        return Response(self.content, headers=headers, media_type=self.media_type)


def mount_page(app: FastAPI) -> None:
    """Adds the page to the application of the API: its HTML at `/`, all other files below `/ui/`."""
    files = {one.name: StaticFile.read(one) for one in STATIC_FOLDER.iterdir()}
    files |= {f"pictures/{one.name}": StaticFile.read(one) for one in bundled_pictures()}
    index = files.pop(INDEX_NAME)
    headers = make_security_headers(app.state.service.settings.compared_servers)

    async def serve_index(request: Request) -> Response:
        return index.respond(request, headers)

    async def serve_file(request: Request, name: str) -> Response:
        file = files.get(name)
        return Response("no such file", 404) if file is None else file.respond(request, headers)

    for route, handler in (("/", serve_index), ("/ui/{name:path}", serve_file)):
        app.add_api_route(route, handler, methods=["GET", "HEAD"], include_in_schema=False)
