"""The table of checkpoints: names that resolve, numbers that agree with the models."""

import pytest
import torch

import idefics
from idefics import weights
from idefics.catalog import (
    BITS_PER_WEIGHT,
    CATALOG,
    DEFAULT_MODEL,
    all_short_names,
    checkpoint_weight_bytes,
    find_entry,
)
from idefics.config import QuantizationConfig
from idefics.engine.kv_cache_size import kv_bytes_per_token
from idefics.models import MODEL_REGISTRY, build_on_meta_device, family_for, read_checkpoint
from idefics.quant import quantizable_layer_names
from idefics.quant.linear import GROUP_SIZE, Int8Linear
from models.released import RELEASED_BY_NAME

DECODER_PREFIXES = ("model.layers.", "model.gated_cross_attn_layers.", "model.text_model.layers.")


def test_short_names_are_unique_and_resolve():
    names = [name for row in CATALOG for name in row.short_names]
    assert len(set(names)) == len(names)
    assert tuple(names) == all_short_names()
    assert all(name == name.lower() and "/" not in name for name in names)
    for row in CATALOG:
        assert all(find_entry(name) is row is find_entry(name.upper()) for name in row.short_names)
        assert row.name == row.short_names[0]
    assert find_entry("smolvlm") is None


def test_every_row_is_on_the_hub_or_in_the_package():
    assert all(bool(row.hub_id) != bool(row.package_folder) for row in CATALOG)
    assert len({row.hub_id or row.package_folder for row in CATALOG}) == len(CATALOG)


def test_the_default_is_a_row():
    assert find_entry(DEFAULT_MODEL).hub_id == "HuggingFaceTB/SmolVLM-500M-Instruct"


def test_the_registry_and_the_catalog_know_the_same_architectures():
    assert {row.model_type for row in CATALOG} == set(MODEL_REGISTRY)


@pytest.mark.parametrize("name", RELEASED_BY_NAME)
def test_names_of_the_published_checkpoints(name):
    owners = ("HuggingFaceM4/", "HuggingFaceTB/", "docling-project/", "ibm-granite/")
    assert find_entry(name).hub_id.startswith(owners)
    assert find_entry(name).model_type == RELEASED_BY_NAME[name].config["model_type"]


def make_meta_model(row):
    """The model of a row on the meta device."""
    if row.package_folder:
        return build_on_meta_device(read_checkpoint(weights.find_checkpoint(row.name)))
    raw = RELEASED_BY_NAME[row.name].config
    family = family_for(raw["model_type"])
    with torch.device("meta"):
        return family.build(family.read_config(raw, {}))


@pytest.mark.parametrize("row", CATALOG, ids=lambda row: row.name)
def test_memory_is_what_the_models_have(row):
    """Weight by weight: what quantisation chooses at the precision asked for, all others at 16 bits or more."""
    model = make_meta_model(row)
    how = QuantizationConfig(kind="int4")
    names = quantizable_layer_names(model, how)
    assert names == quantizable_layer_names(model, QuantizationConfig(kind="int8"))
    matrices = [model.get_submodule(name).weight for name in names if how.kind_of(name) == "int4"]
    eights = [model.get_submodule(name).weight for name in names if how.kind_of(name) == "int8"]
    assert all(name.startswith(DECODER_PREFIXES) for name in names if how.kind_of(name) == "int4")
    layout = model.layout
    assert row.kv_numbers_per_token == kv_bytes_per_token(layout, torch.int8)
    assert row.max_positions == layout.max_positions
    table = model.get_parameter("lm_head.weight")
    twice = sum(
        weight.numel()
        for weight in eights
        if weight is table and "lm_head.weight" not in unshared_parameter_names(model)
    )
    assert row.num_parameters == sum(weight.numel() for weight in model.parameters())
    assert row.decoder_parameters == sum(weight.numel() for weight in matrices)
    for precision, size in {"float32": 4, "bfloat16": 2}.items():
        assert checkpoint_weight_bytes(row, precision) == sum(
            weight.numel() * size for weight in model.parameters()
        )
    assert row.int8_parameters == sum(weight.numel() for weight in eights)
    assert row.tied_head_parameters == twice
    kept = (
        2 * (row.num_parameters - row.decoder_parameters - row.int8_parameters + twice) + row.int8_parameters
    )
    assert checkpoint_weight_bytes(row, "int8") == kept + sum(weight.numel() for weight in matrices)
    scales = sum(4 * len(weight) for weight in (*matrices, *eights))  # of int8, left out
    assert scales < checkpoint_weight_bytes(row, "int8") / (250 if row.hub_id else 50)
    # Half a byte a number, and two bytes of scale for every GROUP of them.
    assert checkpoint_weight_bytes(row, "int4") == kept + sum(
        weight.numel() // 2 + 2 * weight.numel() // GROUP_SIZE for weight in matrices
    )


def unshared_parameter_names(model):
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
    assert vlm.memory == checkpoint_weight_bytes(find_entry(name), kind) + left_out
    assert left_out < 0.1 * vlm.memory


@pytest.mark.parametrize("row", CATALOG, ids=lambda row: row.name)
def test_each_precision_needs_less_than_the_one_before(row):
    needs = [checkpoint_weight_bytes(row, precision) for precision in BITS_PER_WEIGHT]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] == 2 * needs[1]


def test_memory_of_the_default():
    assert {
        precision: checkpoint_weight_bytes(find_entry(DEFAULT_MODEL), precision)
        for precision in BITS_PER_WEIGHT
    } == {
        "float32": 2_029_929_216,
        "bfloat16": 1_014_964_608,
        "int8": 568_148_352,
        "int4": 430_522_752,
    }
