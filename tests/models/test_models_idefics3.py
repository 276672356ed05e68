"""What is easy to get wrong in Idefics 3 and SmolVLM, one trap a test."""

import numpy as np
import pytest
import torch

from idefics.models.idefics3 import pixel_shuffle
from models import tiny


@pytest.mark.parametrize(("side", "factor"), [(4, 2), (6, 3), (6, 2), (8, 4), (3, 1)])
def test_pixel_shuffle_folds_rows_then_columns_of_a_block(side, factor):
    """Channels of a folded patch: the block's rows from the top, in each its columns from the left."""
    x = torch.randn(2, side * side, 5)
    small = side // factor
    wanted = torch.empty(2, small * small, 5 * factor**2)
    for frame in range(2):
        for i in range(small):
            for j in range(small):
                block = [
                    x[frame, (i * factor + r) * side + j * factor + c]
                    for r in range(factor)
                    for c in range(factor)
                ]
                wanted[frame, i * small + j] = torch.cat(block)
    assert torch.equal(pixel_shuffle(x, factor), wanted)


def test_tower_ends_with_post_layernorm():
    model = tiny.make_random_model(tiny.IDEFICS3)
    tower, frames = model.model.vision_model, torch.randn(2, 3, 32, 32)
    out = tower(frames)
    assert out.shape == (2, 16, 32)
    assert torch.equal(out, tower.post_layernorm(tower.encoder(tower.embeddings(frames))))
    with torch.no_grad():
        tower.post_layernorm.weight.mul_(2)
        tower.post_layernorm.bias.mul_(2)
    torch.testing.assert_close(tower(frames), 2 * out)


def test_tower_uses_the_tanh_gelu():
    """Unless its file says otherwise: the released files leave it to the class."""
    assert "hidden_act" not in tiny.IDEFICS3["vision_config"]
    mlp = tiny.make_random_model(tiny.IDEFICS3).model.vision_model.encoder.layers[0].mlp
    x = torch.randn(9, 32)
    tanh, erf = (mlp.fc2(torch.nn.functional.gelu(mlp.fc1(x), approximate=kind)) for kind in ("tanh", "none"))
    torch.testing.assert_close(mlp(x), tanh, atol=0, rtol=0)
    assert (mlp(x) - erf).abs().max() > 1e-4


def test_pixels_beyond_the_last_patch_are_not_seen():
    """As 384 pixels in patches of 14: 27 of them, and 6 pixels over."""
    model = tiny.make_random_model(
        tiny.merge_config(tiny.IDEFICS3, scale_factor=3, vision_config={"image_size": 26, "patch_size": 4})
    )
    frames = torch.randn(1, 3, 26, 26)
    other = frames.clone()
    other[..., 24:, :] = 5
    other[..., 24:] = 5
    assert model.encode(frames).shape == (1, 4, 48)
    assert torch.equal(model.encode(frames), model.encode(other))


def test_frames_are_encoded_alone():
    model = tiny.make_random_model(tiny.IDEFICS3)
    frames = torch.randn(4, 3, 32, 32)
    alone = torch.cat([model.encode(frame[None]) for frame in frames])
    torch.testing.assert_close(model.encode(frames), alone, atol=1e-5, rtol=1e-5)


def test_connector_has_one_matrix_and_no_bias():
    model = tiny.make_random_model(tiny.IDEFICS3)
    assert {name: tuple(weight.shape) for name, weight in model.model.connector.named_parameters()} == {
        "modality_projection.proj.weight": (48, 32 * 4)
    }


def test_no_cross_attention_cache_is_kept():
    model = tiny.make_random_model(tiny.IDEFICS3)
    assert model.compute_cross_kv(model.encode(torch.randn(1, 3, 32, 32))) is None
    assert model.layout.num_cross_attention_layers == 0


def test_frames_stand_in_the_text_in_order():
    """Two frames the other way round are another prompt."""
    model = tiny.make_random_model(tiny.IDEFICS3)
    prompt, turned = tiny.make_random_prompt(model, "t2tt"), tiny.make_random_prompt(model, "t2tt")
    (tiles,) = turned.pictures
    object.__setattr__(tiles, "frames", tiles.frames[::-1])
    assert not np.array_equal(prompt.pictures[0].frames[0], tiles.frames[0])
    one, other = tiny.compute_logits(model, [prompt])[0], tiny.compute_logits(model, [turned])[0]
    assert (one[-1] - other[-1]).abs().max() > 1e-2


def test_tied_head_is_the_embedding(tmp_path):
    """One weight in the folder, one in memory; the folder may hold either name."""
    raw = {**tiny.IDEFICS3, "tie_word_embeddings": True}
    model = tiny.load_checkpoint(tiny.write_checkpoint(tmp_path, raw))
    table = model.model.text_model.embed_tokens.weight
    assert model.lm_head.weight is table
    h = torch.randn(2, 48)
    torch.testing.assert_close(model.logits(h), h @ table.T)
