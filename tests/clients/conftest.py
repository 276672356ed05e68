"""A server on a free port of this machine, for other people's clients; one per test module."""

import asyncio
import threading
import time
from contextlib import contextmanager

import openai
import pytest

import idefics
from idefics.server.app import create_app
from idefics.server.settings import Settings
from idefics.server.sockets import bind_socket, socket_url
from idefics.server.uvicorn_server import DrainingServer
from shared_engine import cancel_all_requests


@contextmanager
def run_server(vlm, *, middleware=None, **settings):
    """Runs a server in a thread: (url, its `ServerState`). `middleware` is (class, argument)."""
    settings = Settings(model="demo", port=0, **settings)
    with bind_socket(settings.host, settings.port) as listener:
        app = create_app(vlm, settings)
        if middleware is not None:
            app.add_middleware(*middleware)
        server = DrainingServer(app)
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),))
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.002)
            yield socket_url(listener), server.service
        finally:
            server.should_exit = True
            thread.join()
            cancel_all_requests(vlm.engine)


@pytest.fixture(scope="session")
def vlm():
    return idefics.load("demo", remote_images="off")


@pytest.fixture(scope="module")
def running_server(vlm):
    with run_server(vlm) as (url, service):
        yield url, service


@pytest.fixture(scope="module")
def url(running_server):
    return running_server[0]


@pytest.fixture(scope="module")
def client(url):
    """OpenAI's client, which raises an error for answers that do not match its types."""
    with strict_client(url) as client:
        yield client


def strict_client(url, client_class=openai.OpenAI, **options):
    """A client that does not retry, and validates answers."""
    usual_options = {"api_key": "none", "max_retries": 0, "timeout": 60, "_strict_response_validation": True}
    return client_class(base_url=f"{url}/v1", **(usual_options | options))


@pytest.fixture(autouse=True)
def no_request_leaks(running_server):
    """Soon after each test no request holds an admission slot, a row of the batch or a page of the cache."""
    yield
    service = running_server[1]
    scheduler = service.vlm.engine.scheduler
    for _ in range(5000):
        if not (
            service.admission.slots or scheduler.running or scheduler.waiting or num_pages_in_use(service.vlm)
        ):
            return
        time.sleep(0.002)
    pytest.fail("a request is held that nobody waits for")


def num_pages_in_use(vlm):
    """Pages that running answers hold."""
    return sum(owners > 0 for owners in vlm.engine.scheduler.page_pool.ref_counts)
