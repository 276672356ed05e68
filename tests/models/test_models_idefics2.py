"""What is easy to get wrong in Idefics 2, one trap a test."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from idefics.config import (
    EngineConfig,
    ImageProcessorConfig,
    PerceiverConfig,
    RopeConfig,
    Sampling,
    VisionConfig,
)
from idefics.engine.engine import Engine
from idefics.engine.request import Request
from idefics.errors import UnsupportedModel
from idefics.models import family_for, read_checkpoint
from models import tiny

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
FAMILY = family_for("idefics2")
# The fields of the released config.json, and no others: everything else is a default of its class.
RELEASED = {
    "image_token_id": 32001,
    "model_type": "idefics2",
    "perceiver_config": {"model_type": "idefics2"},
    "text_config": {
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32003,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 980,
        "intermediate_size": 4304,
        "model_type": "idefics2",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}
GENERATION = {
    "bad_words_ids": [[32000], [32001]],
    "bos_token_id": 1,
    "eos_token_id": [2, 32002],
    "pad_token_id": 0,
}


def parse_config(raw, generation=None):
    return FAMILY.read_config(raw, generation or {})


# What config.json leaves out


def test_released_file_leaves_out_the_decoder():
    text = parse_config(RELEASED).text
    assert (text.vocab_size, text.max_positions, text.norm_epsilon) == (32003, 32768, 1e-5)
    assert (text.hidden_size, text.intermediate_size, text.num_layers) == (4096, 14336, 32)
    assert (text.num_heads, text.num_kv_heads, text.head_size) == (32, 8, 128)
    assert (text.activation, text.rope, text.sliding_window, text.tie_word_embeddings) == (
        "silu",
        RopeConfig(theta=10000.0),
        4096,
        False,
    )


def test_released_file_leaves_out_the_perceiver():
    """And its epsilon is the decoder's."""
    assert parse_config(RELEASED).perceiver == PerceiverConfig(
        depth=3,
        num_heads=16,
        num_kv_heads=4,
        head_size=96,
        num_latents=64,
        norm_epsilon=1e-5,
        activation="silu",
    )


def test_released_file_leaves_out_the_end_of_the_tower():
    assert parse_config(RELEASED).vision == VisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_layers=27,
        num_heads=16,
        image_size=980,
        patch_size=14,
        norm_epsilon=1e-6,
        activation="gelu_pytorch_tanh",
    )
    assert parse_config(RELEASED).vision.patches_per_side == 70


def test_what_ends_an_answer():
    assert parse_config(RELEASED, GENERATION).stop_ids == (2, 32002)
    assert parse_config(RELEASED).stop_ids == (2,)


@pytest.mark.parametrize("nested", [{}, {"text_config": {"hidden_size": 512}}, {"vision_config": {}}])
def test_defaults_are_those_of_the_classes(tmp_path, nested):
    """But for the perceiver's epsilon, which transformers takes from the decoder only where their widths differ."""
    transformers = pytest.importorskip("transformers")
    transformers.Idefics2Config(**nested).save_pretrained(tmp_path)
    written, silent = read_checkpoint(tmp_path).config, parse_config({"model_type": "idefics2", **nested})
    assert silent.perceiver.norm_epsilon == silent.text.norm_epsilon
    perceiver = replace(written.perceiver, norm_epsilon=silent.text.norm_epsilon)
    assert replace(written, perceiver=perceiver) == silent


def test_a_decoder_without_a_window():
    """As later Mistrals have it."""
    assert (
        parse_config({"model_type": "idefics2", "text_config": {"sliding_window": None}}).text.sliding_window
        is None
    )


def test_another_decoder_is_refused():
    with pytest.raises(UnsupportedModel, match="'llama'; known is mistral"):
        parse_config({"model_type": "idefics2", "text_config": {"model_type": "llama"}})


# How pictures are fed


def test_the_plan_of_the_released_files():
    """8b and chatty split pictures, base does not; that is all that their preprocessor files differ in."""
    size = {"longest_edge": 980, "shortest_edge": 378}
    half = [0.5, 0.5, 0.5]
    raw = {"size": size, "image_mean": half, "image_std": half, "resample": 2, "rescale_factor": 1 / 255}
    plan = FAMILY.read_image_config(parse_config(RELEASED), {**raw, "do_image_splitting": True})
    assert plan == ImageProcessorConfig(
        frame_size=980,
        longest_edge=980,
        shortest_edge=378,
        do_image_splitting=True,
        resample="bilinear",
        rescale_factor=1 / 255,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        tokens_per_frame=64,
    )
    whole = replace(plan, do_image_splitting=False)
    assert FAMILY.read_image_config(parse_config(RELEASED), {**raw, "do_image_splitting": False}) == whole
    assert FAMILY.read_image_config(parse_config(RELEASED), {}) == whole


