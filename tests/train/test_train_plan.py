"""What is planned before weights are loaded: counted tokens, the longest rows, sample rows; and pictures for people."""

import io
import os
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

from idefics.errors import BadPicture
from idefics.train.plan import plan_training
from idefics.train.settings import TrainSettings
from idefics.train.trainee import load_trainee
from idefics.train.training import run, train_rows
from train.training_data import FAMILIES, write_pictures, write_rows


@pytest.fixture
def path(tmp_path):
    folder = write_pictures(tmp_path)
    return write_rows(
        folder / "rows.jsonl",
        {"images": ["wide.png", "tall.jpg"], "question": "What is it?", "answer": "Two of them."},
        {"question": "And now?", "answer": "x"},
        *({"image": "wide.png", "question": "And here?", "answer": word} for word in ("one", "two", "six")),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_counted_as_the_rows_have_them(get_checkpoint, path, name):
    rows = get_checkpoint(name).read(path)
    counts, made = rows.count_tokens(), [rows[index] for index in range(len(rows))]
    assert counts.lengths.tolist() == [len(row) for row in made]
    assert counts.targets.tolist() == [row.num_targets for row in made]
    image_tokens = [sum(map(len, row.image_token_positions)) for row in made]
    assert counts.image_tokens.tolist() == image_tokens
    assert counts.num_distinct_image_tokens == image_tokens[0]


def test_rows_that_are_left_out_are_not_counted(get_checkpoint, path):
    checkpoint = get_checkpoint(next(iter(FAMILIES)))
    rows = checkpoint.read(path)
    longest = int(rows.lengths.max())
    fewer = checkpoint.read(path, max_tokens=longest - 1, too_long="skip")
    kept = rows.lengths < longest
    for name in ("lengths", "targets", "image_tokens"):
        assert np.array_equal(
            getattr(fewer.count_tokens(), name), getattr(rows.count_tokens(), name)[kept]
        ), name


def test_rows_are_known_by_their_tokens_and_pictures(get_checkpoint, path):
    checkpoint = get_checkpoint("smolvlm-256m")
    rows = checkpoint.read(path)
    digest = rows.digest()
    assert digest == checkpoint.read(path).digest() and digest.changes_to(digest) == []
    lines = path.read_text()
    others = []
    for word in ("xis", "isx", "sxi", "ixs", "xsi"):
        path.write_text(lines.replace("six", word))
        others.append(checkpoint.read(path))
        assert digest.changes_to(others[-1].digest()) == ["texts of the rows have changed"]
    assert any(np.array_equal(other.lengths, rows.lengths) for other in others)
    path.write_text(lines)
    assert digest == checkpoint.read(path).digest()
    changed = ["pictures of the rows have changed, or how they are preprocessed"]
    assert digest.changes_to(checkpoint.read(path, max_tiles=1).digest()) == changed
    picture = path.parent / "tall.jpg"
    os.utime(picture, (1, 1))
    assert digest == checkpoint.read(path).digest(), "as a copy has it"
    data = picture.read_bytes()
    picture.write_bytes(data[:-3] + b"\0" + data[-2:])
    assert digest.changes_to(checkpoint.read(path).digest()) == changed
    path.write_text(lines.partition("\n")[2])
    assert digest.changes_to(checkpoint.read(path).digest()) == ["there were 5 rows and are 4"]


def test_the_plan_knows_the_longest_rows_and_samples_at_equal_distances(path):
    settings = TrainSettings(data=str(path), model="demo", out="adapter", batch_size=2, epochs=2)
    plan = plan_training(settings)
    lengths = plan.rows.count_tokens().lengths
    assert len(plan.longest) == 2 and min(lengths[plan.longest]) >= np.sort(lengths)[-2]
    assert plan.forecast.num_steps == 5
    assert [row.name[-1] for row in plan.sample_rows(2)] == ["1", "3"]
    assert [row.name[-1] for row in plan.sample_rows(9)] == ["1", "2", "3", "4", "5"]
    assert plan.sample_rows(0) == []


def test_samples_have_different_answers(path):
    rows = [{"image": "wide.png", "question": "May I?", "answer": one} for one in ("Yes.", "No.") * 8]
    write_rows(path, *rows)
    plan = plan_training(TrainSettings(data=str(path), model="demo", out="adapter"))
    assert [row.name.rpartition("#")[2] for row in plan.sample_rows(4)] == ["1", "2", "5", "9"]


def test_validation_rows_that_are_left_out_are_counted(path):
    settings = TrainSettings(data=str(path), val=str(path), model="demo", out="adapter", too_long="skip")
    longest = int(plan_training(settings).rows.lengths.max())
    forecast = plan_training(replace(settings, max_tokens=longest - 1)).forecast
    assert forecast.lines()[1] == "4 validation rows; 1 too long ones are left out"
    facts = forecast.facts()
    assert (facts["validation_rows"], facts["validation_rows_left_out"]) == (4, 1)


def test_thumbnails_show_the_pictures(get_checkpoint, path):
    row = get_checkpoint(next(iter(FAMILIES))).read(path)[0]
    thumbnails = [PIL.Image.open(io.BytesIO(data)) for data in row.read_thumbnails()]
    assert [image.format for image in thumbnails] == ["JPEG", "JPEG"]
    for image, name in zip(thumbnails, ("wide.png", "tall.jpg"), strict=True):
        with PIL.Image.open(path.parent / name) as original:
            assert image.width / image.height == pytest.approx(original.width / original.height, rel=0.05)
    (path.parent / "wide.png").write_bytes(b"other")
    with pytest.raises(BadPicture, match="has changed since the rows were read"):
        row.read_thumbnails()


def test_forecast_dry_run_and_samples_change_nothing_in_the_result(path, tmp_path):
    """`run` writes what the bare loop writes, to the bit."""
    fixed = {"data": str(path), "model": "demo", "steps": 2, "batch_size": 3, "dropout": 0.1}
    whole = TrainSettings(out=tmp_path / "whole", val=str(path), validate_every=1, sample_every=1, **fixed)
    run(whole)
    bare = TrainSettings(out=tmp_path / "bare", **fixed)
    plan = plan_training(bare)
    train_rows(load_trainee(plan.checkpoint, bare), plan.rows, None, bare)
    first, second = (load_file(one.out / "adapter_model.safetensors") for one in (whole, bare))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
