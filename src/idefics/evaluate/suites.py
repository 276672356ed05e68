"""All suites, by name. The splits are those of the published figures where their answers are public."""

from __future__ import annotations

from functools import partial
from typing import Any

from idefics.evaluate.layouts.choices import imagenet_names
from idefics.evaluate.suite import Suite

_captions = partial(Suite, answer="caption", metric="cider")
_questions = partial(Suite, answer="text", metric="vqa", has_questions=True)
_choices: Any = partial(Suite, answer="rank", metric="accuracy", has_questions=True)

_SUITES = (
    _captions(
        name="coco",
        files="dataset_coco.json, val2014/",
        help="COCO captions",
        layout="coco_captions",
        split="test",
    ),
    _captions(
        name="nocaps",
        files="nocaps_val_4500_captions.json, val/",
        help="NoCaps captions",
    ),
    _captions(
        name="flickr30k",
        files="dataset_flickr30k.json, flickr30k-images/",
        help="Flickr30k captions, Karpathy's split",
        split="test",
    ),
    _captions(
        name="textcaps",
        files="TextCaps_0.1_val.json, train_images/",
        help="TextCaps: captions with written words",
    ),
    _questions(
        name="vqav2",
        files="v2_*_questions.json, v2_*_annotations.json, val2014/",
        help="VQAv2: questions about COCO's pictures",
    ),
    _questions(
        name="okvqa",
        files="OpenEnded_*_questions.json, mscoco_*_annotations.json, val2014/",
        help="OK-VQA: questions that need knowledge",
    ),
    _questions(
        name="textvqa",
        files="TextVQA_0.5.1_val.json, train_images/",
        help="TextVQA: questions about written words",
    ),
    _questions(
        name="vizwiz",
        files="Annotations/val.json, val/",
        help="VizWiz: questions of blind people",
    ),
    _questions(
        name="docvqa",
        files="spdocvqa_qas/, spdocvqa_images/",
        help="DocVQA: questions about scanned pages",
        metric="anls",
    ),
    _choices(
        name="scienceqa",
        files="problems.json, pid_splits.json, images/",
        help="ScienceQA: school questions with a picture",
        split="test",
        excluded_fields=("solution",),
    ),
    _choices(
        name="mmmu",
        files="SUBJECT/validation-*.parquet",
        help="MMMU: college questions, several pictures",
        open_prompts="mmmu-open",
        split="validation",
        support_split="dev",
    ),
    _choices(
        name="mmstar",
        files="mmstar.parquet",
        help="MMStar: questions that need the picture",
    ),
    _choices(
        name="mathvista",
        files="testmini-*.parquet",
        help="MathVista: mathematics in pictures",
        open_prompts="mathvista-open",
        split="testmini",
    ),
    Suite(
        name="hateful-memes",
        files="test_seen.jsonl, img/",
        help="HatefulMemes: is a meme hateful",
        answer="rank",
        metric="roc-auc",
        split="test_seen",
        labels=("no", "yes"),
    ),
    Suite(
        name="rendered-sst2",
        files="test/negative/, test/positive/",
        help="RenderedSST2: film reviews as pictures",
        answer="rank",
        metric="accuracy",
        split="test",
        labels=("negative", "positive"),
    ),
    Suite(
        name="imagenet",
        files="val/CLASS/, LOC_synset_mapping.txt",
        help="ImageNet-1k, 1,000 classes ranked",
        answer="rank",
        metric="accuracy",
        labels=tuple(sorted(set(imagenet_names().values()))),
    ),
    Suite(
        name="visdial",
        files="visdial_1.0_val*.json, VisualDialog_val2018/",
        help="VisDial: 100 candidate answers ranked",
        answer="rank",
        metric="ndcg",
        has_questions=True,
    ),
    Suite(
        name="winoground",
        files="examples.jsonl, images/",
        help="Winoground: which caption for which picture",
        answer="rank",
        metric="winoground",
        split="test",
        is_length_normalized=True,
    ),
    _questions(
        name="easy-vqa",
        files="installed, or its folder",
        help="easy-VQA: questions about drawings of one shape",
        split="test",
    ),
    _questions(
        name="demo",
        files="bundled",
        help="drawn scenes that the demo checkpoints know; bundled",
        layout="scenes",
        split="test",
        metric="exact-match",
    ),
    _questions(
        name="folder",
        files="a table with image and answer",
        help="your own pictures, with right answers",
        layout="table",
        metric="exact-match",
        split="",
        support_split="",
    ),
)
SUITES: dict[str, Suite] = {suite.name: suite for suite in _SUITES}
