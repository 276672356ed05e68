"""`kernels=` selects the kernels, `kv_cache=` and `batch_rows=` the memory: in Python and by flags."""

import pytest
import torch
from torch import nn

import idefics
from idefics.cli.command import load
from idefics.cli.flags import ModelFlags
from idefics.cli.main import run
from idefics.cli.output import OutputWriter
from idefics.demo import pictures
from idefics.engine.cuda_graphs import CudaGraphDecode
from idefics.engine.decode import TorchDecode
from idefics.errors import BadSetting, OutOfMemory
from idefics.native import library
from idefics.native.library import InstructionSet, available_instruction_sets
from idefics.nn.attention_backends import (
    HasAttentionBackend,
    bfloat16_or_sdpa_attention,
    native_or_sdpa_attention,
    sdpa_attention,
)
from idefics.nn.native_kernels import NativeLinear
from idefics.quant import autotune
from idefics.quant.autotune import KernelChoice, choose_kernels, kernel_choice_by_processor
from idefics.quant.linear import Int8Linear
from idefics.quant.matmul import w8a8_matmul

PICTURE = pictures()[0]


class WideModel(nn.Module):
    """Enough weights that the choice of a product matters."""

    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.layer = nn.Linear(8192, 8192, bias=False)


@pytest.fixture(autouse=True)
def forbid_timing(monkeypatch):
    def timed(products):
        raise AssertionError("a product was timed")

    monkeypatch.setattr(autotune, "_fastest_call_times", timed)


def fake_processor(monkeypatch, *, vendor, vnni=False, bfloat16=False):
    monkeypatch.setattr(autotune, "read_cpuinfo", lambda what: vendor if what == "vendor_id" else "")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(
        library, "best_instruction_set", lambda kernel: InstructionSet.AVX512_BF16 if bfloat16 else None
    )
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)


def test_auto_depends_on_the_processor_only(monkeypatch):
    fake_processor(monkeypatch, vendor="AuthenticAMD", vnni=True, bfloat16=True)
    assert kernel_choice_by_processor() == KernelChoice(onednn=True, integers=True, bfloat16=True)
    assert choose_kernels(WideModel(), "auto") == kernel_choice_by_processor()
    fake_processor(monkeypatch, vendor="GenuineIntel", vnni=True)
    assert choose_kernels(WideModel(), "auto") == KernelChoice(integers=True)
    fake_processor(monkeypatch, vendor="")
    assert kernel_choice_by_processor() == KernelChoice()


def test_a_small_model_uses_torch(monkeypatch):
    fake_processor(monkeypatch, vendor="AuthenticAMD", vnni=True, bfloat16=True)
    assert choose_kernels(nn.Linear(8, 8), "auto") == KernelChoice()


def test_autotune_measures():
    with pytest.raises(AssertionError, match="timed"):
        choose_kernels(WideModel(), "autotune")


def test_reference_uses_torch_only(monkeypatch):
    fake_processor(monkeypatch, vendor="AuthenticAMD", vnni=True, bfloat16=True)
    monkeypatch.setattr(autotune, "MIN_TUNED_WEIGHTS", 0)
    assert choose_kernels(WideModel(), "reference") is None
    quick = idefics.load("demo", device="cpu", quantize="int8")
    slow = idefics.load("demo", device="cpu", quantize="int8", kernels="reference")

    def layers(vlm):
        return [module for module in vlm.engine.model.modules() if isinstance(module, Int8Linear)]

    assert {layer.matmul for layer in layers(quick)} == {w8a8_matmul}
    assert {layer.matmul for layer in layers(slow)} == {Int8Linear.default_matmul}
    assert type(slow.engine.model_runner.decode_step) is TorchDecode
    assert not isinstance(quick.engine.model_runner.decode_step, CudaGraphDecode)
    assert isinstance(quick.engine.model_runner.decode_step, TorchDecode) is not bool(
        available_instruction_sets("decode step")
    )

    def ways(vlm):
        return {
            module.attention_backend
            for module in vlm.engine.model.modules()
            if isinstance(module, HasAttentionBackend)
        }

    has_bfloat16 = kernel_choice_by_processor().bfloat16  # as `fake_processor` says
    quick_backend = bfloat16_or_sdpa_attention if has_bfloat16 else native_or_sdpa_attention
    assert (ways(quick), ways(slow)) == ({quick_backend}, {sdpa_attention})


