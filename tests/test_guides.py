"""The guides run: ours as they stand, and the published ones with another import line.

What changes: names of checkpoints become tiny folders, and addresses of pictures lead to a server on this machine.
"""

import json
import re
import sys
from itertools import cycle
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from compat.guide_scripts import (
    FAKE_GRADIO,
    PICTURE_BY_NAME,
    CodeBlock,
    execute_block,
    fenced_blocks,
    run_block,
    serve_pictures,
    unfenced_blocks,
)
from compat.processors_tiny import LLAMA_SPECIAL_TOKENS
from idefics.compat import AutoProcessor
from idefics.errors import BadPrompt
from models import tiny
from processing.tokenizers_tiny import TRAINING_TEXTS

ROOT = Path(__file__).parents[1]
GUIDES = ROOT / "docs" / "guides"
PUBLISHED = ROOT.parent / "shared" / "guides"
needs_published = pytest.mark.skipif(
    not PUBLISHED.exists(), reason="the published guides are needed: ../shared/guides"
)

SERVER_URL = "http://localhost:8000"  # as the guides tell the reader
CONFIG_BY_HUB_ID = {
    "HuggingFaceM4/idefics-9b": tiny.IDEFICS1,
    "HuggingFaceM4/idefics-9b-instruct": tiny.merge_config(tiny.IDEFICS1, additional_vocab_size=3),
    "HuggingFaceM4/idefics2-8b": tiny.IDEFICS2,
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folders in the places of hub ids. The tokenizers have read the guides, whose prompts so stay short."""
    guides = [*GUIDES.glob("*.md"), *PUBLISHED.glob("*.md")]
    training = {
        "base": 1500,
        "corpus": [*TRAINING_TEXTS, *(path.read_text(encoding="utf-8") for path in guides)],
    }
    folders = {}
    for name, raw in CONFIG_BY_HUB_ID.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            folder = tiny.write_complete_checkpoint(tmp_path_factory.mktemp("hub") / name, raw, **training)
        settings = {**LLAMA_SPECIAL_TOKENS, "padding_side": "left", "tokenizer_class": "LlamaTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        folders[name] = str(folder)
    return folders


@pytest.fixture(scope="session")
def picture_server_url():
    with serve_pictures() as address:
        yield address


@pytest.fixture(autouse=True)
def fake_gradio(monkeypatch):
    """A page that is not opened."""
    monkeypatch.setitem(sys.modules, "gradio", FAKE_GRADIO)


def localize_block(block, checkpoints, site):
    """A block of ours on this machine."""
    source = block.source.replace(SERVER_URL, site)
    for name, folder in checkpoints.items():
        source = source.replace(f'"{name}"', repr(folder))
    return block._replace(source=source)


def run_guide(name, checkpoints, site):
    """Runs a guide of ours; returns its variables, and what each block that printed anything did print."""
    namespace, printed = {"__name__": "__main__"}, []
    for block in fenced_blocks(GUIDES / name):
        printed.append(run_block(localize_block(block, checkpoints, site), namespace))
    return namespace, list(filter(None, printed))


def test_the_bot(checkpoints, picture_server_url):
    guide, [first] = run_guide("bot-with-idefics-9b.md", checkpoints, picture_server_url)
    assert first.startswith("0:\nAmong the flowers of this garden sits")
    assert guide["generated_ids"].shape[1] <= 100
    page, address = guide["page"], f"{picture_server_url}/tower.png"
    assert page.launched
    assert len(page.inputs) == len(page.outputs) == 2
    text, shown = page.fn(address, "By night")
    assert text.startswith("By night")
    assert shown == address
    assert text != page.fn(f"{picture_server_url}/puppy.png", "By night")[0], (
        "another picture, another answer"
    )


def test_image_tasks(checkpoints, picture_server_url):
    pytest.importorskip("bitsandbytes")
    guide, printed = run_guide("image-tasks-with-idefics.md", checkpoints, picture_server_url)
    caption, prompted, few_shot, question, classified, story, batch, chat = printed
    assert caption.strip()
    assert prompted.startswith("This picture shows")
    assert few_shot.startswith("User: Say what this is.\nAssistant: A tower at night.")
    assert question.startswith("Instruction: Look at the picture and answer the question.\n")
    assert "['animals', 'vegetables', 'city landscape', 'cars', 'office']" in classified
    assert "Story:" in story
    assert re.findall(r"^\d:\n(?:This picture shows)?", batch, re.M) == [
        f"{i}:\nThis picture shows" for i in range(3)
    ]
    assert chat.startswith("0:\nUser: Who sits in this garden?")
    turn_end = guide["exit_condition"]
    assert len(turn_end) == 1
    assert guide["inputs"].input_ids.tolist()[0].count(turn_end[0]) > 3  # put between other texts too


def test_key_tasks(checkpoints, picture_server_url):
    pytest.importorskip("bitsandbytes")
    _, printed = run_guide("key-tasks.md", checkpoints, picture_server_url)
    caption, prompted, question, batch = printed
    assert caption.strip()
    assert prompted.startswith("This picture shows")
    assert question.startswith("Instruction: Look at the picture")
    assert batch.count("This picture shows") == 2


def test_image_text_to_text(checkpoints, picture_server_url):
    guide, [texts, streamed, pieces, quantised] = run_guide(
        "image-text-to-text.md", checkpoints, picture_server_url
    )
    assert texts.startswith("['User: What is going on here?")
    assert streamed.endswith("\n")
    values = pieces.splitlines()
    assert len(values) > 1
    assert guide["value"].startswith(values[0])
    assert quantised.startswith("User: What is going on here?")
    halves, eighths = (guide[name].get_memory_footprint() for name in ("model", "quantized_model"))
    assert eighths < 2 * halves  # what is not quantised stays as it is stored, in float32
    with pytest.raises(BadPrompt, match=r"4 places .* 2 pictures"):  # as the text says
        next(guide["model_inference"]("And now?", guide["messages"], 5, guide["images"]))


def test_the_classes(checkpoints, picture_server_url):
    guide, [text, described] = run_guide("classes.md", checkpoints, picture_server_url)
    assert text.startswith("A tower by the sea")
    assert described.startswith("User: Name what you see.\nAssistant: A puppy among flowers.")
    model = guide["model"]
    learned = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert any("gated_cross_attn_layers" in name for name in learned)
    assert not any(name.startswith(("model.layers.", "model.vision_model.")) for name in learned)


def test_every_guide_is_tested():
    tested = set(re.findall(r'run_guide\(\s*"(.+?)"', Path(__file__).read_text(encoding="utf-8")))
    assert tested == {path.name for path in GUIDES.glob("*.md") if list(fenced_blocks(path))}
    assert all(path.name in (GUIDES / "README.md").read_text() for path in GUIDES.glob("*-*.md"))


# The published guides. Two of the pages have lost what looked like tags of HTML: the marks of pictures, the end of
# utterance and parts of lines.

ADDRESS = re.compile(r"https?://[^\"'\s]+")
LOST_TAGS = {
    '["", ""]': '["<image>", "<fake_token_around_image>"]',
    'tokenizer("", ': 'tokenizer("<end_of_utterance>", ',
}


def localize_published_block(block, checkpoints, site):
    """A block of a published guide on this machine."""
    names = cycle(
        f"{stem}{suffix}" for stem in sorted(PICTURE_BY_NAME) for suffix in (".png", ".jpg", ".gif")
    )
    source = ADDRESS.sub(lambda match: f"{site}/{next(names)}", block.source)
    source = source.replace("from transformers import", "from idefics.compat import")
    for name, folder in checkpoints.items():
        source = source.replace(f'"{name}"', repr(folder))
    return block._replace(source=source)


def published_page(name, repairs=()):
    text = (PUBLISHED / name).read_text(encoding="utf-8")
    for lost, restored in dict(repairs).items():
        assert lost in text
        text = text.replace(lost, restored)
    return text


@needs_published
def test_the_published_bot(checkpoints, picture_server_url):
    pytest.importorskip("requests")
    guide = {}
    for block in fenced_blocks(PUBLISHED / "guide-idefics-9b-bot.md"):
        run_block(localize_published_block(block, checkpoints, picture_server_url), guide)
    assert guide["iface"].fn(f"{picture_server_url}/door.jpg", "A door")[0].startswith("A door")


@needs_published
@pytest.mark.parametrize("repairs", [{}, LOST_TAGS], ids=["as the page is", "restored"])
def test_the_published_image_tasks(checkpoints, picture_server_url, repairs):
    pytest.importorskip("bitsandbytes")
    text = published_page("guide-image-tasks-with-idefics.md", repairs)
    guide = {}
    blocks = list(unfenced_blocks("guide-image-tasks-with-idefics.md", text))
    assert sum("model.generate(" in block.source for block in blocks) == 8
    for block in blocks:
        run_block(localize_published_block(block, checkpoints, picture_server_url), guide)


@needs_published
def test_the_published_key_tasks(checkpoints, picture_server_url):
    pytest.importorskip("bitsandbytes")
    guide = {}
    for block in fenced_blocks(PUBLISHED / "guide-key-tasks.md"):
        run_block(localize_published_block(block, checkpoints, picture_server_url), guide)
    assert len(guide["generated_text"]) == 2


@needs_published
def test_the_published_image_text_to_text(checkpoints, picture_server_url, monkeypatch):
    pytest.importorskip("requests")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    guide = {}
    for block in fenced_blocks(PUBLISHED / "guide-image-text-to-text.md"):
        block = localize_published_block(block, checkpoints, picture_server_url)
        if "generator = model_inference(" in block.source:
            with pytest.raises(BadPrompt, match=r"3 places .* 2 pictures"):
                execute_block(block, guide)
            guide["messages"].pop()
            guide["images"].append(guide["images"][0])
        run_block(block, guide)
    assert guide["value"]


@needs_published
def test_the_published_reference(checkpoints, picture_server_url):
    name = "reference-idefics.md"
    repairs = {
        "image.\nt:": r"image.\nAssistant:",
        "grass.\n\n": 'grass.\\n",\n',
    }
    text = published_page(name, repairs)
    folder = checkpoints["HuggingFaceM4/idefics-9b"]
    guide = dict.fromkeys(("PATH_TO_CONVERTED_WEIGHTS", "PATH_TO_CONVERTED_TOKENIZER"), folder)
    # What its last examples take from elsewhere.
    guide.update(AutoProcessor=AutoProcessor, w=32, h=32, self=Mock(), transforms=Mock())
    guide["transforms"].Compose.return_value = lambda picture: torch.zeros(3, 32, 32)
    for example in text.split("Example:")[1:]:
        typed = "\n".join(re.findall(r"^>>> (.*)$", example, re.M))
        for block in [CodeBlock(name, 1, typed)] if typed else unfenced_blocks(name, example):
            run_block(localize_published_block(block, checkpoints, picture_server_url), guide)
    assert not guide["inputs"].pixel_values.any()
