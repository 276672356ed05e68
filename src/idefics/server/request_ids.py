"""The id of a request: in the `x-request-id` of its response, in the log and in the bodies of errors."""

from __future__ import annotations

import re
from contextvars import ContextVar
from uuid import uuid4

from starlette.datastructures import Headers

REQUEST_ID_HEADER = "x-request-id"
REQUEST_ID_PATTERN = re.compile(
    r"[A-Za-z0-9._:/+=@-]{1,128}"
)  # no blanks or line ends, which could forge log lines

current_request_id: ContextVar[str] = ContextVar("request_id", default="-")


def new_request_id() -> str:
    """A new random id for a request: "req_" and 32 hexadecimal digits."""
    return f"req_{uuid4().hex}"


def request_id_from_headers(headers: Headers) -> str:
    """The id that the client chose in the header x-request-id, if it is safe to log; otherwise a new one."""
    client_id = headers.get(REQUEST_ID_HEADER, "")
    return client_id if REQUEST_ID_PATTERN.fullmatch(client_id) else new_request_id()
