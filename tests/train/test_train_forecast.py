"""The forecast of a training: the terms of its memory, and advice where it will not fit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from idefics import models, weights
from idefics.errors import OutOfMemory, OutputError, format_bytes
from idefics.train.forecast import check_disk, check_memory, forecast_training
from idefics.train.picture_forecast import KeptPictures
from idefics.train.pictures import MEMORY_BYTES, DiskSpace
from idefics.train.rows import RowSizes, TokenCounts
from idefics.train.schedule import make_schedule
from idefics.train.settings import TrainSettings
from idefics.train.trainable import make_trainable

FREE = 2 << 30


def count_tokens(*rows, distinct=None):
    """The sizes of rows of (tokens, learned tokens, image tokens)."""
    lengths, targets, image_tokens = np.array(rows).T
    distinct = image_tokens.sum() if distinct is None else distinct
    return RowSizes.of(TokenCounts(lengths, targets, image_tokens, distinct, 0))


SIZES = count_tokens((100, 10, 9), (300, 20, 18))


def forecast(
    model="demo",
    sizes=SIZES,
    free=FREE,
    dtype=torch.float32,
    weight_dtype=torch.float32,
    disk_bytes=1 << 40,
    device="cpu",
    **values,
):
    settings = TrainSettings(data="photos", model=model, out="adapter", **values)
    checkpoint = models.read_checkpoint(weights.find_checkpoint(model))
    module = models.build_on_meta_device(checkpoint)
    learned = make_trainable(module, settings)
    made = forecast_training(
        *(module, checkpoint.config, learned, sizes, settings),
        schedule=make_schedule(settings, sizes.num_rows),
        dtype=dtype,
        weight_dtype=weight_dtype,
        device=torch.device(device),
        free=free,
        disk=DiskSpace(disk_bytes, 5 << 40),
    )
    return made, settings


def test_sizes_count_tokens_and_the_largest_micro_batch():
    assert (
        RowSizes(
            num_rows=2,
            num_tokens=400,
            num_targets=30,
            longest=300,
            most_targets=20,
            num_image_tokens=27,
            num_distinct_image_tokens=27,
            most_image_tokens=18,
        )
        == SIZES
    )
    assert count_tokens((9, 1, 9), (9, 1, 9), distinct=9).num_distinct_image_tokens == 9
    settings = TrainSettings(data="photos", model="demo", out="adapter")
    assert SIZES.micro_batch(settings) == (4096, 308)
    assert count_tokens((10, 4, 0)).micro_batch(settings) == (160, 64), "a step has 16 rows"
    assert count_tokens((9000, 4, 0)).micro_batch(settings) == (9000, 4), "a row is never cut"


def test_the_terms_are_those_of_the_model():
    made, _ = forecast(rank=4, micro_batch_tokens=300)
    # The demo's decoder has five layers of width 160 and an MLP of 448; its vocabulary has 1,152 tokens.
    config = models.read_checkpoint(weights.find_checkpoint("demo")).config
    text, vision = config.text, config.vision
    layer = 300 * (12 * text.hidden_size + 4 * text.intermediate_size) * 4
    assert (made.activations, made.layer) == (text.num_layers * layer, 0)
    widths = [(text.hidden_size, text.num_heads * text.head_size)] * 2  # q and o
    widths += [(text.hidden_size, text.num_kv_heads * text.head_size)] * 2  # k and v
    widths += [(text.hidden_size, text.intermediate_size)] * 3
    num_learned = text.num_layers * sum(4 * (a + b) for a, b in widths)
    assert (made.num_learned, made.learned) == (num_learned, 16 * num_learned)
    assert made.weights == 4 * (made.num_parameters - num_learned)
    assert made.logits == 23 * text.vocab_size * 12
    patches = 2 * vision.patches_per_side**2  # 18 features of two frames
    kept = SIZES.num_distinct_image_tokens * text.hidden_size * 4
    assert made.pictures == kept + patches * (12 * vision.hidden_size + 4 * vision.intermediate_size) * 4
    assert made.needed == sum(size for _, size in made.terms)
    on_gpu, _ = forecast(rank=4, micro_batch_tokens=300, device="cuda")
    assert (on_gpu.pictures, on_gpu.process) == (made.pictures - kept, 0), (
        "features stay in the machine's memory"
    )


def test_settings_change_the_terms():
    plain, _ = forecast()
    checkpointed, _ = forecast(gradient_checkpointing=True)
    assert checkpointed.activations < plain.activations / 10 and checkpointed.layer > 0
    half, _ = forecast(dtype=torch.bfloat16, weight_dtype=torch.bfloat16)
    assert (half.activations, half.weights) == (plain.activations // 2, plain.weights // 2)
    full, _ = forecast(method="full")
    assert full.weights == 0 and full.learned == 16 * full.num_parameters
    assert full.activations > plain.activations, "the vision tower learns too"
    eight_bits, _ = forecast(optimizer="adamw8bit")
    assert eight_bits.learned * 16 == plain.learned * 10
    small, _ = forecast(quantize="nf4")
    assert small.weights < plain.weights * 0.7
    crossed, _ = forecast("demo-idefics1")
    assert crossed.pictures > plain.pictures, "18 pictures, not two frames"


def test_a_training_that_does_not_fit_is_refused_with_advice():
    made, settings = forecast(free=50_000_000)
    with pytest.raises(OutOfMemory) as raised:
        check_memory(made, settings)
    text = str(raised.value)
    assert raised.value.free == 50_000_000 and raised.value.needed == made.needed
    for part in (
        "this training (weights 14 MB, ",
        "50 MB free",
        "micro_batch_tokens=2048, gradient_checkpointing=True, quantize=nf4, a smaller max_tiles",
    ):
        assert part in text
    made, settings = forecast(
        *("demo", count_tokens((5000, 4, 0)), 50_000_000), gradient_checkpointing=True, method="full"
    )
    with pytest.raises(OutOfMemory, match=r"free: try an adapter instead of all weights$"):
        check_memory(made, settings)
    made, settings = forecast()
    check_memory(replace(made, free=made.needed), settings)
    with pytest.raises(OutOfMemory):
        check_memory(replace(made, free=made.needed - 1), settings)


def test_the_lines_say_what_is_learned_and_what_memory_it_takes():
    found = forecast(steps=7)[0]
    rows, learned, memory = found.lines()
    assert rows == "2 rows of 400 tokens, 30 of them learned"
    fewer = replace(found, sizes=replace(found.sizes, num_left_out=3))
    assert fewer.lines()[0] == f"{rows}; 3 too long rows are left out"
    assert (
        learned.startswith("7 steps, ")
        and " numbers are learned, " in learned
        and learned.endswith("% of the model's")
    )
    assert memory.startswith("memory: at most about 1.") and "of 2.1 GB free (weights 14 MB, " in memory


def test_a_training_whose_checkpoint_does_not_fit_on_the_disk_is_refused():
    made, settings = forecast(rank=4)
    needed = 4 * 4 * made.num_learned  # values, two moments, and the adapter
    check_disk(replace(made, kept=replace(made.kept, free_disk=needed)), settings)
    with pytest.raises(
        OutputError, match=r"^adapter\.training needs 1 MB for checkpoints and the result, 1 MB free: "
    ):
        check_disk(replace(made, kept=replace(made.kept, free_disk=needed - 1)), settings)
    made, settings = forecast(rank=4, save_every=2, steps=5)
    with pytest.raises(OutputError):  # two checkpoints
        check_disk(replace(made, kept=replace(made.kept, free_disk=needed)), settings)


def test_few_steps_are_named_where_rows_are_few():
    few = replace(SIZES, num_rows=20)
    assert forecast(sizes=few)[0].lines()[-1] == "2 steps will change little: 40 epochs have 50"
    for values in ({"epochs": 40}, {"steps": 2}):
        assert forecast(sizes=few, **values)[0].lines()[-1].startswith("memory: ")


def test_the_disk_is_named_where_memory_does_not_keep_all_pictures():
    rows = 200_000  # of a picture of 9 tokens each, 5.8 kB
    many = replace(
        SIZES, num_rows=rows, num_image_tokens=9 * rows * 3, num_distinct_image_tokens=9 * rows * 3
    )
    config = models.read_checkpoint(weights.find_checkpoint("demo")).config
    kept = many.num_distinct_image_tokens * config.text.hidden_size * 4
    made, _ = forecast(sizes=many, epochs=2)
    assert made.kept == KeptPictures(
        memory=MEMORY_BYTES, disk=kept - MEMORY_BYTES, free_disk=5 << 40, encodes_again=False
    )
    assert made.lines()[-1] == (
        f"disk: at most {format_bytes(made.kept.disk)} of 5497.6 GB free, for features of pictures until training ends"
    )
    made, _ = forecast(sizes=many, disk_bytes=10**9, epochs=2)
    assert (made.kept.disk, made.kept.encodes_again) == (10**9, True)
    assert made.lines()[-1].startswith("disk: at most 1.0 GB of ")
    assert made.lines()[-1].endswith(" until training ends; others are encoded each time")
    made, _ = forecast(sizes=many)
    assert (made.kept.disk, made.kept.encodes_again) == (0, False), "one epoch shows each picture once"
    shared = replace(many, num_image_tokens=many.num_image_tokens * 2)
    assert forecast(sizes=shared)[0].kept.disk == kept - MEMORY_BYTES
    assert forecast(sizes=many, targets="all", epochs=2)[0].kept.disk == 0, "frames are not kept in files"
