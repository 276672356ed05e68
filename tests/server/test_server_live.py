"""On a real socket: disconnects, concurrent requests, timeouts, shutdown."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from idefics.errors import BadSetting
from idefics.server import server_state, uvicorn_server
from idefics.server.app import create_app
from idefics.server.settings import Settings
from idefics.server.sockets import bind_socket, socket_url, start_listening
from idefics.server.uvicorn_server import DrainingServer
from server.request_bodies import chat_request, image_part, parse_events, text_part, user_message
from shared_engine import cancel_all_requests

PATH = "/v1/chat/completions"
LONG_REQUEST = chat_request(
    [user_message(text_part("Tell me a story."))], max_tokens=200, temperature=5 / 3, seed=1, stream=True
)


class StepControl:
    """Lets an engine run freely, or one step at a time."""

    def __init__(self, engine, monkeypatch):
        self.engine, self.step_semaphore, self.num_steps = engine, threading.Semaphore(0), 0
        self.is_free, step = False, engine.step

        def paced():
            if not self.is_free:
                self.step_semaphore.acquire()
            step()
            self.num_steps += 1

        monkeypatch.setattr(engine, "step", paced)

    def run_freely(self):
        """Removes the pacing: steps no longer wait."""
        self.is_free = True
        self.step_semaphore.release()

    async def run_steps(self, count):
        """Lets the engine run `count` steps and waits for them."""
        goal = self.num_steps + count
        for _ in range(count):
            self.step_semaphore.release()
        await wait_until(lambda: self.num_steps >= goal)


@pytest.fixture
def step_control(vlm, monkeypatch):
    """A `StepControl` for the engine; all requests are cancelled after the test."""
    pace = StepControl(vlm.engine, monkeypatch)
    yield pace
    pace.run_freely()
    cancel_all_requests(vlm.engine)


async def wait_until(condition, seconds=20):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def run_server(vlm, **settings):
    """Runs a server in this event loop: (client, its `ServerState`)."""
    settings = Settings(model="demo", port=0, **settings)
    with bind_socket(settings.host, settings.port) as listener:
        server = DrainingServer(create_app(vlm, settings))
        running = asyncio.create_task(server.serve([listener]))
        async with httpx.AsyncClient(base_url=socket_url(listener), timeout=30) as client:
            await wait_until(lambda: server.started)
            client.server = server
            yield client, server.service
        server.should_exit = True
        await running


async def start_stream(client, body):
    """A stream that has sent its first text, and the function that closes it."""
    request = client.build_request("POST", PATH, json=body)
    answer = await client.send(request, stream=True)
    assert answer.status_code == 200
    return answer, answer.aiter_lines()


def num_pages_in_use(vlm):
    """Pages of the KV cache that some request uses."""
    return sum(owners > 0 for owners in vlm.engine.scheduler.page_pool.ref_counts)


def test_the_memory_of_a_disconnected_client_is_free_within_two_steps(vlm, step_control):
    async def scene():
        async with run_server(vlm) as (client, service):
            answer, lines = await start_stream(client, LONG_REQUEST)
            await step_control.run_steps(3)
            while '"content":""' in (await anext(lines)) or num_pages_in_use(vlm) == 0:
                pass
            await answer.aclose()
            await wait_until(lambda: not service.admission.slots)
            await step_control.run_steps(1)
            assert not vlm.engine.scheduler.running
            assert num_pages_in_use(vlm) == 0
            assert service.metrics.disconnected_clients._value.get() == 1

    asyncio.run(scene())


def test_a_client_that_waits_in_the_queue_may_disconnect(vlm, step_control):
    async def scene():
        async with run_server(vlm) as (client, service):
            rows = vlm.engine.config.batch_rows
            streams = [await start_stream(client, LONG_REQUEST) for _ in range(rows)]
            await step_control.run_steps(2)
            assert len(vlm.engine.scheduler.running) == rows
            waiting, _ = await start_stream(client, LONG_REQUEST)
            whole = asyncio.create_task(client.post(PATH, json=chat_request([user_message(text_part("Hi"))])))
            await wait_until(lambda: len(vlm.engine.scheduler.waiting) == 2)
            await waiting.aclose()
            await wait_until(lambda: len(vlm.engine.scheduler.waiting) == 1)
            whole.cancel()
            await wait_until(lambda: not vlm.engine.scheduler.waiting)
            assert len(service.admission.slots) == rows
            for answer, _ in streams:
                await answer.aclose()
            await wait_until(lambda: not service.admission.slots)
            await step_control.run_steps(1)
            assert num_pages_in_use(vlm) == 0

    asyncio.run(scene())


def test_a_client_may_disconnect_while_its_prompt_is_made(vlm, monkeypatch):
    monkeypatch.setattr(server_state, "NUM_WORKERS", 1)
    made, go = [], threading.Event()

    async def scene():
        async with run_server(vlm) as (client, service):
            prompt = service.vlm.prompt

            def slowly(messages, **options):
                made.append(messages)
                go.wait(20)
                return prompt(messages, **options)

            service.vlm.prompt = slowly
            asking = [asyncio.create_task(client.post(PATH, json=chat_request())) for _ in range(3)]
            await wait_until(
                lambda: len(service.admission.slots) == 3 and service.workers._work_queue.qsize() == 2
            )
            for task in asking:
                task.cancel()
            await wait_until(lambda: not service.admission.slots)
            go.set()
            answer = await client.post(PATH, json=chat_request())
            assert answer.status_code == 200
            assert len(made) == 2, "who waited for a worker was forgotten"

    asyncio.run(scene())


def test_a_client_may_disconnect_while_its_answer_is_submitted(vlm, step_control):
    submitted, asked, go = [], threading.Event(), threading.Event()

    async def scene():
        async with run_server(vlm) as (client, service):
            submit = service.vlm.submit

            def slowly(prompt, **wishes):
                asked.set()
                go.wait(20)
                submitted.append(submit(prompt, **wishes))
                return submitted[-1]

            service.vlm.submit = slowly
            task = asyncio.create_task(client.post(PATH, json=LONG_REQUEST))
            await wait_until(asked.is_set)
            task.cancel()
            await wait_until(lambda: not service.admission.slots)
            go.set()
            await wait_until(lambda: submitted and submitted[0]._generation.handle.is_done, seconds=5)
            assert num_pages_in_use(vlm) == 0

    asyncio.run(scene())


def test_requests_join_the_running_batch_and_have_the_same_answers(vlm):
    asked = [
        chat_request(),
        chat_request(
            [user_message(image_part("door"), image_part("puppy"), text_part("What are they?"))],
            max_tokens=20,
        ),
        chat_request([user_message(text_part("Hi"))], temperature=1.0, seed=5),
        LONG_REQUEST | {"stream": False},
    ]

    async def scene():
        async with run_server(vlm) as (client, _):
            alone = [(await client.post(PATH, json=body)).json()["choices"] for body in asked]
            several = [client.post(PATH, json=asked[i % 4]) for i in range(24)]
            leaving = [asyncio.create_task(start_stream(client, LONG_REQUEST)) for _ in range(4)]
            wrong = client.post(PATH, json=chat_request(n=99))
            answers = await asyncio.gather(*several, wrong)
            for task in leaving:
                await (await task)[0].aclose()
            assert answers.pop().status_code == 400
            for i, answer in enumerate(answers):
                assert answer.json()["choices"] == alone[i % 4]

    asyncio.run(scene())


REQUEST_HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "pieces",
    [[], [REQUEST_HEAD + b"X-"], [REQUEST_HEAD + b"\r\n", b"GET /"]],
    ids=["nothing", "half a head", "half a second head"],
)
def test_slow_headers_time_out(vlm, monkeypatch, pieces):
    monkeypatch.setattr(uvicorn_server, "HEADERS_TIMEOUT", 0.2)

    async def scene():
        async with run_server(vlm) as (client, _):
            url = client.base_url
            reader, writer = await asyncio.open_connection(url.host, url.port)
            for number, piece in enumerate(pieces):
                writer.write(piece)
                if number + 1 < len(pieces):
                    assert b" 200 " in await reader.readuntil(b"ok")
            with suppress(ConnectionError):
                async with asyncio.timeout(4):  # an idle connection is closed after five
                    await reader.read()
            writer.close()
            assert (await client.get("/health")).status_code == 200

    asyncio.run(scene())


def test_a_large_body_is_read_in_small_pieces(vlm, monkeypatch):
    sizes = []
    receive = uvicorn_server.BoundedH11Protocol.data_received

    def record(connection, data):
        sizes.append(len(data))
        receive(connection, data)

    monkeypatch.setattr(uvicorn_server.BoundedH11Protocol, "data_received", record)

    async def scene():
        async with run_server(vlm) as (client, _):
            await client.post("/v1/chat/completions", content=b" " * 1_000_000)

    asyncio.run(scene())
    assert sum(sizes) > 1_000_000
    assert max(sizes) <= 32 << 10  # asyncio alone reads 256 KiB


def test_a_long_answer_may_take_longer_than_the_timeout_of_headers(vlm, step_control, monkeypatch):
    monkeypatch.setattr(uvicorn_server, "HEADERS_TIMEOUT", 0.05)

    async def scene():
        async with run_server(vlm) as (client, _):
            _, lines = await start_stream(client, LONG_REQUEST)
            await asyncio.sleep(0.2)
            step_control.run_freely()
            assert "data: [DONE]" in [line async for line in lines]

    asyncio.run(scene())


def test_admitted_requests_are_answered_before_shutdown(vlm, step_control):
    async def scene():
        async with run_server(vlm, drain=20) as (client, service):
            _, lines = await start_stream(client, LONG_REQUEST)
            await step_control.run_steps(2)
            client.server.should_exit = True
            await wait_until(lambda: service.admission.is_closing)
            step_control.run_freely()
            rest = [line async for line in lines]
            assert "data: [DONE]" in rest
            with pytest.raises(httpx.TransportError):
                await client.get("/health")

    asyncio.run(scene())


def test_requests_that_outlast_the_drain_end_with_an_error(vlm, step_control):
    async def scene():
        async with run_server(vlm, drain=0.1) as (client, service):
            _, lines = await start_stream(client, LONG_REQUEST)
            whole = asyncio.create_task(client.post(PATH, json={**LONG_REQUEST, "stream": False}))
            await wait_until(lambda: len(service.admission.slots) == 2)
            await step_control.run_steps(2)
            client.server.should_exit = True
            rest = parse_events("\n".join([line async for line in lines]))
            assert rest[-1]["error"]["code"] == "shutting_down"
            answer = await whole
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "shutting_down"
            assert not service.admission.slots

    asyncio.run(scene())


def test_a_port_in_use_is_reported_before_any_model_is_loaded():
    with bind_socket("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(BadSetting, match=f"port {port}"):
            bind_socket("127.0.0.1", port)
    with pytest.raises(BadSetting, match=r"cannot listen on 203\.0\.113\.1"):
        bind_socket("203.0.113.1", 8000)


@pytest.mark.parametrize("command", [("serve",), ("ui", "--model", "demo")])
def test_a_used_port_is_one_line_before_anything_heavy_is_imported(command):
    """The command exits with code 2 before torch or FastAPI is imported."""
    with bind_socket("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        program = (
            "import sys; from idefics.cli.main import run; code = run(sys.argv[1:]);"
            "print(code, *({'torch', 'fastapi', 'transformers'} & set(sys.modules)))"
        )
        source = str(Path(__file__).parents[2] / "src")
        ended = subprocess.run(
            [sys.executable, "-c", program, *command, "--port", str(port)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": source},
            check=True,
            timeout=60,
        )
    assert ended.stdout == "2\n"
    (line,) = ended.stderr.splitlines()
    assert f"cannot listen on 127.0.0.1, port {port}: the port is in use; give another --port" in line


def test_two_servers_that_start_at_the_same_time_do_not_share_a_port():
    with bind_socket("127.0.0.1", 0) as first, bind_socket("127.0.0.1", first.getsockname()[1]) as second:
        start_listening(first)
        with pytest.raises(BadSetting, match="the port is in use"):
            start_listening(second)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_accepted_connections_have_tcp_nodelay(vlm, host):
    """asyncio sets it for listening sockets with an explicit protocol."""

    async def scene():
        async with run_server(vlm, host=host) as (client, _):
            assert (await client.get("/health")).status_code == 200
            (connection,) = client.server.server_state.connections
            accepted = connection.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0

    asyncio.run(scene())


@contextmanager
def start_process(*flags, **environment):
    """Starts `idefics serve`: (process, url)."""
    command = [sys.executable, "-m", "idefics", "serve", "--model", "demo", "--port", "0", *flags]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source, **environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as running:
        try:
            line = running.stderr.readline()
            yield running, re.search(r"http://\S+:\d+", line).group()
        finally:
            running.kill()


def test_sigterm_ends_the_command_once_its_address_is_printed():
    with start_process("--api-key", "key") as (running, _):
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
        assert "Traceback" not in running.stderr.read()


def test_sigterm_ends_the_command_when_all_requests_are_answered():
    with start_process("--api-key", "key", IDEFICS_DRAIN="30") as (running, url):
        with httpx.stream(
            "POST", url + PATH, json=LONG_REQUEST, headers={"Authorization": "Bearer key"}, timeout=60
        ) as answer:
            assert answer.status_code == 200
            running.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(answer.iter_lines())
        assert running.wait(30) == 0
        assert [json.dumps(line) for line in running.stderr if "Traceback" in line] == []
