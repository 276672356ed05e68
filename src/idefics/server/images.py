"""`/v1/images/cost`: what a picture costs, before it is sent; `/v1/images/fetch`: a picture from an address."""

from __future__ import annotations

from functools import partial
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from idefics.formats import SIGNATURE_BYTES, detect_image_format
from idefics.messages import Detail, ImageDetail, Picture
from idefics.processing.fetch import Fetcher
from idefics.processing.image_processor import open_picture
from idefics.processing.picture_expansion import compute_image_cost
from idefics.processing.untrusted import MAX_UNTRUSTED_PIXELS
from idefics.server.chat_messages import MaxTiles, picture_from_url
from idefics.server.errors import APIError
from idefics.server.request_model import RequestModel, make_field_table
from idefics.server.response_fields import ResponseFields
from idefics.server.routing import FILE_SCHEMA, JSONBodyRoute, RequestContextDep, document_responses

MAX_SIDE = 65_535  # pixels; that of JPEG

router = APIRouter(prefix="/v1/images", tags=["Tasks"], route_class=JSONBodyRoute)


class ImageCostRequest(RequestModel):
    """The size of a picture in pixels, upright, and the detail in which it would be sent."""

    ignored_fields = make_field_table(any_value=("model",))  # all cost the same

    width: int = Field(ge=1, le=MAX_SIDE)
    height: int = Field(ge=1, le=MAX_SIDE)
    detail: Detail | None = None
    max_tiles: MaxTiles | None = None


class ImageCostResponse(ResponseFields):
    """The cost of a picture in a prompt of its own.

    `rows` and `columns` are 0 where the picture stays whole. `tiles` counts the view of the whole picture too.
    """

    object: Literal["image.cost"]
    rows: int
    columns: int
    tiles: int
    tokens: int


@router.post("/cost", responses=document_responses(ImageCostResponse))
async def image_cost(request: ImageCostRequest, context: RequestContextDep) -> ImageCostResponse:
    """Says how many tiles and tokens a picture of a size would take."""
    if (num_pixels := request.width * request.height) > MAX_UNTRUSTED_PIXELS:
        raise APIError(
            400,
            f"a picture of {request.width} x {request.height} has {num_pixels:,} pixels, and the limit is "
            f"{MAX_UNTRUSTED_PIXELS:,}: make it smaller",
            param="width",
        )
    image_detail = ImageDetail(request.detail or "high", request.max_tiles)
    processor = context.service.vlm.processor
    measure = partial(compute_image_cost, processor, request.width, request.height, image_detail)
    cost = await context.run_in_worker(measure)
    return {
        "object": "image.cost",
        "rows": cost.rows,
        "columns": cost.columns,
        "tiles": cost.num_frames,
        "tokens": cost.num_tokens,
    }


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