@pytest.mark.parametrize("model", ["demo", "demo-idefics1"])
def test_the_reference_gives_the_same_answer(model):
    question = "What can you see?"
    answers = [
        idefics.load(model, device="cpu", kernels=kernels).ask(PICTURE, question, logprobs=True)
        for kernels in ("auto", "reference")
    ]
    assert answers[0].tokens == answers[1].tokens
    assert answers[0].logprobs == pytest.approx(answers[1].logprobs, abs=1e-4)


def test_eager_attention_stays_what_was_asked_for():
    vlm = idefics.load("demo", kernels="reference", attn_implementation="eager")
    assert vlm.engine.model.attention_backend not in (native_or_sdpa_attention, sdpa_attention)


@pytest.mark.parametrize("kernels", ["fast", "", None, "AUTO"])
def test_unknown_kernel_modes_are_refused(kernels):
    with pytest.raises(BadSetting, match=r"kernels is .*; give auto, autotune or reference"):
        idefics.load("demo", kernels=kernels)


def test_memory_and_rows_are_settings_of_load():
    vlm = idefics.load("demo", kv_cache="4MB", batch_rows=3)
    config = vlm.engine.config
    assert (config.kv_cache, config.batch_rows) == (4_000_000, 3)
    taken = sum(x.nbytes for x in (*vlm.engine.kv_cache.keys, *vlm.engine.kv_cache.values))
    assert 3_500_000 < taken <= 4_000_000 + taken / vlm.engine.kv_cache.num_pages
    assert vlm.engine.scheduler.config.batch_rows == 3
    with pytest.raises(BadSetting, match="kv_cache is '1XB'; give bytes"):
        idefics.load("demo", kv_cache="1XB")
    with pytest.raises(BadSetting, match="batch_rows is 0"):
        idefics.load("demo", batch_rows=0)


def test_the_flags_reach_load(monkeypatch):
    given = {}
    monkeypatch.setattr(idefics, "load", lambda model, **keywords: given.update(keywords), raising=False)
    with OutputWriter("idefics ask") as screen:
        load(ModelFlags(model="demo", kv_cache="1GB", batch_rows=2, kernels="reference"), screen)
    assert (given["kv_cache"], given["batch_rows"], given["kernels"]) == ("1GB", 2, "reference")


@pytest.mark.parametrize(
    "flags", [["--kv-cache", "lots"], ["--kernels", "quick"], ["--batch-rows", "x"], ["--batch-rows", "0"]]
)
@pytest.mark.parametrize("command", ["ask", "serve"])
def test_flags_are_checked_and_named(capsys, command, flags):
    words = [command, str(PICTURE), "What?"] if command == "ask" else [command]
    assert run([*words, *flags, "--model", "demo"]) == 2
    said = capsys.readouterr().err
    assert flags[0][2:].replace("-", "_") in said.replace("-", "_")
    assert "not foreseen" not in said


def test_weights_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr("idefics.placement.devices.free_host_memory", lambda: 5_000_000)
    with pytest.raises(OutOfMemory, match=r"the model needs 7 MB, 5 MB free: take a smaller one"):
        idefics.load("demo", device="cpu")


def test_weights_that_are_still_in_their_files_are_counted(monkeypatch):
    """They are read when they are first needed: what is free before that is not all the cache's."""
    monkeypatch.setattr("idefics.placement.devices.free_host_memory", lambda: 60_000_000)
    vlm = idefics.load("demo", device="cpu")
    taken = sum(x.nbytes for x in (*vlm.engine.kv_cache.keys, *vlm.engine.kv_cache.values))
    assert taken == pytest.approx(0.3 * (60_000_000 - vlm.memory), rel=0.02)


def test_float32_on_request_multiplies_nothing_in_bfloat16(monkeypatch):
    """Also in a model that is large enough for the kernels; by default its layers and its attention use them."""
    monkeypatch.setattr(autotune, "MIN_TUNED_WEIGHTS", 0)

    def find_bfloat16(vlm):
        modules = list(vlm.engine.model.modules())
        products = [layer for layer in modules if isinstance(layer, NativeLinear) and layer.native_weight()]
        backends = {module.attention_backend for module in modules if isinstance(module, HasAttentionBackend)}
        return bool(products), bfloat16_or_sdpa_attention in backends

    has_bfloat16 = kernel_choice_by_processor().bfloat16
    assert find_bfloat16(idefics.load("demo", device="cpu")) == (has_bfloat16, has_bfloat16)
    exact = idefics.load("demo", device="cpu", dtype="float32")
    assert find_bfloat16(exact) == (False, False)
    reference = idefics.load("demo", device="cpu", dtype="float32", kernels="reference")
    logits = [vlm.logits(vlm.prompt([PICTURE, "What can you see?"])) for vlm in (exact, reference)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
