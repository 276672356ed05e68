"""Guides as scripts: their Python blocks, and what it takes to run these on this machine."""

import ast
import io
import re
import threading
from contextlib import contextmanager, nullcontext, redirect_stdout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import NamedTuple

import PIL.Image
import pytest
import torch

from idefics.demo import pictures
from idefics.errors import BadSetting

FLASH = "flash_attention_2"
PICTURE_BY_NAME = {path.stem: path for path in pictures()}


class CodeBlock(NamedTuple):
    location: str
    line: int
    source: str


def fenced_blocks(path):
    """The Python blocks of a Markdown file. As in Markdown, a fence's own indent is taken off the lines in it."""
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(r"^( *)```python\n(.*?)^ *```$", text, re.M | re.S):
        lines = [re.sub(f"^ {{0,{len(match[1])}}}", "", line) for line in match[2].splitlines()]
        yield CodeBlock(path.name, text[: match.start(2)].count("\n") + 1, "\n".join(lines))


STATEMENT = re.compile(r"(import|from) \w+( import .*)?$|\w+ = |print\(|for .* in \w+\(.*:$")


def unfenced_blocks(name, text):
    """The statements that stand between the lines of a page that has lost its fences."""
    lines = text.splitlines()
    start = 0
    while start < len(lines):
        end = start + 1
        if STATEMENT.match(lines[start]):
            while not is_complete_statement("\n".join(lines[start:end])):
                assert end < len(lines), f"{name}:{start + 1} begins a statement that never ends"
                end += 1
            yield CodeBlock(name, start + 1, "\n".join(lines[start:end]))
        start = end


def is_complete_statement(source):
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def run_block(block, namespace):
    """Runs a block, and checks what it generated, if it did. Without a GPU, the processor stands in for it.

    Returns what it printed.
    """
    source = block.source
    if not torch.cuda.is_available():
        source = source.replace('"cuda"', '"cpu"')
        if FLASH in source:
            with pytest.raises(BadSetting, match="sdpa"):
                execute_block(block._replace(source=source), namespace)
            source = source.replace(FLASH, "sdpa")
    before = namespace.get("generated_ids")
    printed = execute_block(block._replace(source=source), namespace)
    if (generated := namespace.get("generated_ids")) is not before:
        check_generated(generated, namespace["inputs"].input_ids, namespace.get("bad_words_ids", []))
    return printed


def execute_block(block, namespace):
    code = compile("\n" * (block.line - 1) + block.source, block.location, "exec")
    printed = io.StringIO()
    # A model of full size has no place in a test's memory.
    sized = torch.device("meta") if "IdeficsModel(" in block.source else nullcontext()
    with redirect_stdout(printed), sized:
        exec(code, namespace)
    return printed.getvalue()


def check_generated(generated, prompt, forbidden):
    """Answers follow their prompts, and hold nothing that was forbidden."""
    new = generated[:, prompt.shape[1] :]
    assert generated[:, : prompt.shape[1]].equal(prompt)
    assert new.numel()
    assert not {id for word in forbidden for id in word} & set(new.flatten().tolist())


class PictureHandler(BaseHTTPRequestHandler):
    """The bundled pictures, in the format that an address ends in."""

    def do_GET(self):
        stem, _, suffix = self.path.strip("/").partition(".")
        body = io.BytesIO()
        PIL.Image.open(PICTURE_BY_NAME[stem]).save(body, PIL.Image.registered_extensions()[f".{suffix}"])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body.getvalue())))
        self.end_headers()
        self.wfile.write(body.getvalue())

    def log_message(self, *args):
        pass


@contextmanager
def serve_pictures():
    """Address of a server of the bundled pictures."""
    with ThreadingHTTPServer(("127.0.0.1", 0), PictureHandler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class FakeInterface:
    """Gradio's, as far as a guide needs it: a function, and the fields of its arguments and results."""

    def __init__(self, fn, inputs, outputs, title, description):
        assert all((title, description))
        self.fn, self.inputs, self.outputs, self.launched = fn, inputs, outputs, False

    def launch(self):
        self.launched = True


def make_field(**words):
    return SimpleNamespace(**words)


FAKE_GRADIO = SimpleNamespace(Interface=FakeInterface, Textbox=make_field, Image=make_field)
