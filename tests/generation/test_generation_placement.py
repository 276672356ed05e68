"""`idefics.load` with quantization, device maps and attention backends: the same answers, less memory."""

import os
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

import idefics
from idefics import weights
from idefics.config import CONNECTOR_MODULES, UNQUANTIZED_MODULES, EngineConfig, QuantizationConfig
from idefics.errors import BadSetting, MissingExtra
from idefics.generation.load_settings import LoadSettings, choose_engine_config
from idefics.nn.attention_backends import (
    eager_attention,
    flash_attention,
    get_attention_backend,
    native_or_sdpa_attention,
    sdpa_attention,
)
from idefics.quant.bnb import BLOCK_SIZE
from idefics.quant.linear import GROUP_SIZE, Int4Linear, Int8Linear

MODELS = ("demo", "demo-idefics1")
QUANT_KINDS = ("int8", "int4", "nf4")
models = pytest.mark.parametrize("model", MODELS)


@pytest.fixture(scope="module")
def picture():
    pixels = np.full((96, 96, 3), (90, 160, 90), np.uint8)
    pixels[36:60, 36:60] = (215, 30, 40)
    return PIL.Image.fromarray(pixels)


@pytest.fixture(scope="module")
def load_unquantized():
    return {model: idefics.load(model, device="cpu") for model in MODELS}


@pytest.fixture(
    scope="module", params=[(model, kind) for model in MODELS for kind in QUANT_KINDS], ids="-".join
)
def quantized_and_unquantized(request, load_unquantized):
    """A checkpoint in few bits, and as it is stored."""
    model, kind = request.param
    return idefics.load(model, device="cpu", quantize=kind), load_unquantized[model], kind


@pytest.fixture(scope="module")
def quantized_bytes(quantized_and_unquantized):
    """Of the checkpoint in few bits before its first answer: on some CPUs bitsandbytes then packs nf4 anew."""
    return quantized_and_unquantized[0].memory


def prompt_logits(vlm, picture):
    return vlm.logits(vlm.prompt([picture, "A small red square"]))


QUANTIZED_WEIGHT_ENDINGS = (
    ".q_proj",
    ".k_proj",
    ".v_proj",
    ".o_proj",
    ".out_proj",
    ".gate_proj",
    ".up_proj",
    ".down_proj",
)


def quantized_weights(vlm, kind):
    """Weights by name that a kind makes small: the decoder's, gated blocks included; tower and a plain head too."""
    skipped = UNQUANTIZED_MODULES if kind == "nf4" else CONNECTOR_MODULES
    ends = (
        *QUANTIZED_WEIGHT_ENDINGS,
        ".fc1",
        ".fc2",
        *([] if "perceiver" in str(vlm.engine.model) else ["lm_head"]),
    )
    return {
        name: weight
        for name, weight in vlm.engine.model.named_parameters()
        if name.removesuffix(".weight").endswith(ends)
        and name.endswith("weight")
        and not any(part in name for part in skipped)
    }


def test_logits_stay_near(quantized_and_unquantized, quantized_bytes, picture):
    vlm, full, kind = quantized_and_unquantized
    before, after = prompt_logits(full, picture), prompt_logits(vlm, picture)
    error = (after - before).norm() / before.norm()
    most = {"int8": 0.0136, "int4": 0.1435, "nf4": 0.0938}  # a tenth more than these weights show
    assert 0 < error < most[kind]


def test_it_still_answers(quantized_and_unquantized, picture):
    vlm, full, kind = quantized_and_unquantized
    answer = vlm.caption(picture)
    assert answer.finish == "stop" and answer.text
    if kind == "int8":
        assert answer.text == full.caption(picture).text


def test_what_shall_shrink_does_and_nothing_else(quantized_and_unquantized):
    vlm, full, kind = quantized_and_unquantized
    before, after = quantized_weights(full, kind), dict(vlm.engine.model.named_parameters())
    assert len(before) > 20
    assert all(after[name].dtype in (torch.int8, torch.uint8) for name in before)
    kept = {name: weight for name, weight in full.engine.model.named_parameters() if name not in before}
    assert all(torch.equal(after[name], weight) for name, weight in kept.items())


