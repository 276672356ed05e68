"""An adapter fits wholly or not at all: one error lists all that is wrong, and nothing is loaded."""

import json
import os
import subprocess
import sys

import pytest
import torch
from fake_hub import run_fake_hub

import idefics
from idefics import AdapterMismatch, BadSetting, BrokenCheckpoint, ModelNotFound, UnsupportedModel
from idefics.demo import __path__ as DEMO
from idefics.weights import find_adapter
from idefics.weights.adapter_config import AdapterConfig
from idefics.weights.adapter_files import write_adapter
from models import tiny
from models.tiny_adapters import edit_tensors, write_demo_adapter, write_random_adapter

LAYER = "model.text_model.layers.0.self_attn"
KEY = f"base_model.model.{LAYER}"


@pytest.fixture
def base(tmp_path):
    return tiny.write_checkpoint(tmp_path / "base", tiny.IDEFICS3)


@pytest.fixture
def adapter(base, tmp_path):
    return write_random_adapter(tmp_path / "adapter", tiny.load_checkpoint(base), ["q_proj", "v_proj"])


def load(base, adapter):
    return tiny.load_checkpoint(base, adapter=adapter)


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def problems_of(base, adapter):
    with pytest.raises(AdapterMismatch) as caught:
        load(base, adapter)
    assert "\n" not in str(caught.value)
    assert all(title in str(caught.value) for title in caught.value.problems)
    return caught.value.problems


def test_all_that_is_wrong_is_in_one_error(base, adapter):
    def edit(tensors):
        tensors["base_model.model.model.text_model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.ones(
            2, 48
        )
        tensors[f"{KEY}.q_proj.lora_magic.weight"] = torch.ones(3)
        del tensors[f"{KEY}.q_proj.lora_B.weight"]
        tensors[f"{KEY}.v_proj.lora_A.weight"] = torch.ones(3, 48)
        tensors[f"{KEY}.v_proj.lora_B.weight"] = torch.ones(25, 3)
        tensors[f"{KEY}.o_proj.lora_A.weight"] = torch.ones(2, 48)
        tensors[f"{KEY}.o_proj.lora_B.weight"] = torch.ones(48, 2)
        tensors["base_model.model.lm_head.weight"] = torch.ones(64, 48)
        for name in ("lora_A", "lora_B"):
            del tensors[f"base_model.model.model.text_model.layers.1.self_attn.v_proj.{name}.weight"]

    edit_tensors(adapter, edit)
    edit_config(adapter, modules_to_save=["connector.modality_projection", "score"])
    assert problems_of(base, adapter) == {
        "unknown": (
            f"{KEY}.q_proj.lora_magic.weight",
            "base_model.model.model.text_model.layers.9.self_attn.q_proj.lora_A.weight",
        ),
        "incomplete": (f"{KEY}.q_proj.lora_A.weight",),
        "of another rank": (f"{LAYER}.v_proj has 3, not 2",),
        "misshapen": (f"{LAYER}.v_proj is (25, 48), not (24, 48)",),
        "not in target_modules": (f"{LAYER}.o_proj",),
        "not in modules_to_save": ("base_model.model.lm_head.weight",),
        "unknown in modules_to_save": ("score",),
        "missing": (
            "model.connector.modality_projection.proj.weight",
            f"{LAYER}.q_proj.lora_A",
            "model.text_model.layers.1.self_attn.v_proj.lora_A",
        ),
    }


def test_an_adapter_of_a_larger_model(adapter, tmp_path):
    raw = tiny.merge_config(tiny.IDEFICS3, text_config={"hidden_size": 64, "num_hidden_layers": 1})
    found = problems_of(tiny.write_checkpoint(tmp_path / "other", raw), adapter)
    assert len(found["misshapen"]) == 2
    assert len(found["unknown"]) == 4


