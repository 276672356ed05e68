"""`idefics generate`: a raw prompt of texts and pictures, exactly as given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from idefics.cli import look
from idefics.cli.flags import Arguments, ModelFlags, OutputFlags
from idefics.cli.output import Screen
from idefics.cli.pictures import STDIN, Named, opened, standard_input
from idefics.cli.sampling import SamplingFlags
from idefics.errors import BadPrompt
from idefics.messages import Part

if TYPE_CHECKING:
    from idefics.processing.fetch import Fetcher

HELP = """
Continue a raw prompt: texts and pictures in any order, exactly as given.

An ITEM is a picture or video where it is an http(s) address, a data URI, - for standard input, or an existing file;
anything else is text. Special tokens in a text are honoured.
"""
EXAMPLES = (
    'idefics generate photo.jpg "This is a picture of"',
    'idefics generate cat.jpg "A cat." dog.jpg "A dog." photo.jpg "A" --max-new-tokens 8',
    'idefics generate photo.jpg "Question: What is it? Answer:" --stop "Question:"',
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    look.add(app, "generate", _generate, help=HELP, usage="ITEM...", examples=EXAMPLES)


def _generate(
    context: typer.Context,
    items: Arguments,
    *,
    model: ModelFlags,
    sampling: SamplingFlags,
    output: OutputFlags,
) -> int:
    from idefics.processing.fetch import Fetcher

    if not items:
        raise BadPrompt('no prompt given: name texts and pictures, as in photo.jpg "This is a picture of"')
    options = sampling.options(as_json=output.json)
    fetcher = Fetcher(policy=model.remote_images)
    parts = [_part(item, fetcher) for item in items]
    with Screen(context.command_path, as_json=output.json) as screen:
        vlm = context.obj(model, screen)
        if screen.person:
            screen.stream(vlm.generate(parts, stream=True, **options))
        else:
            screen.answer(vlm.generate(parts, **options), model=vlm)
        return screen.code


def _part(item: str, fetcher: Fetcher) -> Part:
    """Text, or a picture or video that is known to be one."""
    from idefics.processing.prompt_items import to_part

    part = standard_input() if item == STDIN else to_part(item)
    return part if isinstance(part, str) else opened(Named(item, part), fetcher).picture
