"""A server on a free port of this machine, for clients that no one here wrote; it lives as long as a module's tests."""

import asyncio
import threading
import time
from contextlib import contextmanager

import openai
import pytest

import idefics
from engines import cancel_all
from idefics.server.app import create_app
from idefics.server.run import Server
from idefics.server.settings import Settings
from idefics.server.sockets import bind, url_of


@contextmanager
def serving(vlm, *, middleware=None, **settings):
    """A server in a thread of its own: (its url, what its requests share). `middleware` is (class, argument)."""
    settings = Settings(model="demo", port=0, **settings)
    with bind(settings.host, settings.port) as listener:
        app = create_app(vlm, settings)
        if middleware is not None:
            app.add_middleware(*middleware)
        server = Server(app)
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),))
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.002)
            yield url_of(listener), server.service
        finally:
            server.should_exit = True
            thread.join()
            cancel_all(vlm.engine)


@pytest.fixture(scope="session")
def vlm():
    return idefics.load("demo", remote_images="off")


@pytest.fixture(scope="module")
def served(vlm):
    with serving(vlm) as (url, service):
        yield url, service


@pytest.fixture(scope="module")
def url(served):
    return served[0]


@pytest.fixture(scope="module")
def client(url):
    """OpenAI's; strict, so that an answer which is not of the shape it knows is an error."""
    with opened(url) as client:
        yield client


def opened(url, kind=openai.OpenAI, **options):
    """A client that asks once and takes nothing but the shapes that it knows."""
    usual = {"api_key": "none", "max_retries": 0, "timeout": 60, "_strict_response_validation": True}
    return kind(base_url=f"{url}/v1", **(usual | options))


@pytest.fixture(autouse=True)
def nothing_is_left_behind(served):
    """Whatever a client did, its request is over soon after: no place, no row, no page is held."""
    yield
    service = served[1]
    scheduler = service.vlm.engine.scheduler
    for _ in range(5000):
        if not (service.admission.places or scheduler.running or scheduler.queue or held(service.vlm)):
            return
        time.sleep(0.002)
    pytest.fail("a request is held that nobody waits for")


def held(vlm):
    """Pages that belong to a running answer."""
    return sum(owners > 0 for owners in vlm.engine.scheduler.pages.owners)
