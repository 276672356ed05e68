"""Where transformers is not right, or was not: what it does, what we do instead, and why.

The released behaviour wins. Each exception is a test that shows both sides.

| what | transformers | ours |
|-|-|-|
| positions of patches | 4.55 to 5.20 computed them in the model's dtype | in float32, always |
| the same | 4.55 to 4.57 shrank all coordinates by a millionth: nearly every row one too small | not shrunk |
| a token before the first picture | 4.33 (TGI still): attends to every picture of its prompt | to none |
| an all-zero frame | 5.23 takes it for padding and drops it | is a frame |
| a text without pictures (Idefics 1) | 5.23 wants a picture all the same | needs none |
| layers that are no multiple of the interval (Idefics 1) | 5.23 builds it and fails when it runs | refused |
| loss over additional vocabulary (Idefics 1) | 5.23 raises | logits cover both tables |
| perceiver's epsilon where the file is silent (Idefics 2) | since it has its own config: 1e-6 | the decoder's |
| blanks after special tokens (Idefics 2) | 5.0 on: lost, one written after pictures | as `tokenizer.json` says |

The last two are tested in `test_models_idefics2.py` and `processing/test_prompts_idefics2.py`.
"""

import pytest
import torch

from idefics.nn.vit import position_ids
from models import tiny

CPU = torch.device("cpu")
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


