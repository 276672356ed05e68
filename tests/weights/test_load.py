"""Streaming weights into a small module: missing names, dtypes, tied weights, memory."""

import json
import os
import subprocess
import sys
import weakref

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import nn

from idefics.errors import BrokenCheckpoint, UnsupportedModel, WeightsMismatch
from idefics.weights import KeyRules, load
from idefics.weights.adapter_config import AdapterConfig
from idefics.weights.adapter_files import write_adapter

NO_RULES = KeyRules()
ON_CPU = {"": torch.device("cpu")}


class ToyModel(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.body = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.gate = nn.Parameter(torch.zeros(()))
        self.head = nn.Linear(4, 6, bias=False)
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))
        if tied:
            self.head.weight = self.embed.weight


def make_toy_model(**kwargs):
    with torch.device("meta"):
        return ToyModel(**kwargs)


def random_tensors(**changes):
    whole = {name: torch.randn(t.shape) for name, t in ToyModel().state_dict().items()}
    whole["steps"] = torch.tensor([1, 2, 3])
    whole |= changes
    return {name: tensor for name, tensor in whole.items() if tensor is not None}


def load_into(folder, model, rules=NO_RULES, dtype=torch.float32):
    load(model, folder, rules, dtype=dtype, device_by_module=ON_CPU)
    return model.state_dict()


def write_shards(folder, parts, index=True, prefix="model"):
    names = [f"{prefix}-{n + 1:05}-of-{len(parts):05}.safetensors" for n in range(len(parts))]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    if index:
        where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": where})
        )
    return names


def split_in_halves(saved):
    keys = list(saved)
    return [{k: saved[k] for k in keys[:3]}, {k: saved[k] for k in keys[3:]}]


@pytest.mark.parametrize("layout", ["whole", "other name", "index", "shards without index", "loose files"])
def test_every_layout_of_files_loads(tmp_path, layout):
    saved = random_tensors()
    if layout == "whole":
        save_file(saved, tmp_path / "model.safetensors")
        save_file({"stale": torch.ones(1)}, tmp_path / "other.safetensors")
    elif layout == "other name":
        save_file(saved, tmp_path / "toy.fp32.safetensors")
    elif layout == "loose files":
        for name, part in zip("ab", split_in_halves(saved), strict=True):
            save_file(part, tmp_path / f"{name}.safetensors")
    else:
        write_shards(tmp_path, split_in_halves(saved), index=layout == "index")
    loaded = load_into(tmp_path, make_toy_model())
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_floats_take_the_dtype_and_integers_keep_theirs(tmp_path):
    saved = random_tensors()
    save_file(
        {name: t.half() if t.is_floating_point() else t.int() for name, t in saved.items()},
        tmp_path / "a.safetensors",
    )
    loaded = load_into(tmp_path, make_toy_model(), dtype=torch.bfloat16)
    assert {name: t.dtype for name, t in loaded.items() if name != "steps"} == dict.fromkeys(
        [name for name in saved if name != "steps"], torch.bfloat16
    )
    assert loaded["steps"].dtype == torch.int64
    torch.testing.assert_close(loaded["head.weight"], saved["head.weight"].half().bfloat16(), rtol=0, atol=0)


def test_parameters_stay_parameters(tmp_path):
    save_file(random_tensors(), tmp_path / "model.safetensors")
    model = make_toy_model()
    model.embed.weight.requires_grad_(False)
    load_into(tmp_path, model)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == {
        n: n != "embed.weight" for n, _ in ToyModel().named_parameters()
    }
    assert [name for name, _ in model.named_buffers()] == ["steps"]


def test_every_mismatch_is_told_at_once(tmp_path):
    wrong = random_tensors(
        gate=None, extra=torch.ones(2), **{"body.0.bias": None, "head.weight": torch.ones(4, 6)}
    )
    save_file(wrong, tmp_path / "model.safetensors")
    with pytest.raises(WeightsMismatch) as caught:
        load_into(tmp_path, make_toy_model())
    assert set(caught.value.missing) == {"gate", "body.0.bias"}
    assert caught.value.unused == ("extra",)
    assert caught.value.shapes == {"head.weight": ((4, 6), (6, 4))}
    for word in ("2 missing", "gate", "body.0.bias", "1 unused (extra)", "head.weight is (4, 6), not (6, 4)"):
        assert word in str(caught.value)


