"""Asks a question about a video; a model that was not trained with video, as the demo, is asked about each frame.

    pip install 'idefics[video]'
    python examples/video.py holiday.mp4 "What happens?" --model smolvlm2-500m
    python examples/video.py

Without a file, the bundled pictures are the frames of a video of one frame a second.
"""

import argparse
from pathlib import Path

import idefics

BUNDLED = Path(idefics.__file__).parent / "demo" / "pictures"

parser = argparse.ArgumentParser()
parser.add_argument("video", nargs="?", type=Path)
parser.add_argument("question", nargs="?", default="What can you see?")
parser.add_argument("--model", default="demo")
args = parser.parse_args()

frames = [] if args.video else sorted(BUNDLED.glob("*.png"))
video = idefics.Video(args.video) if args.video else idefics.Video(frames, fps=1.0)
with idefics.load(args.model) as vlm:
    try:
        print(vlm.ask(video, args.question))
    except idefics.BadVideo as error:
        if not frames:
            raise SystemExit(str(error)) from None
        for second, answer in enumerate(vlm.ask(frames, args.question)):
            print(f"second {second}: {answer}")