@pytest.mark.parametrize("size", [{"height": 448, "width": 448}, {"longest_edge": 448, "shortest_edge": 13}])
def test_sizes_that_cannot_be_are_refused(size):
    with pytest.raises(UnsupportedModel, match="preprocessor"):
        FAMILY.read_image_config(parse_config(RELEASED), {"size": size})


# The tower


def test_pictures_of_unequal_size_are_not_padded_through_the_tower():
    """Each call of the tower has frames of one size, and no pixel more than they have."""
    model = tiny.make_random_model(tiny.IDEFICS2)
    prompts = [tiny.make_random_prompt(model, scene) for scene in ("1t3t", "2tt1")]
    seen = []
    model.model.vision_model.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    engine = Engine(model, EngineConfig())
    for handle in [engine.submit(Request(asked, Sampling(max_new_tokens=1))) for asked in prompts]:
        handle.result()
    frames = [frame.shape for asked in prompts for tiles in asked.pictures for frame in tiles.frames]
    assert len(set(frames)) > 3
    assert sorted(shape[1:] for shape in seen for _ in range(shape[0])) == sorted(frames)


def test_pixels_beyond_the_last_whole_patch_are_not_seen():
    """A patch counts where all of its pixels are real."""
    model = tiny.make_random_model(tiny.IDEFICS2)
    frames = torch.randn(1, 3, 47, 33)  # patches of 8: 5 x 4
    other = frames.clone()
    other[..., 40:, :] = 5
    other[..., 32:] = 5
    assert torch.equal(model.encode(frames), model.encode(other))
    assert torch.equal(model.encode(frames), model.encode(frames[..., :40, :32]))


