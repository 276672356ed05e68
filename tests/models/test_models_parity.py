"""Our models against transformers' on the same random checkpoints: the same logits, whatever the shape.

transformers reads the prompts in one batch padded on the left, ours packed without padding. Pictures stand before,
between and after the text, none to five of them. Where transformers is not right: `test_models_exceptions.py`.
"""

import pytest
import torch

from engine.reference_decoding import reference_greedy
from models import tiny

CLOSE = {"atol": 1e-4, "rtol": 1e-4}

FAMILY_CONFIGS, FAMILY_NAMES = (
    (tiny.IDEFICS1, tiny.IDEFICS2, tiny.IDEFICS3),
    ("idefics1", "idefics2", "idefics3"),
)
CROSS_ATTENTION_SCENES = ("t", "ttttt", "1tt", "tt1", "t1tt1ttt", "t11tt", "1tt1tett1t", "1t1t1t1t1t")
INLINE_SCENES = ("t", "ttttt", "1tt", "tt1", "t1tt1ttt", "t11tt", "5tt", "t3t2tt", "1t1t1t1t1t")

IDEFICS1 = {
    "released": {},
    "no resampler": {"use_resampler": False},
    "no norms": {"qk_layer_norms": False, "perceiver_config": {"qk_layer_norms_perceiver": False}},
    "text norms": {"perceiver_config": {"qk_layer_norms_perceiver": False}},
    "perceiver norms": {"qk_layer_norms": False},
    "no resampler, no norms": {"use_resampler": False, "qk_layer_norms": False},
    "vector gates": {"alpha_type": "vector"},
    "vector gates, no norms, no resampler": {
        "alpha_type": "vector",
        "qk_layer_norms": False,
        "use_resampler": False,
    },
    "no additional vocabulary": {"additional_vocab_size": 0},
    "instruct": {"additional_vocab_size": 3},
    "every layer": {"cross_layer_interval": 1},
    "every fourth layer": {"cross_layer_interval": 4},
    "one block of two": {"cross_layer_interval": 2, "num_hidden_layers": 2},
    "trailing pixels": {"vision_config": {"image_size": 30, "patch_size": 7}},
    "other activations": {"hidden_act": "gelu", "vision_config": {"hidden_act": "gelu_pytorch_tanh"}},
    "other epsilons": {"rms_norm_eps": 1e-2, "vision_config": {"layer_norm_eps": 1e-1}},
    "tied": {"tie_word_embeddings": True},
    "tied, no additional vocabulary": {"tie_word_embeddings": True, "additional_vocab_size": 0},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
IDEFICS2 = {
    "grouped": {},
    "one key head": {"text_config": {"num_key_value_heads": 1}},
    "every head its own": {"text_config": {"num_key_value_heads": 4}},
    "wide heads": {"text_config": {"head_dim": 20}},
    "window 1": {"text_config": {"sliding_window": 1}},
    "window 3": {"text_config": {"sliding_window": 3}},
    "a window longer than any prompt": {"text_config": {"sliding_window": 100}},
    "other rotation": {"text_config": {"rope_theta": 500.0}},
    "one latent": {"perceiver_config": {"resampler_n_latents": 1}},
    "one perceiver layer": {"perceiver_config": {"resampler_depth": 1}},
    "three perceiver layers": {"perceiver_config": {"resampler_depth": 3}},
    "one perceiver key head": {"perceiver_config": {"num_key_value_heads": 1}},
    "every perceiver head its own": {"perceiver_config": {"num_key_value_heads": 4}},
    "wide perceiver heads": {"perceiver_config": {"resampler_head_dim": 20}},
    "another perceiver activation": {"perceiver_config": {"hidden_act": "gelu"}},
    "another activation of text and connector": {"text_config": {"hidden_act": "gelu"}},
    "exact gelu": {"vision_config": {"hidden_act": "gelu"}},
    "trailing pixels": {"vision_config": {"image_size": 61, "patch_size": 7}},
    "the released grid": {"vision_config": {"image_size": 140, "patch_size": 2, "num_hidden_layers": 1}},
    "the text's epsilon everywhere": {"text_config": {"rms_norm_eps": 1e-2}},
    "an epsilon for the perceiver": {"perceiver_config": {"hidden_size": 48, "rms_norm_eps": 1e-2}},
    "another epsilon of the tower": {"vision_config": {"layer_norm_eps": 1e-1}},
}
IDEFICS3 = {
    "grouped": {},
    "one key head": {"text_config": {"num_key_value_heads": 1}},
    "every head its own": {"text_config": {"num_key_value_heads": 4}},
    "wide heads": {"text_config": {"head_dim": 20}},
    "narrow heads": {"text_config": {"head_dim": 8}},
    "llama3 rotation": {"text_config": {"rope_theta": None, "rope_parameters": LLAMA3}},
    "shuffle 3": {"scale_factor": 3, "vision_config": {"image_size": 26, "patch_size": 4}},
    "shuffle 4": {"scale_factor": 4, "vision_config": {"image_size": 32, "patch_size": 4}},
    "shuffle 1": {"scale_factor": 1},
    "trailing pixels": {"vision_config": {"image_size": 29, "patch_size": 7}},
    "a third of nine patches": {"scale_factor": 3, "vision_config": {"image_size": 128, "patch_size": 14}},
    "exact gelu": {"vision_config": {"hidden_act": "gelu"}},
    "other epsilons": {"text_config": {"rms_norm_eps": 1e-2}, "vision_config": {"layer_norm_eps": 1e-1}},
    "smolvlm": {"model_type": "smolvlm", "image_token_id": 63},
}


def assert_same(reference, ours, scenes):
    prompts = [tiny.make_random_prompt(ours, scene) for scene in scenes]
    for scene, expected, got in zip(
        scenes,
        tiny.compute_reference_logits(reference, prompts),
        tiny.compute_logits(ours, prompts),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, **CLOSE, msg=lambda m, scene=scene: f"{scene}: {m}")


@pytest.mark.parametrize("raw", [tiny.IDEFICS2, tiny.IDEFICS3], ids=("idefics2", "idefics3"))
def test_tied_tables(tmp_path, raw):
    """Their random logits are twenty times as large as others, and so is what float32 rounds: hence in float64.

    Norms and rotations are computed in float32 all the same.
    """
    reference, ours = tiny.make_reference_and_model(
        tmp_path, tiny.merge_config(raw, tie_word_embeddings=True)
    )
    prompts = [tiny.make_random_prompt(ours, scene) for scene in INLINE_SCENES]
    expected = tiny.compute_reference_logits(reference.double(), prompts)
    for theirs, got in zip(expected, tiny.compute_logits(ours.double(), prompts), strict=True):
        torch.testing.assert_close(got, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", IDEFICS1.values(), ids=IDEFICS1)
def test_idefics1(tmp_path, changes):
    assert_same(
        *tiny.make_reference_and_model(tmp_path, tiny.merge_config(tiny.IDEFICS1, **changes)),
        CROSS_ATTENTION_SCENES,
    )


@pytest.mark.parametrize("changes", IDEFICS2.values(), ids=IDEFICS2)
def test_idefics2(tmp_path, changes):
    """Frames of every size, padded to the largest there."""
    assert_same(
        *tiny.make_reference_and_model(tmp_path, tiny.merge_config(tiny.IDEFICS2, **changes)), INLINE_SCENES
    )


@pytest.mark.parametrize("changes", IDEFICS3.values(), ids=IDEFICS3)
def test_idefics3(tmp_path, changes):
    assert_same(
        *tiny.make_reference_and_model(tmp_path, tiny.merge_config(tiny.IDEFICS3, **changes)), INLINE_SCENES
    )


@pytest.mark.parametrize("raw", FAMILY_CONFIGS, ids=FAMILY_NAMES)
def test_text_only(tmp_path, raw):
    """transformers' Idefics 1 wants a zero picture that nobody sees; ours wants none."""
    assert_same(*tiny.make_reference_and_model(tmp_path, raw), ("t", "tttetttt"))


@pytest.mark.parametrize("scene", ["t", "1", "t1", "1t", "11", "ttt1ttt1t", "1ette1tt", "11111tt"])
@pytest.mark.parametrize("raw", FAMILY_CONFIGS, ids=FAMILY_NAMES)
def test_one_prompt_alone(tmp_path, raw, scene):
    assert_same(*tiny.make_reference_and_model(tmp_path, raw), [scene])


def test_positions_count_tokens_and_not_padding(tmp_path):
    """Padding inside a prompt, which no tokenizer makes, shows it: positions are cumsum(mask) - 1."""
    reference, ours = tiny.make_reference_and_model(tmp_path, tiny.IDEFICS1)
    prompt = tiny.make_random_prompt(ours, "tttttttt")
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 1]])
    ids = torch.zeros_like(mask).masked_scatter(mask.bool(), torch.tensor(prompt.ids))
    pictures = {"pixel_values": torch.zeros(1, 1, 3, 32, 32), "image_attention_mask": torch.zeros(1, 12, 1)}
    with torch.inference_mode():
        expected = reference(input_ids=ids, attention_mask=mask, **pictures).logits[mask.bool()]
    torch.testing.assert_close(tiny.compute_logits(ours, [prompt])[0], expected, **CLOSE)


@pytest.mark.parametrize("raw", FAMILY_CONFIGS, ids=FAMILY_NAMES)
def test_greedy_generation(tmp_path, raw):
    """Left-padded and cached there; alone and read anew for each token here."""
    reference, ours = tiny.make_reference_and_model(tmp_path, raw)
    prompts = [tiny.make_random_prompt(ours, scene) for scene in ("1tt", "t1t1ttt", "tttt", "1tt11t")]
    inputs = tiny.make_reference_inputs(reference, prompts)
    out = reference.generate(**inputs, max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)
    for prompt, ids in zip(prompts, out, strict=True):
        assert reference_greedy(ours, prompt, 8) == ids[inputs["input_ids"].shape[1] :].tolist()
