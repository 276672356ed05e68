"""`kernels=` says what computes, `kv_cache=` and `batch_rows=` how much memory it takes: in Python and by flags."""

import pytest
import torch
from torch import nn

import idefics
from idefics.cli.flags import ModelFlags
from idefics.cli.loading import load
from idefics.cli.main import run
from idefics.cli.output import Screen
from idefics.demo import pictures
from idefics.engine.decode import TorchDecode
from idefics.engine.graph import GraphDecode
from idefics.engine.native.library import instruction_sets
from idefics.errors import BadSetting, OutOfMemory
from idefics.nn.kernels import Attending, fast, fused
from idefics.quant import measure
from idefics.quant.integers import Int8Linear, rounded_back
from idefics.quant.measure import Verdict, by_processor, verdict_for
from idefics.quant.products import integers

PICTURE = pictures()[0]


class Wide(nn.Module):
    """Enough weights that the choice of a product matters."""

    def __init__(self):
        super().__init__()
        with torch.device("meta"):
            self.layer = nn.Linear(8192, 8192, bias=False)


@pytest.fixture(autouse=True)
def nothing_is_timed(monkeypatch):
    def timed(products):
        raise AssertionError("a product was timed")

    monkeypatch.setattr(measure, "_quickest", timed)


def processor(monkeypatch, *, vendor, vnni=False, bfloat16=False, float16=False):
    monkeypatch.setattr(measure, "said_of_processor", lambda what: vendor if what == "vendor_id" else "")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: float16)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)


def test_auto_goes_by_the_processor_alone(monkeypatch):
    processor(monkeypatch, vendor="AuthenticAMD", vnni=True, bfloat16=True)
    assert by_processor() == Verdict(onednn=True, integers=True, halves=("bfloat16",))
    assert verdict_for(Wide(), "auto") == by_processor()
    processor(monkeypatch, vendor="GenuineIntel", float16=True)
    assert verdict_for(Wide(), "auto") == Verdict(halves=("float16",))
    processor(monkeypatch, vendor="")
    assert by_processor() == Verdict()


def test_a_small_model_computes_by_torch(monkeypatch):
    processor(monkeypatch, vendor="AuthenticAMD", vnni=True, bfloat16=True)
    assert verdict_for(nn.Linear(8, 8), "auto") == Verdict()


def test_autotune_measures():
    with pytest.raises(AssertionError, match="timed"):
        verdict_for(Wide(), "autotune")


def test_reference_is_torch_alone(monkeypatch):
    processor(monkeypatch, vendor="AuthenticAMD", vnni=True, bfloat16=True)
    monkeypatch.setattr(measure, "SMALL", 0)
    assert verdict_for(Wide(), "reference") is None
    quick = idefics.load("demo", device="cpu", quantize="int8")
    slow = idefics.load("demo", device="cpu", quantize="int8", kernels="reference")

    def layers(vlm):
        return [module for module in vlm.engine.model.modules() if isinstance(module, Int8Linear)]

    assert {layer.product for layer in layers(quick)} == {integers}
    assert {layer.product for layer in layers(slow)} == {rounded_back}
    assert type(slow.engine.runner.decode) is TorchDecode
    assert not isinstance(quick.engine.runner.decode, GraphDecode)
    assert isinstance(quick.engine.runner.decode, TorchDecode) is not bool(instruction_sets())

    def ways(vlm):
        return {module.kernel for module in vlm.engine.model.modules() if isinstance(module, Attending)}

    assert (ways(quick), ways(slow)) == ({fast}, {fused})


@pytest.mark.parametrize("model", ["demo", "demo-idefics1"])
def test_the_reference_says_the_same(model):
    question = "What can you see?"
    answers = [
        idefics.load(model, device="cpu", kernels=kernels).ask(PICTURE, question, logprobs=True)
        for kernels in ("auto", "reference")
    ]
    assert answers[0].tokens == answers[1].tokens
    assert answers[0].logprobs == pytest.approx(answers[1].logprobs, abs=1e-4)


def test_eager_attention_stays_what_was_asked_for():
    vlm = idefics.load("demo", kernels="reference", attn_implementation="eager")
    assert vlm.engine.model.kernel not in (fast, fused)


@pytest.mark.parametrize("kernels", ["fast", "", None, "AUTO"])
def test_other_words_are_refused(kernels):
    with pytest.raises(BadSetting, match=r"kernels is .*; give auto, autotune or reference"):
        idefics.load("demo", kernels=kernels)


def test_memory_and_rows_are_settings_of_load():
    vlm = idefics.load("demo", kv_cache="4MB", batch_rows=3)
    config = vlm.engine.config
    assert (config.kv_cache, config.batch_rows) == (4_000_000, 3)
    taken = sum(x.nbytes for x in (*vlm.engine.cache.keys, *vlm.engine.cache.values))
    assert 3_500_000 < taken <= 4_000_000 + taken / vlm.engine.cache.pages
    assert vlm.engine.scheduler.limits.rows == 3
    with pytest.raises(BadSetting, match="kv_cache is '1XB'; give bytes"):
        idefics.load("demo", kv_cache="1XB")
    with pytest.raises(BadSetting, match="batch_rows is 0"):
        idefics.load("demo", batch_rows=0)


def test_the_flags_reach_load(monkeypatch):
    given = {}
    monkeypatch.setattr(idefics, "load", lambda model, **keywords: given.update(keywords), raising=False)
    with Screen("idefics ask") as screen:
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
    monkeypatch.setattr("idefics.placement.free_host_memory", lambda: 5_000_000)
    with pytest.raises(OutOfMemory, match=r"the model needs 7 MB, 5 MB free: take a smaller one"):
        idefics.load("demo", device="cpu")


def test_weights_that_are_still_in_their_files_are_counted(monkeypatch):
    """They are read when they are first needed: what is free before that is not all the cache's."""
    monkeypatch.setattr("idefics.placement.free_host_memory", lambda: 60_000_000)
    vlm = idefics.load("demo", device="cpu")
    taken = sum(x.nbytes for x in (*vlm.engine.cache.keys, *vlm.engine.cache.values))
    assert taken == pytest.approx(0.3 * (60_000_000 - vlm.memory), rel=0.02)
