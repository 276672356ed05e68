"""The flags of runs on a Ray cluster. What happens on a cluster: tests/ray_cluster."""

import sys

import pytest

from idefics.batch.ray_engine import RayOptions
from idefics.errors import BadSetting


def node(cpus, gpus=0, alive=True):
    return {"Alive": alive, "Resources": {"CPU": cpus, "memory": 1e9} | ({"GPU": gpus} if gpus else {})}


@pytest.mark.parametrize(
    ("nodes", "options", "expected"),
    [
        ([node(8), node(4)], {}, (2, 0, 4)),  # an engine a node, as large as the smallest allows
        ([node(8), node(4), node(16, alive=False)], {}, (2, 0, 4)),
        ([node(8)], {"num_engines": 3}, (3, 0, 2)),
        ([node(2), node(2)], {"num_engines": 8}, (8, 0, 1)),
        ([node(8)], {"num_cpus": 3}, (1, 0, 3)),
        ([node(16, 4), node(16, 4), node(64)], {}, (8, 1, 4)),
        ([node(16, 4)], {"num_gpus": 0.5, "num_engines": 8}, (8, 0.5, 2)),
        ([node(16, 4), node(16)], {"num_gpus": 0}, (2, 0, 16)),
        ([node(0), node(8)], {}, (1, 0, 8)),  # a head node that does no work
    ],
)
def test_engines_fit_the_nodes(nodes, options, expected):
    resolved = RayOptions(address="auto", **options).resolve(nodes)
    assert (resolved.num_engines, resolved.num_gpus, resolved.num_cpus) == expected


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        ([node(8)], {"num_gpus": 1}),
        ([node(8)], {"num_cpus": 9}),
        ([node(0)], {}),
        ([node(16, 1)], {"num_gpus": 2}),
    ],
)
def test_engines_that_fit_no_node_are_refused(nodes, options):
    with pytest.raises(BadSetting, match="no node of the Ray cluster has the"):
        RayOptions(address="auto", **options).resolve(nodes)


@pytest.fixture
def run_photos(run_idefics, photo_folder):
    return lambda *flags: run_idefics(
        "run", str(photo_folder), "--out", "out.jsonl", "--model", "demo", *flags
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-gpus", "1"], "--num-gpus is for runs on a Ray cluster: give --ray too"),
        (["--ray-engines", "2"], "--ray-engines is for runs on a Ray cluster: give --ray too"),
        (["--ray", "local", "--ray-engines", "0"], "the number of engines is 0: give at least 1"),
        (["--ray", "local", "--num-cpus", "-1"], "--num-cpus is -1.0: give 0 or more"),
    ],
)
def test_wrong_flags(run_photos, flags, message):
    done = run_photos(*flags)
    assert done.exit_code == 2
    assert message in done.stderr


def test_ray_is_an_extra(run_photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run_photos("--ray", "local")
    assert done.exit_code == 2
    assert "a run on a Ray cluster needs an optional dependency: pip install 'idefics[ray]'" in done.stderr
