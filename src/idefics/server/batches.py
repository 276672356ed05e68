"""`/v1/batches`: requests in a file, answered when no client waits; the answers are a file too."""

from __future__ import annotations

import time
from asyncio import to_thread
from functools import partial
from typing import Annotated, Literal, cast
from uuid import uuid4

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field

from idefics.batch.openai_batch import BATCH_URLS, MAX_LINES
from idefics.server.batch_folder import DEFAULT_LIFETIME, BatchFolder, StoredBatch
from idefics.server.batch_queue import BatchQueue
from idefics.server.batch_results import BatchOutputLine, read_results
from idefics.server.errors import APIError
from idefics.server.files import (
    INVALID_DOCS,
    NOT_FOUND_DOCS,
    AfterParameter,
    BatchFolderDep,
    ExpiresAfter,
    ListFields,
    OwnerDep,
    find_file,
    paginate,
)
from idefics.server.request_model import RequestModel
from idefics.server.response_builder import OutputTokensDetails
from idefics.server.response_fields import PromptTokensDetails, ResponseFields
from idefics.server.routing import JSONBodyRoute, document_responses

COMPLETION_SECONDS = 24 * 3600  # of the `completion_window` "24h"
MAX_UNFINISHED_BATCHES, MAX_BATCHES = (
    64,
    1000,
)  # of one API key; of more batches, the oldest that ended are forgotten

router = APIRouter(tags=["OpenAI"], route_class=JSONBodyRoute)

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
Endpoint = Literal[BATCH_URLS]  # type: ignore[valid-type]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class BatchRequest(RequestModel):
    """A file of requests to answer."""

    input_file_id: str = Field(max_length=64)
    endpoint: Endpoint
    completion_window: Literal["24h"]
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    output_expires_after: ExpiresAfter | None = None


class BatchLineError(ResponseFields):
    """What is wrong with a line of the file, or with the whole file."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrorList(ResponseFields):
    """Why a batch failed."""

    object: Literal["list"]
    data: list[BatchLineError]


class BatchRequestCounts(ResponseFields):
    """Numbers of requests: all, those answered, and those answered with an error."""

    total: int
    completed: int
    failed: int


class BatchUsage(ResponseFields):
    """Tokens of all answers."""

    input_tokens: int
    input_tokens_details: PromptTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class BatchObject(ResponseFields):
    """A batch: its status, and the files with its answers and errors."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrorList | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchRequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None


class BatchResults(ResponseFields):
    """Some of the results that a running batch has so far; the next ones follow `last`."""

    object: Literal["list"]
    data: list[BatchOutputLine]
    last: int
    has_more: bool
    status: BatchStatus
    request_counts: BatchRequestCounts


class BatchList(ListFields):
    """A page of the list of batches."""

    data: list[BatchObject]


async def _get_queue(request: Request) -> BatchQueue:
    """The queue of the app that answers a request."""
    return cast("BatchQueue", request.app.state.batch_queue)


BatchQueueDep = Annotated[BatchQueue, Depends(_get_queue)]


@router.post("/v1/batches", responses=document_responses(BatchObject) | NOT_FOUND_DOCS)
async def create_batch(
    request: BatchRequest, folder: BatchFolderDep, queue: BatchQueueDep, owner: OwnerDep
) -> BatchObject:
    """Begins to answer the requests of a file."""
    file = find_file(folder, request.input_file_id, owner, "input_file_id")
    if file.purpose != "batch":
        raise APIError(
            400, f"file {file.id} has the answers of a batch: give one with requests", param="input_file_id"
        )
    batches = folder.batches.list(owner)
    if sum(not batch.is_final for batch in batches) >= MAX_UNFINISHED_BATCHES:
        raise APIError(
            400, f"{MAX_UNFINISHED_BATCHES} batches have not ended, which is the limit: wait for one"
        )
    for batch in [batch for batch in batches[MAX_BATCHES - 1 :] if batch.is_final]:
        folder.batches.remove(batch)
    now, expiry = time.time_ns(), request.output_expires_after
    batch = StoredBatch(
        id=f"batch_{uuid4().hex}",
        owner=owner,
        created_ns=now,
        endpoint=request.endpoint,
        input_file_id=file.id,
        completion_window=request.completion_window,
        metadata=request.metadata,
        expires_at=now // 10**9 + COMPLETION_SECONDS,
        output_lifetime=expiry.seconds if expiry else DEFAULT_LIFETIME,
    )
    await folder.batches.save(batch)
    queue.add(batch)
    return _batch_object(batch)


