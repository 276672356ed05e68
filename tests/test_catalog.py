"""The table of checkpoints: names that resolve, numbers that agree with the registry."""

import pytest

from idefics.catalog import CATALOG, DEFAULT, memory, resolve, short_names


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


def test_the_default_runs():
    row = resolve(DEFAULT)
    assert row.runs
    assert row.hub == "HuggingFaceTB/SmolVLM-500M-Instruct"


def test_rows_run_when_the_registry_has_their_architecture():
    from idefics.models import REGISTRY

    assert {row.name: row.runs for row in CATALOG} == {
        row.name: row.model_type in REGISTRY for row in CATALOG
    }
    assert {row.model_type for row in CATALOG if row.runs} == set(REGISTRY)


@pytest.mark.parametrize(
    "name", ["9b", "9b-instruct", "80b", "80b-instruct", "idefics3-8b", "smolvlm-256m", "smolvlm-2.2b"]
)
def test_names_of_the_published_checkpoints(name):
    assert resolve(name).hub.startswith(("HuggingFaceM4/", "HuggingFaceTB/"))


def test_memory_is_parameters_times_bits():
    row = resolve("smolvlm-500m")
    assert {p: memory(row, p) for p in ("float32", "bfloat16", "int8", "int4")} == {
        "float32": 2_029_929_216,
        "bfloat16": 1_014_964_608,
        "int8": 507_482_304,
        "int4": 253_741_152,
    }