@pytest.mark.parametrize("edit", [dict.clear, lambda tensors: tensors.clear()])
def test_an_empty_adapter(base, adapter, edit):
    edit_tensors(adapter, edit)
    edit_config(adapter, target_modules=[])
    assert problems_of(base, adapter) == {"empty": ("adapter_model.safetensors",)}


def test_integers_are_no_factors(base, adapter):
    edit_tensors(
        adapter, lambda tensors: tensors.update({f"{KEY}.q_proj.lora_A.weight": torch.ones(2, 48).int()})
    )
    assert problems_of(base, adapter)["not floating-point"] == (f"{KEY}.q_proj.lora_A.weight",)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_numbers_that_are_none(base, adapter, value):
    keys = (f"{KEY}.q_proj.lora_A.weight", "base_model.model.lm_head.weight")

    def edit(tensors):
        tensors[keys[1]] = torch.ones(64, 48)
        for key in keys:
            tensors[key][-1, -1] = value

    edit_tensors(adapter, edit)
    edit_config(adapter, modules_to_save=["lm_head"])
    assert problems_of(base, adapter) == {"infinite or NaN": tuple(sorted(keys))}


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (f"{LAYER}.q_proj", [(), (48, 2)]),
        (f"{LAYER}.q_proj", [(2, 48), (48,)]),
        ("model.text_model.norm", [(2, 1), (48, 2)]),
    ],
)
def test_factors_without_two_dimensions(base, adapter, module, shapes):
    def edit(tensors):
        for name, shape in zip(("lora_A", "lora_B"), shapes, strict=True):
            tensors[f"base_model.model.{module}.{name}.weight"] = torch.ones(shape)

    edit_tensors(adapter, edit)
    edit_config(adapter, target_modules=["q_proj", "v_proj", "norm"])
    [found] = [one for one in problems_of(base, adapter)["misshapen"] if one.startswith(module)]
    assert (
        found
        == f"{module} has factors {shapes[0]} and {shapes[1]} for a weight {(48,) if 'norm' in module else (48, 48)}"
    )


def test_one_module_under_two_names(base, adapter):
    old = "base_model.model.model.layers.0.self_attn.q_proj"
    edit_tensors(
        adapter,
        lambda tensors: tensors.update(
            {f"{old}.lora_A.weight": torch.ones(2, 48), f"{old}.lora_B.weight": torch.ones(48, 2)}
        ),
    )
    assert len(problems_of(base, adapter)["there twice"]) == 1


def test_lengths_without_dora(base, adapter):
    edit_tensors(
        adapter, lambda tensors: tensors.update({f"{KEY}.q_proj.lora_magnitude_vector": torch.ones(48)})
    )
    assert len(problems_of(base, adapter)["incomplete"]) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"peft_type": "IA3"},
            r"an adapter of the kind IA3; LORA \(also DoRA\) is supported: merge it with peft's",
        ),
        ({"use_qalora": True}, "has use_qalora = True, which is not supported"),
        ({"fan_in_fan_out": True, "bias": "all"}, "has fan_in_fan_out = True, bias = 'all', which"),
        ({"trainable_token_indices": [5]}, r"has trainable_token_indices = \[5\]"),
        ({"kasa_config": {"beta": 0.1}}, "has kasa_config"),
        ({"of_the_future": True}, "has of_the_future = True"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights = 'pissa', which changed the base model's weights",
        ),
    ],
)
def test_other_kinds_are_refused_by_name(base, adapter, changes, said):
    edit_config(adapter, **changes)
    with pytest.raises(UnsupportedModel, match=said):
        load(base, adapter)


@pytest.mark.parametrize(
    "changes",
    [{"r": 0}, {"r": "8"}, {"lora_alpha": None}, {"target_modules": "(("}, {"rank_pattern": {"q_proj": "x"}}],
)
def test_a_config_that_cannot_be_read(base, adapter, changes):
    edit_config(adapter, **changes)
    with pytest.raises(
        BrokenCheckpoint, match=r"adapter_config.json cannot be read as the config of an adapter"
    ):
        load(base, adapter)


