"""On a real socket: clients that leave, requests that come together, and an end in good order."""

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

from engines import cancel_all
from idefics.errors import BadSetting
from idefics.server import listening, visit
from idefics.server.app import create_app
from idefics.server.run import Server
from idefics.server.settings import Settings
from idefics.server.sockets import bind, listen, url_of
from server.asking import chat, events, said, shown, user

PATH = "/v1/chat/completions"
LONG = chat([user(said("Tell me a story."))], max_tokens=200, temperature=5 / 3, seed=1, stream=True)


class Pace:
    """Lets an engine take steps one by one, or as it likes."""

    def __init__(self, engine, monkeypatch):
        self.engine, self.allowed, self.taken = engine, threading.Semaphore(0), 0
        self.is_free, step = False, engine.step

        def paced():
            if not self.is_free:
                self.allowed.acquire()
            step()
            self.taken += 1

        monkeypatch.setattr(engine, "step", paced)

    def free(self):
        self.is_free = True
        self.allowed.release()

    async def steps(self, count):
        goal = self.taken + count
        for _ in range(count):
            self.allowed.release()
        await until(lambda: self.taken >= goal)


@pytest.fixture
def pace(vlm, monkeypatch):
    pace = Pace(vlm.engine, monkeypatch)
    yield pace
    pace.free()
    cancel_all(vlm.engine)


async def until(true, seconds=20):
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.002)


@asynccontextmanager
async def served(vlm, **settings):
    """A server of its own, in this loop: (client, service)."""
    settings = Settings(model="demo", port=0, **settings)
    with bind(settings.host, settings.port) as listener:
        server = Server(create_app(vlm, settings))
        running = asyncio.create_task(server.serve([listener]))
        async with httpx.AsyncClient(base_url=url_of(listener), timeout=30) as client:
            await until(lambda: server.started)
            client.server = server
            yield client, server.service
        server.should_exit = True
        await running


async def begun(client, body):
    """A stream that has said its first word, and what closes it."""
    request = client.build_request("POST", PATH, json=body)
    answer = await client.send(request, stream=True)
    assert answer.status_code == 200
    return answer, answer.aiter_lines()


def pages(vlm):
    return sum(owners > 0 for owners in vlm.engine.scheduler.pages.owners)


def test_a_client_that_leaves_frees_its_memory_within_two_steps(vlm, pace):
    async def scene():
        async with served(vlm) as (client, service):
            answer, lines = await begun(client, LONG)
            await pace.steps(3)
            while '"content":""' in (await anext(lines)) or pages(vlm) == 0:
                pass
            await answer.aclose()
            await until(lambda: not service.admission.places)
            await pace.steps(1)
            assert not vlm.engine.scheduler.running
            assert pages(vlm) == 0
            assert service.metrics.gone._value.get() == 1

    asyncio.run(scene())


def test_one_that_waits_for_its_turn_may_leave_too(vlm, pace):
    async def scene():
        async with served(vlm) as (client, service):
            rows = vlm.engine.config.batch_rows
            streams = [await begun(client, LONG) for _ in range(rows)]
            await pace.steps(2)
            assert len(vlm.engine.scheduler.running) == rows
            waiting, _ = await begun(client, LONG)
            whole = asyncio.create_task(client.post(PATH, json=chat([user(said("Hi"))])))
            await until(lambda: len(vlm.engine.scheduler.queue) == 2)
            await waiting.aclose()
            await until(lambda: len(vlm.engine.scheduler.queue) == 1)
            whole.cancel()
            await until(lambda: not vlm.engine.scheduler.queue)
            assert len(service.admission.places) == rows
            for answer, _ in streams:
                await answer.aclose()
            await until(lambda: not service.admission.places)
            await pace.steps(1)
            assert pages(vlm) == 0

    asyncio.run(scene())


def test_one_whose_prompt_is_being_made_may_leave_too(vlm, monkeypatch):
    monkeypatch.setattr(visit, "WORKERS", 1)
    made, go = [], threading.Event()

    async def scene():
        async with served(vlm) as (client, service):
            prompt = service.vlm.prompt

            def slowly(messages, **options):
                made.append(messages)
                go.wait(20)
                return prompt(messages, **options)

            service.vlm.prompt = slowly
            asking = [asyncio.create_task(client.post(PATH, json=chat())) for _ in range(3)]
            await until(
                lambda: len(service.admission.places) == 3 and service.workers._work_queue.qsize() == 2
            )
            for task in asking:
                task.cancel()
            await until(lambda: not service.admission.places)
            go.set()
            answer = await client.post(PATH, json=chat())
            assert answer.status_code == 200
            assert len(made) == 2, "who waited for a worker was forgotten"

    asyncio.run(scene())


def test_one_whose_answer_is_being_asked_for_may_leave_too(vlm, pace):
    submitted, asked, go = [], threading.Event(), threading.Event()

    async def scene():
        async with served(vlm) as (client, service):
            submit = service.vlm.submit

            def slowly(prompt, **wishes):
                asked.set()
                go.wait(20)
                submitted.append(submit(prompt, **wishes))
                return submitted[-1]

            service.vlm.submit = slowly
            task = asyncio.create_task(client.post(PATH, json=LONG))
            await until(asked.is_set)
            task.cancel()
            await until(lambda: not service.admission.places)
            go.set()
            await until(lambda: submitted and submitted[0]._growing.handle.done, seconds=5)
            assert pages(vlm) == 0

    asyncio.run(scene())


