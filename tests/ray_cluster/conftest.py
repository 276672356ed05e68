"""A Ray cluster of three nodes on this machine, on addresses of its own, as nodes have in life."""

import os
import secrets
import warnings

import pytest

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray listens on all addresses; without this it would also write a token into the home folder.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))

# Not 127.0.0.1, which Ray replaces by an address that other machines reach.
HEAD, *OTHERS = ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
OBJECT_STORE_BYTES = 80 << 20
CPUS_PER_NODE = 1


def pytest_collection_modifyitems(items):
    for item in items:
        if "/tests/ray_cluster/" in str(item.path):
            item.add_marker(pytest.mark.ray)


class ThreeNodes:
    """A cluster, whose nodes can be removed and added.

    Attributes:
        address: HOST:PORT of the head node.
        nodes: the nodes that are not the head, by their addresses.
    """

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args=self._node_arguments(HEAD))
        self.address = self.cluster.address
        self.nodes = {}
        for address in OTHERS:
            self.add_node(address)

    @staticmethod
    def _node_arguments(address):
        return {
            "node_ip_address": address,
            "num_cpus": CPUS_PER_NODE,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }

    def add_node(self, address):
        self.nodes[address] = self.cluster.add_node(wait=True, **self._node_arguments(address))

    def remove_node(self, address):
        """Kills the processes of a node, as a machine that fails."""
        self.cluster.remove_node(self.nodes.pop(address), allow_graceful=False)


@pytest.fixture(scope="session")
def three_nodes():
    ray = pytest.importorskip("ray")
    with warnings.catch_warnings(action="ignore"):
        nodes = ThreeNodes()
        ray.init(nodes.address, _node_ip_address=HEAD, log_to_driver=False, logging_level="ERROR")
        yield nodes
        ray.shutdown()
        nodes.cluster.shutdown()


@pytest.fixture(autouse=True)
def whole_cluster(three_nodes):
    """Every test starts with three nodes."""
    for address in OTHERS:
        if address not in three_nodes.nodes:
            three_nodes.add_node(address)


@pytest.fixture(scope="session")
def demo_model():
    """The demo model, in this process."""
    import idefics

    return idefics.load("demo", feature_cache=False, batch_rows=2)
