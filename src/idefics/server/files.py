"""`/v1/files`: files with the requests of batches, which clients send, and with their answers."""

from __future__ import annotations

import re
import shutil
import time
from asyncio import to_thread
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse
from pydantic import Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from idefics.batch.openai_batch import MAX_FILE_BYTES
from idefics.batch.output_file import replace_file
from idefics.errors import format_bytes
from idefics.server.batch_folder import DEFAULT_LIFETIME, BatchFolder, S, StoredFile
from idefics.server.errors import APIError, ErrorBody
from idefics.server.middleware import UPLOAD_PATH, api_key_id
from idefics.server.request_model import RequestModel
from idefics.server.response_fields import ResponseFields
from idefics.server.routing import FILE_SCHEMA, ResponseDocs, document_responses

MAX_FILES = 1000  # of one API key
MAX_FORM_FIELDS = 8
MAX_FIELD_BYTES = 1024  # of a field that is no file
MAX_FILENAME_CHARACTERS = 255

router = APIRouter(tags=["OpenAI"])


class ExpiresAfter(RequestModel):
    """When a file is deleted: seconds after it was made, from an hour to 30 days."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=DEFAULT_LIFETIME)


class FileObject(ResponseFields):
    """A file: of requests (`batch`), or of answers (`batch_output`)."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]


class ListFields(ResponseFields):
    """Fields of a page of a list; `has_more` says whether `after` with `last_id` has further ones."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileList(ListFields):
    """A page of the list of files."""

    data: list[FileObject]


class DeletedFile(ResponseFields):
    """The answer to the deletion of a file."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


async def _get_folder(request: Request) -> BatchFolder:
    """The folder of the app that answers a request; what has expired is deleted from it before."""
    folder: BatchFolder = request.app.state.batch_folder
    folder.delete_expired()
    return folder


async def _get_owner(request: Request) -> str:
    """Identifies the API key of a request; "" if the server has no keys."""
    return api_key_id(request.headers) if request.app.state.service.settings.has_key else ""


BatchFolderDep = Annotated[BatchFolder, Depends(_get_folder)]
OwnerDep = Annotated[str, Depends(_get_owner)]
AfterParameter = Annotated[str | None, Query(max_length=64, description="The list goes on after this id.")]

INVALID_DOCS: ResponseDocs = {
    400: {"model": ErrorBody, "description": "Invalid request; the message says why."}
}
NOT_FOUND_DOCS: ResponseDocs = {404: {"model": ErrorBody, "description": "There is no such object."}}
NO_ROOM_DOCS: ResponseDocs = {507: {"model": ErrorBody, "description": "No room on the server's disk."}}
CONTENT_DOCS: ResponseDocs = {
    200: {
        "description": "The content of the file: a JSON object per line.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
FORM_DOCS = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": FILE_SCHEMA,
                        "purpose": {"enum": ["batch"]},
                        "expires_after[anchor]": {"enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": 3600,
                            "maximum": DEFAULT_LIFETIME,
                        },
                    },
                    "additionalProperties": False,
                }
            }
        },
    }
}


@router.post(UPLOAD_PATH, responses=document_responses(FileObject) | NO_ROOM_DOCS, openapi_extra=FORM_DOCS)
async def create_file(request: Request, folder: BatchFolderDep, owner: OwnerDep) -> FileObject:
    """Stores a file with the requests of a batch, a JSON object per line."""
    if len(folder.files.list(owner)) >= MAX_FILES:
        raise APIError(400, f"there are {MAX_FILES:,} files, which is the limit: delete some")
    try:
        async with request.form(
            max_files=1, max_fields=MAX_FORM_FIELDS, max_part_size=MAX_FIELD_BYTES
        ) as form:
            return await _store_upload(form, folder, owner)
    except APIError:
        raise
    except HTTPException as error:
        reason = str(error.detail).rstrip(".")
        raise APIError(
            400, f"the form cannot be read ({reason}): send file=@batch.jsonl and purpose=batch"
        ) from None