def test_requests_join_the_running_batch_and_get_what_they_would_get_alone(vlm):
    asked = [
        chat(),
        chat([user(shown("door"), shown("puppy"), said("What are they?"))], max_tokens=20),
        chat([user(said("Hi"))], temperature=1.0, seed=5),
        LONG | {"stream": False},
    ]

    async def scene():
        async with served(vlm) as (client, _):
            alone = [(await client.post(PATH, json=body)).json()["choices"] for body in asked]
            several = [client.post(PATH, json=asked[i % 4]) for i in range(24)]
            leaving = [asyncio.create_task(begun(client, LONG)) for _ in range(4)]
            wrong = client.post(PATH, json=chat(n=99))
            answers = await asyncio.gather(*several, wrong)
            for task in leaving:
                await (await task)[0].aclose()
            assert answers.pop().status_code == 400
            for i, answer in enumerate(answers):
                assert answer.json()["choices"] == alone[i % 4]

    asyncio.run(scene())


HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "pieces",
    [[], [HEAD + b"X-"], [HEAD + b"\r\n", b"GET /"]],
    ids=["nothing", "half a head", "half a second head"],
)
def test_a_head_that_drips_is_given_up(vlm, monkeypatch, pieces):
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.2)

    async def scene():
        async with served(vlm) as (client, _):
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


def test_a_large_body_is_read_a_little_at_a_time(vlm, monkeypatch):
    sizes = []
    receive = listening.Connection.data_received

    def record(connection, data):
        sizes.append(len(data))
        receive(connection, data)

    monkeypatch.setattr(listening.Connection, "data_received", record)

    async def scene():
        async with served(vlm) as (client, _):
            await client.post("/v1/chat/completions", content=b" " * 1_000_000)

    asyncio.run(scene())
    assert sum(sizes) > 1_000_000
    assert max(sizes) <= 32 << 10  # asyncio alone reads 256 KiB


def test_a_long_answer_outlasts_the_time_for_a_head(vlm, pace, monkeypatch):
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.05)

    async def scene():
        async with served(vlm) as (client, _):
            _, lines = await begun(client, LONG)
            await asyncio.sleep(0.2)
            pace.free()
            assert "data: [DONE]" in [line async for line in lines]

    asyncio.run(scene())


def test_whoever_has_been_let_in_is_answered_before_the_end(vlm, pace):
    async def scene():
        async with served(vlm, drain=20) as (client, service):
            _, lines = await begun(client, LONG)
            await pace.steps(2)
            client.server.should_exit = True
            await until(lambda: service.admission.is_closing)
            pace.free()
            rest = [line async for line in lines]
            assert "data: [DONE]" in rest
            with pytest.raises(httpx.TransportError):
                await client.get("/health")

    asyncio.run(scene())


def test_what_takes_longer_ends_with_an_error(vlm, pace):
    async def scene():
        async with served(vlm, drain=0.1) as (client, service):
            _, lines = await begun(client, LONG)
            whole = asyncio.create_task(client.post(PATH, json={**LONG, "stream": False}))
            await until(lambda: len(service.admission.places) == 2)
            await pace.steps(2)
            client.server.should_exit = True
            rest = events("\n".join([line async for line in lines]))
            assert rest[-1]["error"]["code"] == "shutting_down"
            answer = await whole
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "shutting_down"
            assert not service.admission.places

    asyncio.run(scene())


def test_a_port_that_is_taken_is_told_before_any_model_is_loaded():
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(BadSetting, match=f"port {port}"):
            bind("127.0.0.1", port)
    with pytest.raises(BadSetting, match=r"cannot listen on 203\.0\.113\.1"):
        bind("203.0.113.1", 8000)


@pytest.mark.parametrize("command", [("serve",), ("ui", "--model", "demo")])
def test_a_used_port_is_one_line_before_anything_heavy_is_imported(command):
    """As the command: exit 2, and neither torch nor FastAPI is there by then."""
    with bind("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        program = (
            "import sys; from idefics.cli.main import run; code = run(sys.argv[1:]);"
            "print(code, *({'torch', 'fastapi', 'gradio', 'transformers'} & set(sys.modules)))"
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
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        listen(first)
        with pytest.raises(BadSetting, match="the port is in use"):
            listen(second)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_accepted_connections_send_small_pieces_at_once(vlm, host):
    """Nagle's algorithm is off on each, as asyncio has it for sockets that name their protocol."""

    async def scene():
        async with served(vlm, host=host) as (client, _):
            assert (await client.get("/health")).status_code == 200
            (connection,) = client.server.server_state.connections
            accepted = connection.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0

    asyncio.run(scene())


@contextmanager
def process(*flags, **environment):
    """`idefics serve` as people start it: (process, url)."""
    command = [sys.executable, "-m", "idefics", "serve", "--model", "demo", "--port", "0", *flags]
    source = str(Path(__file__).parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source, **environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as running:
        try:
            line = running.stderr.readline()
            yield running, re.search(r"http://\S+:\d+", line).group()
        finally:
            running.kill()


def test_sigterm_ends_the_command_as_soon_as_it_has_said_its_address():
    with process("--api-key", "key") as (running, _):
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
        assert "Traceback" not in running.stderr.read()


def test_sigterm_ends_the_command_when_all_are_answered():
    with process("--api-key", "key", IDEFICS_DRAIN="30") as (running, url):
        with httpx.stream(
            "POST", url + PATH, json=LONG, headers={"Authorization": "Bearer key"}, timeout=60
        ) as answer:
            assert answer.status_code == 200
            running.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(answer.iter_lines())
        assert running.wait(30) == 0
        assert [json.dumps(line) for line in running.stderr if "Traceback" in line] == []
