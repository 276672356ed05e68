"""`/v1/images/fetch`: a picture from an address, for a client that wants to show what it asks about."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter
from fastapi.responses import Response

from idefics.formats import SIGNATURE_BYTES, detect_image_format
from idefics.messages import Picture
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_picture
from idefics.server.chat_messages import picture_from_url
from idefics.server.request_body import JSONBodyRoute
from idefics.server.request_model import RequestModel, make_field_table
from idefics.server.routing import RequestContextDep

router = APIRouter(prefix="/v1/images", tags=["Tasks"], route_class=JSONBodyRoute)

FILE_SCHEMA = {"type": "string", "contentMediaType": "application/octet-stream"}


class ImageFetchRequest(RequestModel):
    """The http(s) address of a picture, or a data URI."""

    ignored_fields = make_field_table(any_value=("model",))  # there is only one

    image_url: str


@router.post(
    "/fetch",
    response_class=Response,
    responses={
        200: {"description": "The file of the picture.", "content": {"image/*": {"schema": FILE_SCHEMA}}}
    },
)
async def fetch_image(request: ImageFetchRequest, context: RequestContextDep) -> Response:
    """Fetches a picture as a question about it would, by the policy of `--remote-images`, and sends its file."""
    picture = picture_from_url(request.image_url)
    context.service.admission.reserve(context.slot, pictures=1)
    fetcher = context.service.vlm.processor.fetcher
    data = await context.run_in_worker(partial(_fetch_checked, fetcher, str(picture.source)), [picture])
    image_format = detect_image_format(data[:SIGNATURE_BYTES])
    assert image_format is not None  # it was opened
    headers = {"content-disposition": "attachment", "x-content-type-options": "nosniff"}
    return Response(data, headers=headers, media_type=f"image/{image_format.title.lower()}")


def _fetch_checked(fetcher: Fetcher, url: str) -> bytes:
    """The file at a URL. Raises BadPicture unless it is a picture that the server reads."""
    data = fetcher.get(url)
    open_picture(Picture(data), fetcher)
    return data
