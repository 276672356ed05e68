"""A model, an app over it, and a client that calls it without a network."""

import asyncio
from contextlib import asynccontextmanager

import httpx
import pytest

import idefics
from idefics.server.app import create_app
from idefics.server.settings import Settings


@pytest.fixture(scope="session")
def vlm():
    """The demo model, which fetches no pictures."""
    return idefics.load("demo", remote_images="off")


@pytest.fixture
def app(vlm):
    return create_app(vlm, Settings(model="demo"))


@pytest.fixture
def client(app):
    return SyncClient(app)


class SyncClient:
    """Calls an app without a network; each call has its own event loop."""

    def __init__(self, app):
        self.app = app

    def __call__(self, method, path, **request):
        async def call():
            async with open_client(self.app) as client:
                return await client.request(method, path, **request)

        return asyncio.run(call())

    def get(self, path, **request):
        return self("GET", path, **request)

    def post(self, path, json=None, **request):
        return self("POST", path, json=json, **request)


@asynccontextmanager
async def open_client(app):
    """An asynchronous client that calls the app without a network."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client