def test_a_mismatch_is_told_before_anything_is_read(tmp_path):
    save_file(random_tensors(gate=None), tmp_path / "model.safetensors")
    model = make_toy_model()
    with pytest.raises(WeightsMismatch):
        load_into(tmp_path, model)
    assert all(p.is_meta for p in model.parameters())


CONCATENATING_RULES = KeyRules(
    concat={
        "embed.weight": ("embed.weight", "more.weight"),
        "head.weight": ("old.weight", "older.weight"),
    }
)


def test_parts_are_concatenated_top_first(tmp_path):
    saved = random_tensors()
    split = random_tensors(**saved, **{"more.weight": saved["embed.weight"][5:].bfloat16()})
    split["embed.weight"] = saved["embed.weight"][:5].contiguous()
    split["older.weight"], split["old.weight"] = (
        saved["head.weight"][4:].clone(),
        split.pop("head.weight")[:4].clone(),
    )
    save_file(split, tmp_path / "model.safetensors")
    loaded = load_into(tmp_path, make_toy_model(), CONCATENATING_RULES)
    assert torch.equal(loaded["head.weight"], saved["head.weight"])
    assert torch.equal(loaded["embed.weight"][:5], saved["embed.weight"][:5])
    assert torch.equal(loaded["embed.weight"][5], saved["embed.weight"][5].bfloat16().float())


@pytest.mark.parametrize(("first", "second"), [(6, (1, 4)), (5, (1, 3)), (5, ())])
def test_parts_that_do_not_stack_are_misshapen(tmp_path, first, second):
    parts = {"embed.weight": torch.ones(first, 4), "more.weight": torch.ones(second)}
    save_file(random_tensors(**parts), tmp_path / "model.safetensors")
    with pytest.raises(WeightsMismatch) as caught:
        load_into(tmp_path, make_toy_model(), CONCATENATING_RULES)
    assert list(caught.value.shapes) == ["embed.weight"]


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight", "both"])
def test_tied_weights_need_one_name(tmp_path, kept):
    saved = random_tensors()
    saved["head.weight"] = saved["embed.weight"].clone()
    if kept != "both":
        del saved["embed.weight" if kept == "head.weight" else "head.weight"]
    save_file(saved, tmp_path / "model.safetensors")
    model = make_toy_model(tied=True)
    load_into(tmp_path, model)
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.head.weight, saved.get("embed.weight", saved.get("head.weight")))


def test_tied_weights_that_differ_are_refused(tmp_path):
    save_file(random_tensors(), tmp_path / "model.safetensors")
    with pytest.raises(
        UnsupportedModel, match=r'head\.weight differs from embed\.weight .*"tie_word_embeddings"'
    ):
        load_into(tmp_path, make_toy_model(tied=True))


def test_tied_weights_that_are_both_missing_are_told(tmp_path):
    save_file(random_tensors(**{"embed.weight": None, "head.weight": None}), tmp_path / "model.safetensors")
    with pytest.raises(WeightsMismatch, match=r"1 missing \(embed.weight\)"):
        load_into(tmp_path, make_toy_model(tied=True))


def test_integers_in_place_of_weights_are_refused(tmp_path):
    save_file(
        random_tensors(**{"head.weight": torch.ones(6, 4, dtype=torch.int8)}), tmp_path / "model.safetensors"
    )
    with pytest.raises(UnsupportedModel, match=r"head\.weight is stored as I8"):
        load_into(tmp_path, make_toy_model())


def test_floats_in_place_of_integers_are_refused(tmp_path):
    save_file(random_tensors(steps=torch.ones(3).bfloat16()), tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="steps is stored as BF16"):
        load_into(tmp_path, make_toy_model())


class ModelWithUnloadedWeight(ToyModel):
    def __init__(self):
        super().__init__()
        self.register_buffer("angles", torch.ones(2), persistent=False)


