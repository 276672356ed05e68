"""`DenseAttn`: sequences are independent, padding is ignored, each token attends to one picture or none."""

import pytest
import torch
from torch import nn

from idefics.nn.attention import DenseAttn, LayerCrossKV
from idefics.nn.attention_backends import repeat_kv, sdpa_attention

CLOSE = {"atol": 1e-6, "rtol": 1e-5}


def random_qkv(tokens, heads=4, kv_heads=4, size=8):
    return (
        torch.randn(tokens, heads, size),
        torch.randn(tokens, kv_heads, size),
        torch.randn(tokens, kv_heads, size),
    )


def reference_self_attention(q, k, v, window=99):
    """Causal attention of one sequence, by loops over queries and heads."""
    out = torch.empty_like(q)
    share = q.shape[1] // k.shape[1]  # neighbouring query heads share a key head
    for token in range(q.shape[0]):
        visible = slice(max(0, token + 1 - window), token + 1)
        for head in range(q.shape[1]):
            scores = k[visible, head // share] @ q[token, head] * q.shape[2] ** -0.5
            out[token, head] = scores.softmax(0) @ v[visible, head // share]
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_self_attention_is_causal(kv_heads):
    q, k, v = random_qkv(6, kv_heads=kv_heads)
    torch.testing.assert_close(
        DenseAttn(1).self_attention(0, q, k, v), reference_self_attention(q, k, v), **CLOSE
    )


@pytest.mark.parametrize("window", [1, 2, 5, 6, 7])
def test_a_window_includes_the_token_itself(window):
    q, k, v = random_qkv(12, kv_heads=2)
    rows = [
        reference_self_attention(*row, window) for row in zip(q.split(6), k.split(6), v.split(6), strict=True)
    ]
    torch.testing.assert_close(
        DenseAttn(2, sliding_window=window).self_attention(0, q, k, v), torch.cat(rows), **CLOSE
    )


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_sequences_do_not_attend_to_each_other(kv_heads):
    q, k, v = random_qkv(15, kv_heads=kv_heads)
    rows = [reference_self_attention(*row) for row in zip(q.split(5), k.split(5), v.split(5), strict=True)]
    torch.testing.assert_close(DenseAttn(3).self_attention(0, q, k, v), torch.cat(rows), **CLOSE)


def test_padding_on_the_right_has_no_effect():
    q, k, v = random_qkv(12)
    padded = DenseAttn(2).self_attention(0, q, k, v)
    for row, length in ((0, 4), (6, 2)):
        own = slice(row, row + length)
        torch.testing.assert_close(padded[own], reference_self_attention(q[own], k[own], v[own]), **CLOSE)


def random_cross_kv(pictures, features_per_image=5, layers=2, heads=4, size=8):
    shape = (pictures, features_per_image, heads, size)
    return [LayerCrossKV(torch.randn(shape), torch.randn(shape)) for _ in range(layers)]


def reference_cross_attention(q, layer, image_index):
    out = torch.zeros_like(q)
    for token, picture in enumerate(image_index.tolist()):
        for head in range(q.shape[1]):
            if picture >= 0:
                scores = layer.keys[picture, :, head] @ q[token, head] * q.shape[2] ** -0.5
                out[token, head] = scores.softmax(0) @ layer.values[picture, :, head]
    return out


def test_cross_attention_is_to_the_picture_of_each_token():
    pictures, sees = random_cross_kv(3), torch.tensor([-1, 0, 0, 2, 1, -1, 2])
    q, attn = torch.randn(7, 4, 8), DenseAttn(1, pictures, sees)
    for index, layer in enumerate(pictures):
        torch.testing.assert_close(
            attn.cross_attention(index, q), reference_cross_attention(q, layer, sees), **CLOSE
        )


def test_cross_attention_of_padded_sequences():
    """`image_index` counts the pictures of all sequences, as in training."""
    pictures, sees = random_cross_kv(3), torch.tensor([-1, 0, 1, -1, 2, 2])
    q = torch.randn(6, 4, 8)
    torch.testing.assert_close(
        DenseAttn(2, pictures, sees).cross_attention(1, q),
        reference_cross_attention(q, pictures[1], sees),
        **CLOSE,
    )


@pytest.mark.parametrize("scale", [1, 1e4])
def test_cross_attention_is_zero_for_a_token_without_a_picture(scale):
    pictures = [LayerCrossKV(scale * keys, scale * values) for keys, values in random_cross_kv(2)]
    out = DenseAttn(1, pictures, torch.tensor([-1, 1, -1])).cross_attention(0, scale * torch.randn(3, 4, 8))
    assert out[[0, 2]].count_nonzero() == 0
    assert out[1].count_nonzero() > 0


def test_cross_attention_without_pictures_is_zero():
    assert DenseAttn(1).cross_attention(0, torch.randn(3, 4, 8)).count_nonzero() == 0


def test_other_pictures_have_no_effect():
    """Other pictures do not change a single bit of the output of a token."""
    pictures, sees = random_cross_kv(3), torch.tensor([0, 2, -1])
    other = [LayerCrossKV(keys.clone(), values.clone()) for keys, values in pictures]
    for keys, values in other:
        nn.init.normal_(keys[1], std=50)
        nn.init.normal_(values[1], std=50)
    q = torch.randn(3, 4, 8)
    assert torch.equal(
        DenseAttn(1, pictures, sees).cross_attention(0, q), DenseAttn(1, other, sees).cross_attention(0, q)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept(dtype):
    pictures = [LayerCrossKV(keys.to(dtype), values.to(dtype)) for keys, values in random_cross_kv(2)]
    attn = DenseAttn(1, pictures, torch.tensor([-1, 0, 1]))
    q, k, v = (x.to(dtype) for x in random_qkv(3))
    assert attn.cross_attention(0, q).dtype == attn.self_attention(0, q, k, v).dtype == dtype
    assert attn.cross_attention(0, q).isfinite().all()


def attend_with_grouped_heads(device="cpu"):
    q, k, v = (torch.randn(2, heads, length, 8, device=device) for heads, length in ((6, 5), (2, 9), (2, 9)))
    return q, k, v, torch.rand(5, 9, device=device) < 0.7


def test_grouped_heads_equal_repeated_heads():
    """Repeating keys for each query head changes nothing."""
    q, k, v, mask = attend_with_grouped_heads()
    mask[:, 0] = True
    k_, v_ = repeat_kv(q, k, v)
    assert k_.shape == v_.shape == (2, 6, 9, 8)
    torch.testing.assert_close(sdpa_attention(q, k_, v_, mask=mask), sdpa_attention(q, k, v, mask=mask))
    assert repeat_kv(q, k_, v_) == (k_, v_)


@pytest.mark.gpu
def test_a_mask_with_grouped_heads_on_a_gpu():
    q, k, v, mask = attend_with_grouped_heads("cuda")
    mask[:, 0] = True
    wanted = sdpa_attention(*(x.cpu() for x in (q, k, v)), mask=mask.cpu())
    torch.testing.assert_close(sdpa_attention(q, k, v, mask=mask).cpu(), wanted, rtol=1e-3, atol=1e-3)
