"""What holds for every test: one thread, no network, an empty model cache, the same seeds."""

import os
import random
import re
import socket
import sys
import tempfile
from ipaddress import ip_address

import pytest

# Libraries read these when they are first imported; processes that tests start inherit them.
CACHE = tempfile.TemporaryDirectory(prefix="idefics-tests-")
for name in [
    name
    for name in os.environ
    if re.match("IDEFICS_(?!REQUIRE_NATIVE$)|HF_|HUGGINGFACE_|TRANSFORMERS_|.*_proxy", name, re.I)
]:
    del os.environ[name]
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
os.environ.update(HF_HOME=CACHE.name, HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
os.environ["XDG_CACHE_HOME"] = f"{CACHE.name}/user"
os.environ["GRADIO_TEMP_DIR"] = f"{CACHE.name}/gradio"  # of examples/gradio_bot.py


def pytest_unconfigure():
    CACHE.cleanup()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in on_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


class NetworkInTest(Exception):
    """A test reached for another machine. No OSError: nothing may mistake it for a network that is down."""


def parse_address(host):
    """`host` as an address, or None where it is a name that would have to be looked up."""
    if host in (None, "", b"", "localhost", b"localhost"):
        return ip_address("127.0.0.1")
    try:
        return ip_address(host.decode() if isinstance(host, bytes) else host)
    except ValueError:
        return None


@pytest.fixture(params=[1, 2])
def set_openmp_threads(request):
    """One of torch's threads, and two where kernels in C can share them."""
    import torch

    from idefics.native.library import gomp_parallel_address

    before = torch.get_num_threads()
    if request.param > 1 and gomp_parallel_address() is None:
        pytest.skip("torch works with another OpenMP")
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def forbid_network(monkeypatch):
    """Sockets reach this machine only, and names are not looked up."""
    connect, connect_ex, getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo

    def refuse_far(target):
        if isinstance(target, tuple):  # an internet address; a path is a socket of this machine
            address = parse_address(target[0])
            if address is None or not address.is_loopback:
                raise NetworkInTest(f"a test may not connect to {target[0]}")

    def near_connect(self, target):
        refuse_far(target)
        return connect(self, target)

    def near_connect_ex(self, target):
        refuse_far(target)
        return connect_ex(self, target)

    def near_getaddrinfo(host, *args, **kwargs):
        if parse_address(host) is None:
            raise NetworkInTest(f"a test may not look up {host}")
        return getaddrinfo(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", near_connect)
    monkeypatch.setattr(socket.socket, "connect_ex", near_connect_ex)
    monkeypatch.setattr(socket, "getaddrinfo", near_getaddrinfo)