@pytest.mark.parametrize("height", range(8, 57, 6))
def test_a_padded_picture_is_what_it_is_alone(tmp_path, height):
    """transformers pads the smaller of two images: its mask leaves the same patches, at the same positions."""
    reference, ours = tiny.make_reference_and_model(tmp_path, tiny.IDEFICS2)
    small = torch.randn(3, height, 59 - height // 2)
    pixels, real = torch.zeros(1, 2, 3, 61, 62), torch.zeros(1, 2, 61, 62, dtype=torch.long)
    pixels[0, 0], real[0, 0] = torch.randn(3, 61, 62), 1
    pixels[0, 1, :, : small.shape[1], : small.shape[2]] = small
    real[0, 1, : small.shape[1], : small.shape[2]] = 1
    with torch.no_grad():
        theirs = reference.model.get_image_features(pixels, real).pooler_output[0].view(2, 5, 48)
        torch.testing.assert_close(ours.encode(pixels[0, :1])[0], theirs[0], **CLOSE)
        torch.testing.assert_close(ours.encode(small[None])[0], theirs[1], **CLOSE)


def test_a_picture_larger_than_the_grid_has_positions_too(tmp_path):
    """More patches a side than the table has rows: neighbours share a position."""
    reference, ours = tiny.make_reference_and_model(tmp_path, tiny.IDEFICS2)
    frames = torch.randn(1, 3, 120, 64)
    with torch.no_grad():
        theirs = reference.model.get_image_features(frames[None]).pooler_output[0].view(1, 5, 48)
        torch.testing.assert_close(ours.encode(frames), theirs, **CLOSE)


def test_tower_ends_with_post_layernorm():
    tower, frames = tiny.make_random_model(tiny.IDEFICS2).model.vision_model, torch.randn(2, 3, 32, 40)
    assert torch.equal(tower(frames), tower.post_layernorm(tower.encoder(tower.embeddings(frames))))


def test_connector_widens_to_the_decoder_before_the_perceiver():
    connector = tiny.make_random_model(tiny.IDEFICS2).model.connector
    shapes = {name: tuple(weight.shape) for name, weight in connector.named_parameters()}
    assert {name: shape for name, shape in shapes.items() if name.startswith("modality")} == {
        "modality_projection.gate_proj.weight": (80, 32),
        "modality_projection.up_proj.weight": (80, 32),
        "modality_projection.down_proj.weight": (48, 80),
    }
    x = torch.randn(2, 7, 32)
    projected = connector.modality_projection(x)
    torch.testing.assert_close(connector(x), connector.perceiver_resampler(projected), atol=1e-5, rtol=1e-5)


def test_connector_holds_one_frame_at_a_time():
    """Sixteen frames of the released size, float32: 0.8 GB of the MLP's values in place of 13."""
    connector = tiny.make_random_model(tiny.IDEFICS2).model.connector
    seen = []
    connector.modality_projection.register_forward_hook(
        lambda module, args, out: seen.append(tuple(out.shape))
    )
    connector(torch.randn(3, 7, 32))
    assert seen == [(1, 7, 48)] * 3


def test_frames_stand_in_the_text_in_order():
    model = tiny.make_random_model(tiny.IDEFICS2)
    prompt, turned = tiny.make_random_prompt(model, "t2tt"), tiny.make_random_prompt(model, "t2tt")
    (tiles,) = turned.pictures
    object.__setattr__(tiles, "frames", tiles.frames[::-1])
    assert not np.array_equal(prompt.pictures[0].frames[0], tiles.frames[0])
    one, other = tiny.compute_logits(model, [prompt])[0], tiny.compute_logits(model, [turned])[0]
    assert (one[-1] - other[-1]).abs().max() > 1e-2


# The decoder


def test_a_token_beyond_the_window_is_forgotten():
    """One layer of window 4: a token is felt by itself and the three after it."""
    raw = tiny.merge_config(tiny.IDEFICS2, text_config={"sliding_window": 4, "num_hidden_layers": 1})
    model = tiny.make_random_model(raw)
    prompt = tiny.make_random_prompt(model, "t" * 10)
    changed = replace(prompt, ids=(prompt.ids[0] + 1, *prompt.ids[1:]))
    one, other = tiny.compute_logits(model, [prompt])[0], tiny.compute_logits(model, [changed])[0]
    felt = (one - other).abs().amax(1) > 1e-6
    assert felt.tolist() == [True] * 4 + [False] * 6


def test_the_window_is_told_to_whoever_runs_the_model():
    assert tiny.make_random_model(tiny.IDEFICS2).layout.sliding_window == 8
    assert tiny.make_random_model(tiny.IDEFICS3).layout.sliding_window is None


# Where transformers drifted


@pytest.fixture
def drifted(tmp_path):
    """A folder that is silent on the perceiver's epsilon, and transformers' model of it with the same weights."""
    transformers = pytest.importorskip("transformers")
    raw = tiny.merge_config(
        tiny.IDEFICS2,
        text_config={"rms_norm_eps": 1e-2},
        perceiver_config={"hidden_size": 48},  # as in the release, where both widths are the class's 4096
    )
    folder = tiny.write_checkpoint(tmp_path, raw)
    reference = transformers.Idefics2ForConditionalGeneration.from_pretrained(folder).eval()
    return folder, raw, reference


def test_silent_perceiver_takes_the_decoders_epsilon(drifted):
    """As released; transformers takes its new class default of 1e-6 since the perceiver has a config of its own."""
    folder, _, reference = drifted
    assert reference.config.perceiver_config.rms_norm_eps == 1e-6
    ours = tiny.load_checkpoint(folder)
    assert ours.config.perceiver.norm_epsilon == 1e-2
    frames = 0.01 * torch.randn(1, 3, 32, 40)
    with torch.no_grad():
        theirs = reference.model.get_image_features(frames[None]).pooler_output[0].view(1, 5, 48)
        assert (ours.encode(frames) - theirs).abs().max() > 1e-2


def test_an_epsilon_that_is_written_down_is_used(drifted):
    """transformers 5 writes its own down when it saves: a checkpoint that was trained with it keeps it."""
    folder, raw, reference = drifted
    raw = tiny.merge_config(raw, perceiver_config={"rms_norm_eps": 1e-6})
    (folder / "config.json").write_text(json.dumps(raw))
    frames = 0.01 * torch.randn(1, 3, 32, 40)
    with torch.no_grad():
        theirs = reference.model.get_image_features(frames[None]).pooler_output[0].view(1, 5, 48)
        torch.testing.assert_close(tiny.load_checkpoint(folder).encode(frames), theirs, **CLOSE)