# Idefics3-8B, SmolVLM 2.2B, SmolVLM 256M and 500M, Idefics2: rows of a full grid that bfloat16 puts elsewhere.
@pytest.mark.parametrize(("grid", "moved"), [(26, 10), (27, 6), (32, 0), (70, 34)])
def test_positions_in_bfloat16_would_be_wrong(grid, moved):
    boundaries = torch.arange(1 / grid, 1, 1 / grid)
    rows = torch.arange(grid)
    half = torch.bucketize((rows / grid).bfloat16().clamp(max=1 - 1e-6), boundaries, right=True)
    assert (half != rows).sum() == moved
    assert torch.equal(position_ids(grid, grid, grid, CPU) // grid, rows.repeat_interleave(grid))


@pytest.mark.parametrize("grid", [26, 27, 32, 70])
def test_shrunk_coordinates_would_be_wrong(grid):
    rows, boundaries = torch.arange(grid), torch.arange(1 / grid, 1, 1 / grid)
    shrunk = torch.bucketize(rows / grid * (1 - 1e-6), boundaries, right=True)
    assert (shrunk == rows - 1).sum() == grid - 1
    assert torch.equal(position_ids(grid, grid, grid, CPU) % grid, rows.repeat(grid))


@pytest.mark.parametrize("size", [{"image_size": 26, "patch_size": 1}, {"image_size": 27, "patch_size": 1}])
def test_a_bfloat16_tower_sees_what_the_float32_one_sees(tmp_path, size):
    """5.23 is right here again, and ours is as near to float32 as it is. Wrong rows would be a hundred times off."""
    raw = tiny.merge_config(tiny.IDEFICS3, scale_factor=1, vision_config={**size, "num_hidden_layers": 1})
    reference, ours = tiny.make_reference_and_model(tmp_path, raw)
    frames = torch.randn(1, 3, size["image_size"], size["image_size"])
    with torch.no_grad():
        exact = ours.encode(frames)
        half = tiny.load_checkpoint(tmp_path, torch.bfloat16).encode(frames.bfloat16())
        theirs = reference.bfloat16().model.get_image_features(frames.bfloat16()[None]).pooler_output[0]
    error = (half[0] - exact[0]).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.02
    assert (half[0] - theirs).square().mean().sqrt() / exact.square().mean().sqrt() < 0.02


def test_a_token_before_its_picture_is_as_without_one():
    model = tiny.make_random_model(tiny.IDEFICS1)
    prompt = tiny.make_random_prompt(model, "tttt1tt1t")
    plain = tiny.Prompt(prompt.ids[:4], (), (), prompt.image_index[:4])
    with_, without = tiny.compute_logits(model, [prompt])[0], tiny.compute_logits(model, [plain])[0]
    torch.testing.assert_close(with_[:4], without, atol=1e-6, rtol=1e-5)


def test_one_has_image_flag_for_the_batch_would_be_wrong():
    """Open for all because one token sees a picture: those that see none average over every picture there is."""

    class OneGate(tiny.PackedAttention):
        def __init__(self, *args):
            super().__init__(*args)
            self.has_image = torch.ones_like(self.has_image)

    model = tiny.make_random_model(tiny.IDEFICS1)
    prompts = [tiny.make_random_prompt(model, "tttt1tt1t")]
    right, wrong = tiny.compute_logits(model, prompts)[0], tiny.compute_logits(model, prompts, OneGate)[0]
    assert ((right - wrong)[:4].abs().amax(1) > 0.1).all()


def test_a_zero_frame_is_a_frame(tmp_path):
    """Real pictures never are all zero after normalisation, but a caller's own frames may be."""
    reference, ours = tiny.make_reference_and_model(tmp_path, tiny.IDEFICS3)
    prompt = tiny.make_random_prompt(ours, "t2tt")
    prompt.pictures[0].frames[1].fill(0)
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        tiny.compute_reference_logits(reference, [prompt])
    frames = [torch.from_numpy(frame)[None] for frame in prompt.pictures[0].frames]
    alone = torch.cat([ours.encode(frame) for frame in frames])
    torch.testing.assert_close(ours.encode(torch.cat(frames)), alone, atol=1e-5, rtol=1e-5)
    assert tiny.compute_logits(ours, [prompt])[0].isfinite().all()


def test_text_needs_no_picture(tmp_path):
    reference, ours = tiny.make_reference_and_model(tmp_path, tiny.IDEFICS1)
    prompt = tiny.make_random_prompt(ours, "ttttt")
    ids = torch.tensor([prompt.ids])
    with pytest.raises(ValueError, match="Exactly 1 of pixel_values"):
        reference(input_ids=ids)
    (expected,) = tiny.compute_reference_logits(
        reference, [prompt]
    )  # gives it a zero picture that nobody sees
    torch.testing.assert_close(tiny.compute_logits(ours, [prompt])[0], expected, **CLOSE)


def test_loss_over_the_additional_vocabulary(tmp_path):
    """Every released Idefics 1 has additional tokens; transformers cuts its logits as if there were none."""
    reference, ours = tiny.make_reference_and_model(tmp_path, tiny.IDEFICS1)
    prompt = tiny.make_random_prompt(ours, "1tttt")
    labels = torch.tensor([prompt.ids])
    assert labels.max() >= ours.config.text.vocab_size
    pixels = torch.from_numpy(prompt.pictures[0].frames[0])[None, None]
    with pytest.raises(RuntimeError, match=r"shape .* is invalid"):
        reference(
            input_ids=labels,
            pixel_values=pixels,
            image_attention_mask=torch.ones(1, len(prompt), 1),
            labels=labels,
        )
    logits = tiny.compute_logits(ours, [prompt])[0]
    assert logits.shape[1] == 52
    assert torch.nn.functional.cross_entropy(logits[:-1], labels[0, 1:]).isfinite()


def test_layers_left_over_are_refused():
    """transformers builds a model without its last block, and fails when it runs; ours says so at once."""
    pytest.importorskip("transformers")
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    from idefics.errors import UnsupportedModel

    raw = {**tiny.IDEFICS1, "num_hidden_layers": 3}
    reference = IdeficsForVisionText2Text(IdeficsConfig.from_dict(raw))
    prompt = tiny.make_random_prompt(tiny.make_random_model(tiny.IDEFICS1), "1tt")
    with pytest.raises(IndexError):
        tiny.compute_reference_logits(reference, [prompt])
    with pytest.raises(UnsupportedModel, match="multiple of cross_layer_interval"):
        tiny.make_random_model(raw)