async def _store_upload(form: FormData, folder: BatchFolder, owner: str) -> FileObject:
    """Stores the file of a form. Raises an `APIError` if a field is missing or wrong, or there is no room."""
    fields = dict(form.multi_items())
    upload, purpose, lifetime = fields.pop("file", None), fields.pop("purpose", None), DEFAULT_LIFETIME
    if not isinstance(upload, UploadFile):
        raise APIError(400, "the form has no file: send file=@batch.jsonl", param="file")
    if purpose != "batch":
        raise APIError(400, f"the purpose is {str(purpose)[:40]!r}: it must be batch", param="purpose")
    expiry = {name: fields.pop(f"expires_after[{name}]", None) for name in ("anchor", "seconds")}
    if fields:
        name = next(iter(fields))[:100]
        raise APIError(400, f"unknown field: {name}: leave it out", code="unknown_parameter", param=name)
    if any(value is not None for value in expiry.values()):
        lifetime = _read_lifetime(expiry)
    num_bytes = upload.size or 0
    if num_bytes > MAX_FILE_BYTES:
        raise APIError(413, f"the file has {num_bytes:,} bytes; the limit is {MAX_FILE_BYTES:,}: split it")
    if not folder.has_disk_room(num_bytes):
        raise APIError(
            507,
            f"the server's disk has no room for {format_bytes(num_bytes)}: delete files",
            type="server_error",
        )
    now = time.time_ns()
    file = StoredFile(
        id=f"file-{uuid4().hex}",
        owner=owner,
        created_ns=now,
        filename=re.sub(r"[^\x20-\x7e\xa0-\ud7ff]", "_", Path(upload.filename or "").name)[
            :MAX_FILENAME_CHARACTERS
        ],
        purpose="batch",
        num_bytes=num_bytes,
        expires_at=now // 10**9 + lifetime,
    )
    await to_thread(
        replace_file, folder.content_path(file), lambda target: shutil.copyfileobj(upload.file, target)
    )
    await folder.files.save(file)
    return _file_object(file)


def _read_lifetime(expiry: dict[str, Any]) -> int:
    """The seconds of a form's `expires_after`. Raises an `APIError` (400) if it is wrong."""
    seconds = str(expiry["seconds"])
    values = expiry | {"seconds": int(seconds) if re.fullmatch("[0-9]{1,9}", seconds) else None}
    try:
        return ExpiresAfter.model_validate(values).seconds
    except ValidationError:
        message = (
            f"expires_after is {expiry}: give the anchor created_at and 3,600 to {DEFAULT_LIFETIME:,} seconds"
        )
        raise APIError(400, message, code="invalid_value", param="expires_after") from None


@router.get("/v1/files", responses=document_responses(FileList) | INVALID_DOCS)
async def list_files(
    folder: BatchFolderDep,
    owner: OwnerDep,
    after: AfterParameter = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Annotated[str | None, Query(max_length=64)] = None,
) -> FileList:
    """Lists the files of the API key."""
    found = [file for file in folder.files.list(owner) if purpose in (None, file.purpose)]
    page, fields = paginate(found if order == "desc" else found[::-1], after, limit)
    return {**fields, "data": [_file_object(file) for file in page]}


@router.get("/v1/files/{file_id}", responses=document_responses(FileObject) | NOT_FOUND_DOCS)
async def get_file(file_id: str, folder: BatchFolderDep, owner: OwnerDep) -> FileObject:
    """Describes a file."""
    return _file_object(find_file(folder, file_id, owner))


@router.get(
    "/v1/files/{file_id}/content", response_class=FileResponse, responses=CONTENT_DOCS | NOT_FOUND_DOCS
)
async def get_content(file_id: str, folder: BatchFolderDep, owner: OwnerDep) -> FileResponse:
    """Returns the content of a file."""
    path = folder.content_path(find_file(folder, file_id, owner))
    return FileResponse(path, media_type="application/octet-stream")


@router.delete(
    "/v1/files/{file_id}", responses=document_responses(DeletedFile) | INVALID_DOCS | NOT_FOUND_DOCS
)
async def delete_file(file_id: str, folder: BatchFolderDep, owner: OwnerDep) -> DeletedFile:
    """Deletes a file, unless a batch that has not ended reads it."""
    file = find_file(folder, file_id, owner)
    if user := folder.find_user(file):
        raise APIError(400, f"batch {user.id} needs the file: cancel it first, or wait for its end")
    folder.files.remove(file)
    return {"id": file_id, "object": "file", "deleted": True}


def find_file(folder: BatchFolder, id: str, owner: str, param: str = "file_id") -> StoredFile:
    """The file of an id. Raises an `APIError` (404) if the owner has none."""
    file = folder.files.find(id, owner)
    if file is None:
        raise APIError(404, f"there is no file {id[:100]!r}", code="file_not_found", param=param)
    return file


def paginate(found: list[S], after: str | None, limit: int) -> tuple[list[S], ListFields]:
    """A page of a list, and its fields.

    Args:
        found: the whole list.
        after: the id of the object before the page; None: the page is the first.
        limit: length of the page.

    Raises:
        APIError: 400, `after` is not in the list.
    """
    ids = [one.id for one in found]
    if after is not None and after not in ids:
        raise APIError(
            400, f"after is {after!r}, which is not in the list", code="invalid_value", param="after"
        )
    start = 0 if after is None else ids.index(after) + 1
    page = found[start : start + limit]
    fields: ListFields = {
        "object": "list",
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": start + limit < len(found),
    }
    return page, fields


def _file_object(file: StoredFile) -> FileObject:
    """The description of a file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created_ns // 10**9,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": "batch" if file.purpose == "batch" else "batch_output",
        "status": "processed",
    }