def test_nothing_may_be_left_on_meta(tmp_path):
    save_file(random_tensors(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        model = ModelWithUnloadedWeight()
    with pytest.raises(RuntimeError, match="angles"):
        load_into(tmp_path, model)


def test_pickles_are_refused_and_the_line_that_converts_them_works(tmp_path):
    saved = random_tensors()
    saved["head.weight"] = saved["embed.weight"]  # one memory under two names, as torch.save allows
    for name, part in zip("12", split_in_halves(saved), strict=True):
        torch.save(part, tmp_path / f"pytorch_model-{name}.bin")
    with pytest.raises(UnsupportedModel) as caught:
        load_into(tmp_path, make_toy_model())
    message = str(caught.value)
    assert "\n" not in message
    assert "safetensors" in message
    code = message.split('python -c "')[1].removesuffix('"')
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(torch.equal(t, saved[name]) for name, t in load_into(tmp_path, make_toy_model()).items())


def test_a_folder_without_weights_says_what_belongs_there(tmp_path):
    with pytest.raises(BrokenCheckpoint, match=r"holds no weights: model\.safetensors"):
        load_into(tmp_path, make_toy_model())


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path, index):
    names = write_shards(tmp_path, split_in_halves(random_tensors()), index)
    (tmp_path / names[1]).unlink()
    with pytest.raises(BrokenCheckpoint, match=f"lacks {names[1]}, of 2 files"):
        load_into(tmp_path, make_toy_model())


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 7}}'])
def test_a_broken_index_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BrokenCheckpoint, match=r"index\.json"):
        load_into(tmp_path, make_toy_model())


@pytest.mark.parametrize("name", ["../model-00001-of-00001.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_cannot_point_outside_its_folder(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BrokenCheckpoint, match="not a file in its folder"):
        load_into(tmp_path, make_toy_model())


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "page"])
def test_a_damaged_file_is_named(tmp_path, damage):
    file = tmp_path / "model.safetensors"
    save_file(random_tensors(), file)
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[:-8],
            "empty": b"",
            "header": b"\xff" * 8 + content[8:],
            "page": b"<html>gone</html>",
        }[damage]
    )
    with pytest.raises(
        BrokenCheckpoint, match=r"model\.safetensors cannot be read .* download or copy it again"
    ):
        load_into(tmp_path, make_toy_model())


def test_a_tensor_in_two_files_is_a_contradiction(tmp_path):
    save_file(random_tensors(), tmp_path / "a.safetensors")
    save_file({"gate": torch.ones(())}, tmp_path / "b.safetensors")
    with pytest.raises(BrokenCheckpoint, match=r"a\.safetensors and .*b\.safetensors both hold gate"):
        load_into(tmp_path, make_toy_model())


def test_one_tensor_at_a_time_is_read(tmp_path, monkeypatch):
    saved = random_tensors()
    save_file(saved, tmp_path / "model.safetensors")
    alive, most, read = weakref.WeakSet(), 0, []

    class Counting:
        def __init__(self, *args, **kwargs):
            self.file = safe_open(*args, **kwargs)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def keys(self):
            return self.file.keys()

        def get_slice(self, name):
            return self.file.get_slice(name)

        def get_tensor(self, name):
            nonlocal most
            tensor = self.file.get_tensor(name)
            alive.add(tensor)
            read.append(name)
            most = max(most, len(alive))
            return tensor

    safe_open = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", Counting)
    load_into(tmp_path, make_toy_model())
    assert sorted(read) == sorted(saved)
    assert most == 1


def test_each_part_goes_to_its_own_device(tmp_path):
    saved = random_tensors()
    save_file(saved, tmp_path / "model.safetensors")
    places = {"": torch.device("cpu"), "body": torch.device("meta"), "body.1": torch.device("cpu")}
    model = make_toy_model()
    with pytest.raises(RuntimeError, match=r"body\.0\.weight, body\.0\.bias$"):  # told as left behind on meta
        load(model, tmp_path, NO_RULES, dtype=torch.float32, device_by_module=places)
    assert torch.equal(model.body[1].weight, saved["body.1.weight"])


