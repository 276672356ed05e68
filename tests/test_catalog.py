"""The table of checkpoints: names that resolve, numbers that agree with the models."""

import pytest
import torch

import idefics
from idefics import weights
from idefics.catalog import BITS, CATALOG, DEFAULT, memory, resolve, short_names
from idefics.config import QuantizationConfig
from idefics.engine.memory import token_bytes
from idefics.models import REGISTRY, build, family_for, read_checkpoint
from idefics.quant import chosen
from idefics.quant.integers import GROUP, Int8Linear
from models.released import RELEASED

DECODER = ("model.layers.", "model.gated_cross_attn_layers.", "model.text_model.layers.")


def test_short_names_are_unique_and_resolve():
    names = [name for row in CATALOG for name in row.names]
    assert len(set(names)) == len(names)
    assert tuple(names) == short_names()
    assert all(name == name.lower() and "/" not in name for name in names)
    for row in CATALOG:
        assert all(resolve(name) is row is resolve(name.upper()) for name in row.names)
        assert row.name == row.names[0]
    assert resolve("smolvlm") is None


def test_every_row_is_on_the_hub_or_in_the_package():
    assert all(bool(row.hub) != bool(row.folder) for row in CATALOG)
    assert len({row.hub or row.folder for row in CATALOG}) == len(CATALOG)


def test_the_default_is_a_row():
    assert resolve(DEFAULT).hub == "HuggingFaceTB/SmolVLM-500M-Instruct"


def test_the_registry_and_the_catalog_know_the_same_architectures():
    assert {row.model_type for row in CATALOG} == set(REGISTRY)


@pytest.mark.parametrize("name", RELEASED)
def test_names_of_the_published_checkpoints(name):
    owners = ("HuggingFaceM4/", "HuggingFaceTB/", "docling-project/", "ibm-granite/")
    assert resolve(name).hub.startswith(owners)
    assert resolve(name).model_type == RELEASED[name].config["model_type"]


def empty(row):
    """The model of a row on the meta device."""
    if row.folder:
        return build(read_checkpoint(weights.find(row.name)))
    raw = RELEASED[row.name].config
    family = family_for(raw["model_type"])
    with torch.device("meta"):
        return family.build(family.config(raw, {}))


@pytest.mark.parametrize("row", CATALOG, ids=lambda row: row.name)
def test_memory_is_what_the_models_have(row):
    """Weight by weight: what quantisation chooses at the precision asked for, all others at 16 bits or more."""
    model = empty(row)
    how = QuantizationConfig(kind="int4")
    names = chosen(model, how)
    assert names == chosen(model, QuantizationConfig(kind="int8"))
    matrices = [model.get_submodule(name).weight for name in names if how.kind_of(name) == "int4"]
    eights = [model.get_submodule(name).weight for name in names if how.kind_of(name) == "int8"]
    assert all(name.startswith(DECODER) for name in names if how.kind_of(name) == "int4")
    layout = model.layout
    assert row.token_numbers == token_bytes(layout, torch.int8)
    assert row.max_positions == layout.max_positions
    table = model.get_parameter("lm_head.weight")
    twice = sum(
        weight.numel() for weight in eights if weight is table and "lm_head.weight" not in alone(model)
    )
    assert row.parameters == sum(weight.numel() for weight in model.parameters())
    assert row.matrices == sum(weight.numel() for weight in matrices)
    for precision, size in {"float32": 4, "bfloat16": 2}.items():
        assert memory(row, precision) == sum(weight.numel() * size for weight in model.parameters())
    assert row.eights == sum(weight.numel() for weight in eights)
    assert row.twice == twice
    kept = 2 * (row.parameters - row.matrices - row.eights + twice) + row.eights
    assert memory(row, "int8") == kept + sum(weight.numel() for weight in matrices)
    scales = sum(4 * len(weight) for weight in (*matrices, *eights))  # of int8, left out
    assert scales < memory(row, "int8") / (250 if row.hub else 50)
    # Half a byte a number, and two bytes of scale for every GROUP of them.
    assert memory(row, "int4") == kept + sum(
        weight.numel() // 2 + 2 * weight.numel() // GROUP for weight in matrices
    )


def alone(model):
    """The names of parameters that go by one name."""
    names = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    return {found[0] for found in names.values() if len(found) == 1}


@pytest.mark.parametrize("name", ["demo", "demo-idefics1"])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_memory_is_what_a_loaded_model_takes(name, kind):
    vlm = idefics.load(name, device="cpu", quantize=kind)
    model = vlm.engine.model
    left_out = sum(layer.scale.nbytes for layer in model.modules() if isinstance(layer, Int8Linear))
    # On a CPU what is small is widened to the 32 bits that are computed with.
    others = [weight for name, weight in model.named_parameters() if not name.endswith(".scale")]
    left_out += sum(2 * weight.numel() for weight in others if weight.dtype == torch.float32)
    assert vlm.memory == memory(resolve(name), kind) + left_out
    assert left_out < 0.1 * vlm.memory


@pytest.mark.parametrize("row", CATALOG, ids=lambda row: row.name)
def test_each_precision_needs_less_than_the_one_before(row):
    needs = [memory(row, precision) for precision in BITS]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] == 2 * needs[1]


def test_memory_of_the_default():
    assert {precision: memory(resolve(DEFAULT), precision) for precision in BITS} == {
        "float32": 2_029_929_216,
        "bfloat16": 1_014_964_608,
        "int8": 568_148_352,
        "int4": 430_522_752,
    }
