"""Serves the app on a Ray cluster with Ray Serve: replicas with a model each, behind one HTTP proxy."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idefics.batch.ray_cluster import connect, import_ray, last_line
from idefics.batch.ray_engine import RayOptions
from idefics.errors import BadSetting, IdeficsError
from idefics.server.request_ids import REQUEST_ID_HEADER
from idefics.server.settings import Settings
from idefics.server.sockets import bind_socket, socket_url

APP_NAME, DEPLOYMENT_NAME = "idefics", "model"
HEAD_NODE_RESOURCE = "node:__internal_head__"  # Ray gives it to that node alone
# Requests of a replica beyond its own limit, which it refuses with an error in OpenAI's format; Ray Serve would refuse
# them in plain text.
NUM_REFUSED_AT_ONCE = 256
SHUTDOWN_SECONDS = 5.0  # after the drain time, before a replica is killed
DELETE_SECONDS = 60.0  # that Ray Serve waits for an app to end, before it reports that it did not
MAX_STARTS = 3  # of a replica that does not start


@contextmanager
def serve_on_ray(settings: Settings, load_keywords: dict[str, Any]) -> Iterator[str]:
    """Context in which replicas on a Ray cluster serve the app; leaving it lets admitted requests finish first.

    Args:
        settings: the settings of the server, `ray` among them.
        load_keywords: the arguments of `idefics.load` in each replica.

    Yields:
        The URL of the server, once all replicas have loaded the model.

    Raises:
        MissingExtra: Ray is not installed.
        BadSetting: a setting cannot be used with Ray, or no node has what a replica needs.
        IdeficsError: there is no cluster, or the replicas do not start.
    """
    _check_settings(settings)
    what = "a server on a Ray cluster"
    ray, serve = import_ray(what), import_ray(what, "ray.serve")
    assert settings.ray is not None
    is_connected_here = connect(ray, settings.ray)
    try:
        _check_node(ray)
        if others := ", ".join(serve.status().applications):
            raise BadSetting(f"Ray Serve serves {others} on this cluster: end it with `serve shutdown`")
        try:
            url = _start(ray, serve, settings, load_keywords)
            try:
                yield url
            finally:
                _drain(serve, settings.drain + SHUTDOWN_SECONDS)
        finally:
            serve.shutdown()
    finally:
        if is_connected_here:
            ray.shutdown()


def _check_settings(settings: Settings) -> None:
    """Raises BadSetting for what cannot be served with Ray."""
    for flag, is_given in (("--ui", settings.ui), ("--batches", settings.batches is not None)):
        if is_given:
            raise BadSetting(
                f"{flag} keeps its state in one process, and --ray serves with several: leave one out"
            )
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") != "0":
        raise BadSetting(
            "RAY_SERVE_ENABLE_HA_PROXY is set, with which Ray Serve listens on all addresses of this machine: unset it"
        )


def _check_node(ray: Any) -> None:
    """Raises BadSetting unless this process is on the head node, where the proxy is."""
    here = ray.get_runtime_context().get_node_id()
    node = next(one for one in ray.nodes() if one["NodeID"] == here)
    if HEAD_NODE_RESOURCE not in node["Resources"]:
        raise BadSetting(
            "this machine is not the head node of the Ray cluster: run `idefics serve --ray` there"
        )


def _start(ray: Any, serve: Any, settings: Settings, load_keywords: dict[str, Any]) -> str:
    """Starts the proxy and the replicas, and waits until they are ready. Returns the URL."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    options = RayOptions(
        address=settings.ray or "",
        num_engines=settings.replicas,
        num_gpus=settings.num_gpus,
        num_cpus=settings.num_cpus,
    ).resolve(ray.nodes())
    assert options.num_cpus is not None
    load_keywords = load_keywords | {"threads": settings.threads or max(1, int(options.num_cpus))}
    settings.api_keys  # noqa: B018  # reads their file, which need not be on the nodes; they are sent with the settings
    with bind_socket(settings.host, settings.port) as listener:
        url, port = socket_url(listener), listener.getsockname()[1]
    # On the node of this process: the address is this machine's.
    serve.start(proxy_location="HeadOnly", http_options={"host": settings.host, "port": port})

    def build() -> ASGIApp:
        """The app of a replica."""
        import idefics
        from idefics.server.app import create_app
        from idefics.server.uvicorn_server import keep_freed_memory

        keep_freed_memory()
        return _without_request_id(create_app(idefics.load(**load_keywords), settings))

    deployment = serve.deployment(
        name=DEPLOYMENT_NAME,
        num_replicas=options.num_engines,
        ray_actor_options={"num_cpus": options.num_cpus, "num_gpus": options.num_gpus},
        max_ongoing_requests=settings.requests_at_once + NUM_REFUSED_AT_ONCE,
        graceful_shutdown_timeout_s=settings.drain + SHUTDOWN_SECONDS,
        max_constructor_retry_count=MAX_STARTS,
        request_router_config={"request_router_class": "idefics.server.session_router.SessionRouter"},
    )(serve.ingress(build)())
    try:
        serve.run(deployment.bind(), name=APP_NAME, route_prefix="/")
    except RuntimeError as error:
        app = serve.status().applications.get(APP_NAME)
        reason = error if app is None else app.deployments[DEPLOYMENT_NAME].message
        raise IdeficsError(f"the replicas did not start: {last_line(reason)}") from None
    return url


def _drain(serve: Any, seconds: float) -> None:
    """Stops taking requests, and lets those that were admitted finish."""
    for _ in range(math.ceil(seconds / DELETE_SECONDS) + 1):
        with suppress(TimeoutError):
            serve.delete(APP_NAME)
            return


def _without_request_id(app: ASGIApp) -> ASGIApp:
    """An app that does not send the request id, which Ray Serve's proxy sends too."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_without_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    header for header in message["headers"] if header[0].decode() != REQUEST_ID_HEADER
                ]
            await send(message)

        await app(scope, receive, send_without_id)

    return call
