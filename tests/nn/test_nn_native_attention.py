"""The attention kernel in C equals the plain formula, at any size, stride and number of threads."""

import pytest
import torch
from torch import nn

from idefics.config import VisionConfig
from idefics.native import library
from idefics.nn import native_kernels as module
from idefics.nn import vit
from idefics.nn.attention_backends import (
    ATTENTION_BACKENDS,
    bfloat16_or_sdpa_attention,
    eager_attention,
    native_or_sdpa_attention,
    repeat_kv,
    sdpa_attention,
    set_attention_backend,
)
from idefics.nn.vit import VisionEncoder
from native_builds import MATMUL_SOURCES, load_sources

# frames, heads, key heads, queries, keys, head size
SIZES = {
    "SmolVLM": (2, 3, 3, 1024, 1024, 64),
    "SigLIP so400m": (1, 2, 2, 729, 729, 72),
    "CLIP": (2, 4, 4, 257, 257, 80),
    "perceiver": (2, 8, 2, 64, 200, 96),
    "one key": (1, 1, 1, 16, 1, 8),
    "odd": (3, 2, 1, 33, 70, 5),
    "wide": (1, 1, 1, 21, 17, 200),
}


@pytest.fixture(scope="module", autouse=True)
def kernel(tmp_path_factory):
    """Compiled here, so that undefined behaviour ends the test."""
    code = load_sources(tmp_path_factory.mktemp("kernel"), ("attention.c", *MATMUL_SOURCES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_library", lambda: code)
        if library.best_instruction_set("attention") is None:
            pytest.skip("this machine has no AVX-512")
        yield


def random_qkv(frames, heads, key_heads, queries, keys, size):
    """With the strides that projections give: tokens are outside of heads in memory."""
    torch.manual_seed(0)
    q = torch.randn(frames, queries, heads, size).transpose(1, 2) * 3
    k, v = (torch.randn(frames, keys, key_heads, size).transpose(1, 2) for _ in range(2))
    return q, k, v


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_equals_the_formula(size, set_openmp_threads):
    q, k, v = random_qkv(*size)
    assert module.can_use_native_attention(q, k, v)
    ours, exact = module.native_attention(q, k, v), eager_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-5)
    torch.testing.assert_close(ours, sdpa_attention(q, k, v), rtol=0, atol=2e-5)
    torch.testing.assert_close(
        module.native_attention(q.contiguous(), k.contiguous(), v), ours, rtol=0, atol=0
    )


def test_large_differences_of_scores():
    """The largest score is subtracted before exp: no overflow."""
    q, k, v = random_qkv(1, 1, 1, 20, 40, 16)
    torch.testing.assert_close(
        module.native_attention(q * 1e4, k, v), eager_attention(q * 1e4, k, v), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("keys", [1, 15, 17, 40, 65])
def test_very_negative_scores(keys):
    """Padded keys must not count with a score of zero, which would be the largest here."""
    q, k, v = random_qkv(1, 1, 1, 20, keys, 16)
    q, k = q.abs() + 30, -k.abs() - 30
    torch.testing.assert_close(module.native_attention(q, k, v), eager_attention(q, k, v), rtol=0, atol=2e-4)


def test_nan_is_propagated():
    q, k, v = random_qkv(1, 1, 1, 20, 40, 16)
    k[0, 0, 39, 3] = float("nan")
    assert module.native_attention(q, k, v).isnan().all()


def test_unsupported_arguments_use_torch(monkeypatch):
    """A mask, causal attention, gradients, other dtypes, few queries."""
    q, k, v = random_qkv(1, 2, 2, 20, 20, 16)
    monkeypatch.setattr(
        "idefics.nn.attention_backends.native_attention", lambda *_: pytest.fail("not for the kernel")
    )
    mask = torch.rand(20, 20) > 0.3
    mask |= torch.eye(20, dtype=torch.bool)
    assert torch.equal(native_or_sdpa_attention(q, k, v, mask=mask), sdpa_attention(q, k, v, mask=mask))
    assert torch.equal(native_or_sdpa_attention(q, k, v, causal=True), sdpa_attention(q, k, v, causal=True))
    assert torch.equal(
        native_or_sdpa_attention(q.double(), k.double(), v.double()),
        sdpa_attention(q.double(), k.double(), v.double()),
    )
    assert native_or_sdpa_attention(q.requires_grad_(), k, v).requires_grad
    assert native_or_sdpa_attention(q.detach()[:, :, :3], k, v).shape == (1, 2, 3, 16)
    monkeypatch.setattr(library, "load_library", lambda: None)
    assert torch.equal(native_or_sdpa_attention(q.detach(), k, v), sdpa_attention(q.detach(), k, v))


def test_a_tower_is_equal_with_the_kernel_and_in_chunks(monkeypatch):
    config = VisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_layers=2,
        num_heads=3,
        image_size=64,
        patch_size=8,
        norm_epsilon=1e-6,
        activation="gelu",
    )
    torch.manual_seed(0)
    tower = VisionEncoder(config)
    x = torch.randn(5, 64, 48)
    with torch.no_grad():
        set_attention_backend(tower, sdpa_attention)
        monkeypatch.setattr(vit, "CPU_CHUNK_PATCHES", 10**6)
        whole = tower(x)
        set_attention_backend(tower, ATTENTION_BACKENDS["sdpa"])
        for cached in (1, 128, 10**6):
            monkeypatch.setattr(vit, "CPU_CHUNK_PATCHES", cached)
            torch.testing.assert_close(tower(x), whole, rtol=1e-5, atol=1e-5)


def test_frames_are_processed_in_chunks(monkeypatch):
    seen = []

    class Layer(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x

    config = VisionConfig(
        hidden_size=8,
        intermediate_size=8,
        num_layers=0,
        num_heads=1,
        image_size=64,
        patch_size=8,
        norm_epsilon=1e-6,
        activation="gelu",
    )
    tower = VisionEncoder(config)
    tower.layers.append(Layer())
    monkeypatch.setattr(vit, "CPU_CHUNK_PATCHES", 130)
    x = torch.randn(5, 64, 8)
    assert torch.equal(tower(x), x)
    assert seen == [2, 2, 1]


class TestBfloat16:
    """`native_attention` with `bfloat16`: inputs and attention weights are rounded, nothing else."""

    @pytest.fixture(autouse=True)
    def needs_bfloat16(self):
        if library.best_instruction_set("bfloat16 products") is None:
            pytest.skip("this machine has no dot products of bfloat16")

    @staticmethod
    def rounded_attention(q, k, v, causal):
        """The formula, with roundings where the kernel has them."""
        q, k, v = (x.bfloat16().double() for x in (q, *repeat_kv(q, k, v)))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
            scores = scores.masked_fill(~mask, -torch.inf)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        return weights.bfloat16().double() @ v / weights.sum(-1, keepdim=True)

    @pytest.mark.parametrize("size", [*SIZES.values(), (1, 3, 1, 40, 300, 16)])
    @pytest.mark.parametrize("causal", [False, True])
    def test_equals_the_formula(self, size, causal, set_openmp_threads):
        *_, queries, keys, head_size = size
        if head_size % 2 or (causal and keys < queries):
            pytest.skip("not supported")
        q, k, v = random_qkv(*size)
        assert module.can_use_native_attention(q, k, v, bfloat16=True)
        found = module.native_attention(q, k, v, bfloat16=True, causal=causal)
        expected = self.rounded_attention(q, k, v, causal)
        # A weight on the border between two bfloat16 numbers may be rounded to either.
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-3)
        assert (found - expected).norm() < 2e-4 * expected.norm()

    def test_a_query_does_not_depend_on_the_others(self):
        """So answers do not depend on how a prompt is cut into chunks."""
        q, k, v = random_qkv(1, 3, 1, 400, 400, 64)
        whole = module.native_attention(q, k, v, bfloat16=True, causal=True)
        for start, end in ((0, 17), (17, 200), (200, 353), (353, 400)):
            part = module.native_attention(
                q[:, :, start:end], k[:, :, :end], v[:, :, :end], bfloat16=True, causal=True
            )
            assert torch.equal(part, whole[:, :, start:end])

    def test_later_keys_are_not_read(self):
        q, k, v = random_qkv(1, 1, 1, 50, 50, 16)
        expected = module.native_attention(q, k, v, bfloat16=True, causal=True)
        k[:, :, 30:], v[:, :, 30:] = float("nan"), 1e30
        found = module.native_attention(q, k, v, bfloat16=True, causal=True)
        assert torch.equal(found[:, :, :30], expected[:, :, :30]) and found[:, :, 30:].isnan().all()

    def test_the_backend_falls_back_to_torch(self):
        q, k, v = random_qkv(1, 2, 2, 20, 20, 16)
        mask = torch.eye(20, dtype=torch.bool)
        assert torch.equal(bfloat16_or_sdpa_attention(q, k, v, mask=mask), sdpa_attention(q, k, v, mask=mask))
        odd = random_qkv(1, 2, 2, 20, 20, 7)
        assert torch.equal(bfloat16_or_sdpa_attention(*odd, causal=True), sdpa_attention(*odd, causal=True))
        few = q[:, :, -3:]
        found = bfloat16_or_sdpa_attention(few, k, v, causal=True)
        torch.testing.assert_close(found, eager_attention(few, k, v, causal=True), rtol=0, atol=1e-5)
        torch.testing.assert_close(found, sdpa_attention(q, k, v, causal=True)[:, :, -3:], rtol=0, atol=1e-5)