def test_memory_is_what_the_formula_says(quantized_and_unquantized, quantized_bytes):
    _, full, asked = quantized_and_unquantized
    saved = 0
    for name, weight in quantized_weights(full, asked).items():
        outputs, inputs = weight.shape
        kind = "int8" if asked == "int4" and any(part in name for part in UNQUANTIZED_MODULES) else asked
        width = {"int8": inputs, "int4": -(-inputs // GROUP_SIZE) * GROUP_SIZE, "nf4": inputs}[kind]
        bits, group, scale, table = {
            "int8": (8, inputs, 4, 0),
            "int4": (4, GROUP_SIZE, 2, 0),
            "nf4": (4, BLOCK_SIZE, 4, 64),
        }[kind]
        small = outputs * width * bits // 8 + scale * -(-outputs * width // group) + table
        saved += weight.nbytes - small
    assert full.memory == sum(weight.nbytes for weight in full.engine.model.parameters())
    assert quantized_bytes == full.memory - saved
    assert saved > {"int8": 0.35, "int4": 0.45, "nf4": 0.25}[asked] * full.memory


@models
@pytest.mark.parametrize("kind", ["int8", "int4"])
@torch.inference_mode()
def test_a_quantized_model_equals_one_with_rounded_weights(model, kind, picture):
    """Against float layers with the dequantized weights."""
    vlm = idefics.load(model, device="cpu", quantize=kind)
    twin = idefics.load(model, device="cpu", dtype="float32")
    for name, layer in vlm.engine.model.named_modules():
        if isinstance(layer, (Int8Linear, Int4Linear)):
            twin.engine.model.get_submodule(name).weight.copy_(layer.dequantize(torch.float32))
    torch.testing.assert_close(
        prompt_logits(vlm, picture), prompt_logits(twin, picture), rtol=1e-4, atol=1e-4
    )
    assert vlm.caption(picture).tokens == twin.caption(picture).tokens


def test_everything_on_request(load_unquantized):
    vlm = idefics.load("demo", device="cpu", quantize=QuantizationConfig(kind="int8", skip=()))
    assert vlm.memory < idefics.load("demo", device="cpu", quantize="int8").memory
    assert isinstance(vlm.engine.model.lm_head, Int8Linear)


def test_quantizing_16_bit_weights(picture):
    vlm = idefics.load("demo", device="cpu", quantize="int8", dtype=torch.bfloat16)
    dtypes = {
        torch.bfloat16,
        torch.int8,
        torch.float32,
    }  # halves are not known to be quick
    assert {weight.dtype for weight in vlm.engine.model.parameters()} == dtypes
    assert vlm.caption(picture, max_new_tokens=4).tokens


@models
def test_weights_are_kept_in_sixteen_bits_and_computed_in_float32(model, load_unquantized, picture):
    """The numbers of a whole copy in float32, to the bit, in half the memory."""
    stored, wide = load_unquantized[model], idefics.load(model, device="cpu", dtype="float32")
    assert stored.engine.model.dtype == wide.engine.model.dtype == torch.float32
    assert torch.equal(prompt_logits(stored, picture), prompt_logits(wide, picture))
    assert stored.caption(picture).tokens == wide.caption(picture).tokens
    assert stored.memory < 0.53 * wide.memory  # norms and the tables of positions stay wide
    matrices = [weight for weight in stored.engine.model.parameters() if weight.dtype == torch.bfloat16]
    assert len(matrices) > 40


def test_what_is_stored_in_float32_stays_so(tmp_path, load_unquantized):
    folder = shutil.copytree(weights.find_checkpoint("demo"), tmp_path / "demo")
    values = load_file(folder / "model.safetensors")
    save_file({name: value.float() for name, value in values.items()}, folder / "model.safetensors")
    vlm = idefics.load(folder, device="cpu")
    assert {weight.dtype for weight in vlm.engine.model.parameters()} == {torch.float32}
    assert vlm.memory == idefics.load("demo", device="cpu", dtype="float32").memory


@models
def test_eager_and_flash_attention_equal_sdpa(model, load_unquantized, picture):
    """Flash by its own function: where there is no GPU it falls back, and must compute the same."""
    vlm = idefics.load(model, device="cpu", attn_implementation="eager")
    expected = prompt_logits(load_unquantized[model], picture)
    torch.testing.assert_close(prompt_logits(vlm, picture), expected, rtol=1e-4, atol=1e-4)
    assert vlm.caption(picture).tokens == load_unquantized[model].caption(picture).tokens
    labels = ["red square", "puppy", "city landscape"]
    ranked, wanted = (
        v.classify([picture, picture], labels)[0].labels for v in (vlm, load_unquantized[model])
    )
    assert [row.label for row in ranked] == [row.label for row in wanted]


def test_every_attention_module_gets_the_backend(load_unquantized):
    kernels = {
        name: {
            module.attention_backend
            for module in idefics.load("demo", attn_implementation=name).engine.model.modules()
            if "HasAttentionBackend" in {kind.__name__ for kind in type(module).__mro__}
        }
        for name in ("sdpa", "eager")
    }
    assert kernels == {"sdpa": {native_or_sdpa_attention}, "eager": {eager_attention}}


@pytest.mark.parametrize("kernel", [eager_attention, flash_attention])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_kernels_agree(kernel, masked, heads):
    q, k, v = torch.randn(2, heads[0], 5, 8), *(torch.randn(2, heads[1], 5, 8) for _ in range(2))
    mask = torch.ones(5, 5, dtype=torch.bool).tril(1) if masked else None
    for causal in (False,) if masked else (False, True):
        out = kernel(q, k, v, mask=mask, causal=causal)
        torch.testing.assert_close(out, sdpa_attention(q, k, v, mask=mask, causal=causal))


def test_flash_attention_names_the_missing_requirement(monkeypatch):
    cuda, half = torch.device("cuda"), torch.float16
    cases = [(cuda, half, "no CUDA device")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, dtype, message in cases:
        with pytest.raises(BadSetting, match=f'{message}.*"sdpa"'):
            get_attention_backend("flash_attention_2", dtype, device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    capability = (8, 0)
    assert get_attention_backend("flash_attention_2", half, cuda) is flash_attention
    with pytest.raises(BadSetting, match=r'the model is on cpu.*"sdpa"'):
        get_attention_backend("flash_attention_2", half, torch.device("cpu"))
    with pytest.raises(BadSetting, match=r'are float32.*"sdpa"'):
        get_attention_backend("flash_attention_2", torch.float32, cuda)
    capability = (7, 5)
    with pytest.raises(BadSetting, match=r'Some GPU is older.*"sdpa"'):
        get_attention_backend("flash_attention_2", half, cuda)


def test_a_device_map_without_gpus_is_the_cpu(picture, load_unquantized):
    vlm = (
        idefics.load("demo", device_map="auto") if not torch.cuda.is_available() else load_unquantized["demo"]
    )
    assert vlm.caption(picture).tokens == load_unquantized["demo"].caption(picture).tokens
    assert vlm.memory == load_unquantized["demo"].memory


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int3"}, "quantize is 'int3'; give int8, int4, fp8, nf4 or fp4"),
        ({"attn_implementation": "paged"}, "attn_implementation is 'paged'; give sdpa, eager"),
        ({"device": "cpu", "attn_implementation": "flash_attention_2"}, '"sdpa"'),
        ({"device": "cpu", "device_map": "auto"}, "give one of the two"),
        ({"device_map": "auto", "max_memory": {"cpu": "100KB"}}, "does not fit into memory"),
        ({"device_map": {"lm_head": "cpu"}}, "leaves out"),
        ({"dtype": torch.int8}, "dtype is 'int8'"),
    ],
)
def test_error_messages_are_one_line(options, message):
    with pytest.raises(BadSetting) as caught:
        idefics.load("demo", **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(MissingExtra, match=r"pip install 'idefics\[quant\]'"):
        idefics.load("demo", quantize="nf4")


MEASURE_SCRIPT = """
import sys
import torch
from pathlib import Path
from torch import nn
from idefics.config import QuantizationConfig
from idefics.models import load_weights
from idefics.weights import KeyRules

def kibibytes(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])

def model():
    with torch.device("meta"):
        return nn.ModuleList(nn.Linear(1024, 2048, bias=False) for _ in range(16))

def load(folder):
    load_weights(model_, Path(folder), KeyRules(), dtype=torch.float32, device=torch.device("cpu"),
                 quantization=QuantizationConfig(kind=sys.argv[2]))

from idefics.quant import quantizers_by_name
warm = nn.ModuleList([nn.Linear(64, 64)])
quantizers_by_name(warm, QuantizationConfig(kind=sys.argv[2]))["0.weight"](torch.ones(64, 64))  # libraries are there
model_ = model()
before = kibibytes("VmRSS")
load(sys.argv[1])
print((kibibytes("VmHWM") - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("kind", "model"), [("int8", 32), ("int4", 20), ("nf4", 18)])
def test_memory_peaks_at_the_small_model_and_a_few_tensors(tmp_path, kind, model):
    save_file({f"{n}.weight": torch.randn(2048, 1024) for n in range(16)}, tmp_path / "model.safetensors")
    command = [sys.executable, "-c", MEASURE_SCRIPT, tmp_path, kind]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    peak = float(subprocess.run(command, check=True, capture_output=True, text=True, env=here).stdout)
    # A tensor has 8 MiB: as it is read, cast, and while it is rounded. The whole in float32 would be 128.
    assert model <= peak + 1 <= model + 7 * 8


def test_a_gpu_has_larger_batches():
    cpu, gpu = (choose_engine_config(torch.device(name), LoadSettings()) for name in ("cpu", "cuda:1"))
    assert cpu == EngineConfig()
    assert gpu.batch_rows > cpu.batch_rows and gpu.step_tokens > cpu.step_tokens
