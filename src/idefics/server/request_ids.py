"""The id of a request: in the `x-request-id` of its answer, in the log and in error bodies."""

from __future__ import annotations

import re
from contextvars import ContextVar
from uuid import uuid4

from starlette.types import Scope

HEADER = b"x-request-id"
ACCEPTED = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")  # nothing that could forge a line of the log

current: ContextVar[str] = ContextVar("request_id", default="-")  # of the request that is being answered


def new_id() -> str:
    """A fresh id."""
    return f"req_{uuid4().hex}"


def request_id(scope: Scope) -> str:
    """The id that a client has given its request in `x-request-id`, where it may stand in a log; else a new one."""
    given = next((value for key, value in scope["headers"] if key == HEADER), b"")
    return given.decode() if ACCEPTED.fullmatch(given) else new_id()
