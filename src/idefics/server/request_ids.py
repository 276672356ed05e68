"""The id of a request: in the `x-request-id` of its answer, in the log and in error bodies."""

from __future__ import annotations

import re
from contextvars import ContextVar
from uuid import uuid4

from starlette.types import Scope

REQUEST_ID_HEADER = b"x-request-id"
REQUEST_ID_PATTERN = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")  # nothing that could forge a line of the log

current_request_id: ContextVar[str] = ContextVar(
    "request_id", default="-"
)  # of the request that is being answered


def new_request_id() -> str:
    """A fresh id."""
    return f"req_{uuid4().hex}"


def request_id_from_headers(scope: Scope) -> str:
    """The id that a client has given its request in `x-request-id`, where it may stand in a log; else a new one."""
    client_id = next((value for key, value in scope["headers"] if key == REQUEST_ID_HEADER), b"")
    return client_id.decode() if REQUEST_ID_PATTERN.fullmatch(client_id) else new_request_id()
