"""Streams stories about several pictures at the same time, in asyncio.

    python examples/stream_asyncio.py
    python examples/stream_asyncio.py a.jpg b.jpg --model smolvlm-500m

The engine generates the stories in one batch; their pieces are printed as they come.
"""

import argparse
import asyncio
from pathlib import Path

import idefics

BUNDLED = Path(idefics.__file__).parent / "demo" / "pictures"

parser = argparse.ArgumentParser()
parser.add_argument("pictures", nargs="*", type=Path, default=[BUNDLED / "tower.png", BUNDLED / "puppy.png"])
parser.add_argument("--model", default="demo")
args = parser.parse_args()


async def tell_story(vlm: idefics.Idefics, picture: Path) -> None:
    """Prints a story piece by piece; the picture is prepared in a thread, so that the event loop stays free."""
    stream = await asyncio.to_thread(vlm.write, picture, stream=True)
    async for delta in stream.deltas():
        print(f"{picture.name}: {delta.text!r}", flush=True)
    print(f"{picture.name}: {len(stream.answer.tokens)} tokens, finish reason: {stream.answer.finish}")


async def main() -> None:
    """Loads the model and tells all stories at the same time."""
    with idefics.load(args.model) as vlm:
        await asyncio.gather(*(tell_story(vlm, picture) for picture in args.pictures))


asyncio.run(main())