@router.get("/v1/batches", responses=document_responses(BatchList) | INVALID_DOCS)
async def list_batches(
    folder: BatchFolderDep,
    owner: OwnerDep,
    after: AfterParameter = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> BatchList:
    """Lists the batches of the API key, the newest first."""
    page, fields = paginate(folder.batches.list(owner), after, limit)
    return {**fields, "data": [_batch_object(batch) for batch in page]}


@router.get("/v1/batches/{batch_id}", responses=document_responses(BatchObject) | NOT_FOUND_DOCS)
async def get_batch(batch_id: str, folder: BatchFolderDep, owner: OwnerDep) -> BatchObject:
    """Describes a batch."""
    return _batch_object(find_batch(folder, batch_id, owner))


@router.get(
    "/v1/batches/{batch_id}/results",
    responses=document_responses(BatchResults) | NOT_FOUND_DOCS | INVALID_DOCS,
)
async def list_results(
    batch_id: str,
    folder: BatchFolderDep,
    owner: OwnerDep,
    after: Annotated[int, Query(ge=0, le=MAX_LINES, description="`last` of the results before.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> BatchResults:
    """Lists what a batch has answered while it runs, in the order of the answers.

    A batch that has ended has no results here: all are in its output files.
    """
    batch = find_batch(folder, batch_id, owner)
    read = partial(read_results, folder.ledger_path(batch), after, limit)
    results, last, has_more = ([], after, False) if batch.is_final else await to_thread(read)
    return {
        "object": "list",
        "data": cast("list[BatchOutputLine]", results),
        "last": last,
        "has_more": has_more,
        "status": cast("BatchStatus", batch.status),
        "request_counts": _request_counts(batch),
    }


@router.post("/v1/batches/{batch_id}/cancel", responses=document_responses(BatchObject) | NOT_FOUND_DOCS)
async def cancel_batch(
    batch_id: str, folder: BatchFolderDep, queue: BatchQueueDep, owner: OwnerDep
) -> BatchObject:
    """Ends a batch: requests in hand are answered, and no further ones."""
    batch = find_batch(folder, batch_id, owner)
    if batch.status in ("validating", "in_progress"):
        await queue.cancel(batch)
    elif batch.status not in ("cancelling", "cancelled"):
        raise APIError(400, f"batch {batch.id} is {batch.status}, and cannot be cancelled any more")
    return _batch_object(batch)


def find_batch(folder: BatchFolder, id: str, owner: str) -> StoredBatch:
    """The batch of an id. Raises an `APIError` (404) if the owner has none."""
    batch = folder.batches.find(id, owner)
    if batch is None:
        raise APIError(404, f"there is no batch {id[:100]!r}", code="batch_not_found", param="batch_id")
    return batch


def _batch_object(batch: StoredBatch) -> BatchObject:
    """The description of a batch."""
    times, usage, errors = batch.status_times, batch.usage, cast("list[BatchLineError]", batch.errors)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": cast("BatchStatus", batch.status),
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_ns // 10**9,
        "in_progress_at": times.get("in_progress"),
        "expires_at": batch.expires_at,
        "finalizing_at": times.get("finalizing"),
        "completed_at": times.get("completed"),
        "failed_at": times.get("failed"),
        "expired_at": times.get("expired"),
        "cancelling_at": times.get("cancelling"),
        "cancelled_at": times.get("cancelled"),
        "request_counts": _request_counts(batch),
        "usage": {
            "input_tokens": usage["input_tokens"],
            "input_tokens_details": {"cached_tokens": usage["cached_tokens"]},
            "output_tokens": usage["output_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["input_tokens"] + usage["output_tokens"],
        }
        if usage
        else None,
        "metadata": batch.metadata,
    }


def _request_counts(batch: StoredBatch) -> BatchRequestCounts:
    """How many lines of a batch are answered."""
    return {"total": batch.total, "completed": batch.completed, "failed": batch.failed}
