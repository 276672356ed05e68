"""All suites, by name. The splits are those of the published figures where their answers are public."""

from __future__ import annotations

from functools import partial
from typing import Any

from idefics.evaluate.layouts.classes import imagenet_names
from idefics.evaluate.suite import Suite

_captions = partial(Suite, answer="caption", metric="cider")
_questions = partial(Suite, answer="text", metric="vqa", has_questions=True)
_choices: Any = partial(Suite, answer="rank", metric="accuracy", has_questions=True)

_SUITES = (
    _captions(name="coco", help="COCO captions", layout="coco_captions", prompts="coco", split="test"),
    _captions(name="nocaps", help="NoCaps captions", layout="nocaps", prompts="nocaps"),
    _captions(
        name="flickr30k", help="Flickr30k captions, Karpathy's split", layout="flickr30k", prompts="flickr30k",
        split="test",
    ),
    _captions(name="textcaps", help="TextCaps: captions with written words", layout="textcaps", prompts="textcaps"),
    _questions(name="vqav2", help="VQAv2: questions about COCO's pictures", layout="vqa", prompts="vqav2"),
    _questions(name="okvqa", help="OK-VQA: questions that need knowledge", layout="vqa", prompts="okvqa"),
    _questions(name="textvqa", help="TextVQA: questions about written words", layout="textvqa", prompts="textvqa"),
    _questions(name="vizwiz", help="VizWiz: questions of blind people", layout="vizwiz", prompts="vizwiz"),
    _questions(
        name="docvqa", help="DocVQA: questions about scanned pages", layout="docvqa", prompts="docvqa", metric="anls"
    ),
    _choices(
        name="scienceqa", help="ScienceQA: school questions with a picture", layout="scienceqa", prompts="scienceqa",
        split="test", excluded_fields=("solution",),
    ),
    _choices(
        name="mmmu", help="MMMU: college questions, several pictures", layout="mmmu", prompts="mmmu",
        open_prompts="mmmu-open", split="validation", support_split="dev",
    ),
    _choices(name="mmstar", help="MMStar: questions that need the picture", layout="mmstar", prompts="mmstar"),
    _choices(
        name="mathvista", help="MathVista: mathematics in pictures", layout="mathvista", prompts="mathvista",
        open_prompts="mathvista-open", split="testmini",
    ),
    Suite(
        name="hateful-memes", help="HatefulMemes: is a meme hateful", answer="rank", metric="roc-auc",
        layout="hateful_memes", prompts="hateful-memes", split="test_seen", labels=("no", "yes"),
    ),
    Suite(
        name="rendered-sst2", help="RenderedSST2: film reviews as pictures", answer="rank", metric="accuracy",
        layout="rendered_sst2", prompts="rendered-sst2", split="test", labels=("negative", "positive"),
    ),
    Suite(
        name="imagenet", help="ImageNet-1k, 1,000 classes ranked", answer="rank", metric="accuracy",
        layout="imagenet", prompts="imagenet",
        labels=tuple(sorted(set(imagenet_names().values()))),
    ),
    Suite(
        name="visdial", help="VisDial: 100 candidate answers ranked", answer="rank", metric="ndcg", layout="visdial",
        prompts="visdial", has_questions=True,
    ),
    Suite(
        name="winoground", help="Winoground: which caption for which picture", answer="rank", metric="winoground",
        layout="winoground", prompts="winoground", split="test", is_length_normalized=True,
    ),
    _questions(
        name="easy-vqa", help="questions about drawings of one shape; the Python package easy-vqa 1.0",
        layout="easy_vqa", split="test",
    ),
    _questions(
        name="demo", help="drawn scenes that the demo checkpoints know; bundled", layout="scenes", split="test",
        metric="exact-match",
    ),
    _questions(
        name="folder", help="your own pictures with a CSV, JSONL or Parquet of right answers", layout="table",
        metric="exact-match", split="", support_split="",
    ),
)  # fmt: skip
SUITES: dict[str, Suite] = {suite.name: suite for suite in _SUITES}