def test_what_only_training_needs_is_ignored(base, adapter):
    edit_config(
        adapter, lora_dropout=0.1, qalora_group_size=16, loftq_config={"loftq_bits": 4}, eva_config={"rho": 2}
    )
    load(base, adapter)


def test_pickles_and_damaged_files(base, adapter):
    file = adapter / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    with pytest.raises(BrokenCheckpoint, match="damaged or cut short"):
        load(base, adapter)
    file.unlink()
    with pytest.raises(BrokenCheckpoint, match=r"has no adapter_model\.safetensors"):
        load(base, adapter)
    (adapter / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(
        UnsupportedModel, match=r"holds pickle weights \(adapter_model.bin\).*only safetensors"
    ):
        load(base, adapter)


def test_folders_without_an_adapter(tmp_path):
    for name in (tmp_path, tmp_path / "none"):
        with pytest.raises(ModelNotFound, match=r"give the folder that adapter_config.json"):
            find_adapter(name)
    with pytest.raises(BadSetting, match="adapter is 5; give a folder or a hub id"):
        find_adapter(5)
    with pytest.raises(
        ModelNotFound, match="the adapter someone/lora is not in the cache and offline mode is on"
    ):
        find_adapter("someone/lora", offline=True)


DOWNLOAD_SCRIPT = """
from idefics import UnsupportedModel
from idefics.weights import find_adapter
folder = find_adapter("someone/lora")
print(*sorted(path.name for path in folder.iterdir()))
assert find_adapter("someone/lora", offline=True) == folder
try:
    find_adapter("someone/bin")
except UnsupportedModel as error:
    print(error)
"""


def test_an_adapter_is_downloaded_from_the_hub(adapter, tmp_path):
    files = {path.name: path.read_bytes() for path in adapter.iterdir()} | {"optimizer.pt": b"large"}
    with run_fake_hub({"someone/lora": files, "someone/bin": {"adapter_config.json": b"{}"}}) as (address, _):
        environment = {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path),
        }
        done = subprocess.run(
            [sys.executable, "-c", DOWNLOAD_SCRIPT],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    names, refusal = done.stdout.splitlines()
    assert names == "adapter_config.json adapter_model.safetensors"
    assert refusal.startswith("someone/bin has no adapter_config.json with adapter_model.safetensors")


def test_the_base_model_is_compared_by_its_name(tmp_path):
    adapter = write_demo_adapter(
        tmp_path / "adapter", targets=["q_proj"], base_model="HuggingFaceTB/SmolVLM-256M-Instruct"
    )
    with pytest.raises(
        UnsupportedModel,
        match=r"was trained on HuggingFaceTB/SmolVLM-256M-Instruct, not on demo: give that model",
    ):
        idefics.load("demo", adapter=adapter)
    idefics.load(f"{DEMO[0]}/idefics3", adapter=adapter).close()  # nothing is known of a folder
    for name in ("demo", "/models/of/somebody", None):
        edit_config(adapter, base_model_name_or_path=name)
        idefics.load("demo", adapter=str(adapter)).close()


def test_the_base_model_is_compared_by_its_class(tmp_path):
    adapter = write_demo_adapter(
        tmp_path / "adapter", targets=["q_proj"], base_class="Idefics2ForConditionalGeneration"
    )
    with pytest.raises(
        UnsupportedModel, match=r"class Idefics2ForConditionalGeneration, and demo is of the family"
    ):
        idefics.load("demo", adapter=adapter)
    for name in ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration", "LlamaForCausalLM"):
        edit_config(adapter, auto_mapping={"base_model_class": name})
        idefics.load("demo", adapter=adapter).close()


def test_weights_that_are_quantised_already_take_no_adapter(adapter, base, tmp_path):
    config = json.loads((base / "config.json").read_text())
    block = {"quant_method": "idefics", "bits": "int8", "modules_to_not_convert": []}
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": block}))
    with pytest.raises(
        BadSetting, match=r"is stored in int8, and an adapter cannot be merged.*quantize='int8'"
    ):
        load(base, adapter)


def test_a_folder_that_is_not_empty_is_not_written_to(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/notes.txt").write_text("mine")
    with pytest.raises(BadSetting, match="already holds other files"):
        write_adapter(tmp_path / "adapter", {}, AdapterConfig(rank=1, alpha=1))
    with pytest.raises(BadSetting, match="cannot be written"):
        write_adapter(tmp_path / "adapter/notes.txt/more", {}, AdapterConfig(rank=1, alpha=1))


def test_all_linear_is_every_linear_layer_but_the_head(base, tmp_path):
    model = tiny.load_checkpoint(base)
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    folder = write_random_adapter(tmp_path / "all", model, [name for name in names if name != "lm_head"])
    edit_config(folder, target_modules="all-linear")
    load(base, folder)
    edit_tensors(
        folder, lambda tensors: [tensors.pop(f"{KEY}.o_proj.{name}.weight") for name in ("lora_A", "lora_B")]
    )
    assert problems_of(base, folder) == {"missing": (f"{LAYER}.o_proj.lora_A",)}


@pytest.mark.parametrize(
    ("options", "tensors", "reason"),
    [
        (
            {"use_dora": True},
            {f"{LAYER}.q_proj.lora_magnitude_vector": torch.ones(48)},
            "sets the lengths of rows (DoRA) of",
        ),
        (
            {"modules_to_save": ("lm_head",)},
            {"lm_head.weight": torch.ones(64, 48)},
            "replaces lm_head.weight",
        ),
    ],
    ids=["dora", "replaced"],
)
def test_what_cannot_share_a_model_is_refused_by_name(tmp_path, options, tensors, reason):
    base = tiny.write_complete_checkpoint(tmp_path / "base", tiny.IDEFICS3)
    factors = {
        f"{LAYER}.q_proj.lora_A.weight": torch.ones(2, 48),
        f"{LAYER}.q_proj.lora_B.weight": torch.ones(48, 2),
    }
    config = AdapterConfig(rank=2, alpha=2, target_modules=(f"{LAYER}.q_proj",), **options)
    if "lm_head.weight" in tensors:
        vocab_size = json.loads((base / "config.json").read_text())["text_config"]["vocab_size"]
        tensors = {"lm_head.weight": torch.ones(vocab_size, 48)}
    write_adapter(tmp_path / "adapter", factors | tensors, config)
    assert idefics.load(base, adapter=tmp_path / "adapter")
    with pytest.raises(UnsupportedModel) as caught:
        idefics.load(base, adapters={"plants": tmp_path / "adapter"})
    message = str(caught.value)
    assert message.startswith(f"the adapter plants ({tmp_path / 'adapter'}) {reason}")
    assert message.endswith("with adapter= (--adapter), or make a checkpoint of it with `idefics merge`")


def test_an_adapter_that_shares_a_model_fits_wholly_or_not_at_all(tmp_path):
    base = tiny.write_complete_checkpoint(tmp_path / "base", tiny.IDEFICS3)
    good = write_random_adapter(tmp_path / "good", tiny.load_checkpoint(base), ["q_proj"])
    bad = write_random_adapter(tmp_path / "bad", tiny.load_checkpoint(base), ["q_proj"])
    edit_tensors(
        bad, lambda tensors: [tensors.pop(f"{KEY}.q_proj.lora_A.weight"), tensors.update(score=torch.ones(2))]
    )
    with pytest.raises(AdapterMismatch) as caught:
        idefics.load(base, adapters={"good": good, "bad": bad})
    assert caught.value.problems == {
        "incomplete": (f"{KEY}.q_proj.lora_B.weight",),
        "missing": (f"{LAYER}.q_proj.lora_A",),
        "unknown": ("score",),
    }