def test_a_part_without_a_device_is_our_own_mistake(tmp_path):
    save_file(random_tensors(), tmp_path / "model.safetensors")
    with pytest.raises(KeyError):
        load(
            make_toy_model(),
            tmp_path,
            NO_RULES,
            dtype=torch.float32,
            device_by_module={"body": torch.device("cpu")},
        )


def test_what_is_packed_is_handed_over_in_its_final_dtype(tmp_path):
    saved = random_tensors()
    save_file(saved, tmp_path / "model.safetensors")
    model, given = make_toy_model(), []

    def pack(value):
        given.append(value)
        layer = nn.Linear(4, 4, bias=False)
        layer.bias = model.body[0].bias  # still to come
        model.body[0] = layer

    load(
        model,
        tmp_path,
        NO_RULES,
        dtype=torch.bfloat16,
        device_by_module=ON_CPU,
        quantizers_by_name={"body.0.weight": pack},
    )
    assert torch.equal(given[0], saved["body.0.weight"].bfloat16()) and len(given) == 1
    assert torch.equal(model.body[0].bias, saved["body.0.bias"].bfloat16())


def test_what_is_used_as_it_is_stored_may_stay_in_the_file(tmp_path):
    saved = random_tensors()
    saved["head.weight"] = saved["head.weight"].bfloat16()
    file = tmp_path / "model.safetensors"
    save_file(saved, file)
    model = make_toy_model()
    load(model, tmp_path, NO_RULES, dtype=torch.float32, device_by_module=ON_CPU, mmap=True)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], saved[name].to(loaded[name].dtype)) for name in saved)
    with file.open("r+b") as written:  # in place, as nobody should
        written.seek(-file.stat().st_size, os.SEEK_END)
        header = int.from_bytes(written.read(8), "little")
        written.seek(8 + header)
        written.write(bytes(file.stat().st_size - 8 - header))
    changed = {name for name, tensor in model.state_dict().items() if not tensor.any()}
    assert changed == saved.keys() - {
        "head.weight",
        "steps",
    }  # one was cast, the other is a buffer of whole numbers


@pytest.mark.parametrize("mapped", [True, False])
def test_a_model_that_writes_leaves_its_file_as_it_was(tmp_path, mapped):
    save_file(random_tensors(), tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    model = make_toy_model()
    load(model, tmp_path, NO_RULES, dtype=torch.float32, device_by_module=ON_CPU, mmap=mapped)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


MEASURE_SCRIPT = """
import sys
import torch
from pathlib import Path
from torch import nn
from idefics.weights import KeyRules, load

def kibibytes(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])

with torch.device("meta"):
    model = nn.ModuleList(nn.Linear(1024, 2048, bias=False) for _ in range(16))
before = kibibytes("VmRSS")
adapter = Path(sys.argv[3]) if sys.argv[3:] else None
devices = {"": torch.device("cpu")}
load(model, Path(sys.argv[1]), KeyRules(), dtype=getattr(torch, sys.argv[2]), device_by_module=devices, adapter=adapter)
print((kibibytes("VmHWM") - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("is_adapted", [False, True], ids=["as it is", "with an adapter"])
@pytest.mark.parametrize(("dtype", "model"), [("float32", 128), ("bfloat16", 64)])
def test_memory_peaks_at_the_model_and_one_tensor(tmp_path, dtype, model, is_adapted):
    tensor = 8  # MiB, in the file
    command = [sys.executable, "-c", MEASURE_SCRIPT, tmp_path, dtype]
    if is_adapted:
        factors = {"lora_A": torch.ones(4, 1024), "lora_B": torch.ones(2048, 4)}
        tensors = {f"{n}.{name}.weight": value.clone() for n in range(16) for name, value in factors.items()}
        write_adapter(tmp_path / "adapter", tensors, AdapterConfig(rank=4, alpha=4))
        command.append(tmp_path / "adapter")
    save_file({f"{n}.weight": torch.zeros(2048, 1024) for n in range(16)}, tmp_path / "model.safetensors")
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    peak = float(subprocess.run(command, check=True, capture_output=True, text=True, env=here).stdout)
    # Half the file is more than chance can add, and less than any second copy would.
    assert model <= peak + 1 <= model + tensor + 40
