"""`idefics generate`: continues a raw prompt of texts and pictures, without a chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idefics.cli.command import LoadModel, command
from idefics.cli.flags import STDIN, ModelFlags, PositionalArguments, flag_group
from idefics.cli.output import OutputWriter
from idefics.cli.pictures import NamedPicture, fetch_and_check_picture, read_standard_input
from idefics.cli.sampling import SamplingFlags
from idefics.errors import BadPrompt
from idefics.messages import ContentPart

if TYPE_CHECKING:
    from idefics.processing.fetch import Fetcher


@flag_group
class ItemArguments:
    """The positional arguments: the items of the raw prompt, in order."""

    items: PositionalArguments


@command(
    'idefics generate photo.jpg "This is a picture of"',
    'idefics generate cat.jpg "A cat." dog.jpg "A dog." photo.jpg "A" --max-new-tokens 8',
    'idefics generate photo.jpg "Question: What is it? Answer:" --stop "Question:"',
    usage="ITEM...",
)
def generate(
    writer: OutputWriter,
    load_model: LoadModel,
    arguments: ItemArguments,
    model: ModelFlags,
    sampling: SamplingFlags,
) -> None:
    """Continue a raw prompt of texts and pictures, exactly as given.

    An ITEM that is an http(s) address, a data URI, - for standard input, or an existing file is a picture or video;
    anything else is text. Special tokens in a text keep their meaning.
    """
    from idefics.processing.fetch import Fetcher

    if not arguments.items:
        raise BadPrompt('no prompt given: name texts and pictures, as in photo.jpg "This is a picture of"')
    options = sampling.options(as_json=writer.as_json)
    fetcher = Fetcher(policy=model.remote_images)
    parts = [_parse_item(item, fetcher) for item in arguments.items]
    vlm = load_model(model)
    if writer.is_interactive:
        writer.write_stream(vlm.generate(parts, stream=True, **options))
    else:
        writer.write_result(vlm.generate(parts, **options), model=vlm)


def _parse_item(item: str, fetcher: Fetcher) -> ContentPart:
    """Parses an argument into text, or into a picture or video; raises BadPicture if that cannot be read."""
    from idefics.processing.prompt_items import parse_item

    part = read_standard_input() if item == STDIN else parse_item(item)
    return (
        part if isinstance(part, str) else fetch_and_check_picture(NamedPicture(item, part), fetcher).picture
    )
