"""All suites, by name."""

from __future__ import annotations

from idefics.evaluate.suite import Suite

SUITES: dict[str, Suite] = {
    one.name: one
    for one in (
        Suite(
            name="easy-vqa",
            help="questions about drawings of one shape; the Python package easy-vqa 1.0",
            answer="text",
            metric="vqa",
            layout="easy_vqa",
            split="test",
            has_questions=True,
        ),
        Suite(
            name="folder",
            help="your own pictures with a CSV, JSONL or Parquet of right answers",
            answer="text",
            metric="exact-match",
            layout="table",
            split="",
            support_split="",
            has_questions=True,
        ),
    )
}
