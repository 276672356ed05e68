"""A checkpoint's folder, in whichever layout, gives the processor and the tokenizer of its family."""

import json

import numpy as np
import pytest

from compat.processors_tiny import (
    SMALL,
    TALL,
    WIDE,
    is_same_batch,
    make_idefics2_processor,
    make_idefics3_processor,
    make_idefics_processor,
)
from idefics import compat
from idefics.compat import AutoProcessor, AutoTokenizer
from idefics.compat.processing_auto import PROCESSOR_CLASSES
from idefics.compat.processing_idefics import IdeficsProcessor
from idefics.compat.processing_inline import Idefics2Processor, Idefics3Processor, SmolVLMProcessor
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.errors import BadSetting, ModelNotFound, UnsupportedModel
from models import tiny
from processing.tokenizers_tiny import IMAGE_TOKEN

PROCESSOR_BY_FAMILY = {
    "idefics": make_idefics_processor(),
    "idefics2": make_idefics2_processor(),
    "idefics3": make_idefics3_processor(),
}
each = pytest.mark.parametrize("family", PROCESSOR_BY_FAMILY)
CALLS = {
    "idefics": {"prompts": [["User:", WIDE, "What?"], ["Hi"]]},
    "idefics2": {"text": [f"User:{IMAGE_TOKEN}What?", "Hi"], "images": [TALL], "return_tensors": "pt"},
    "idefics3": {"text": [f"User:{IMAGE_TOKEN}What?", "Hi"], "images": [SMALL], "return_tensors": "pt"},
}


def write_json(path, **content):
    path.write_text(json.dumps(content))


@each
def test_a_processor_that_was_saved_alone(family, tmp_path):
    ours = PROCESSOR_BY_FAMILY[family]
    ours.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(ours)
    is_same_batch(again(**CALLS[family]), ours(**CALLS[family]))
    assert again.chat_template == ours.chat_template
    assert again.model_input_names == ours.model_input_names


@each
def test_the_reference_reads_what_is_saved(family, tmp_path, reference):
    PROCESSOR_BY_FAMILY[family].save_pretrained(tmp_path)
    settings = type(reference[family].image_processor).from_pretrained(tmp_path).to_dict()
    for name, value in PROCESSOR_BY_FAMILY[family].image_processor.to_dict().items():
        assert np.all(np.asarray(settings[name]) == np.asarray(value)), name


@each
def test_what_the_reference_saves_is_read(family, tmp_path, reference):
    """transformers 5: one processor_config.json, the image processor's settings inside it."""
    theirs = reference[family]
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    ours = AutoProcessor.from_pretrained(tmp_path)
    assert type(ours).__name__ == type(theirs).__name__
    is_same_batch(ours(**CALLS[family]), PROCESSOR_BY_FAMILY[family](**CALLS[family]))


def test_the_demo_checkpoints():
    cross_attention, tiles = (
        AutoProcessor.from_pretrained("demo-idefics1"),
        AutoProcessor.from_pretrained("demo"),
    )
    assert type(cross_attention) is IdeficsProcessor
    assert type(tiles) is Idefics3Processor
    assert cross_attention([WIDE, "a"]).pixel_values.shape == (1, 1, 3, 96, 96)
    assert tiles(text=IMAGE_TOKEN, images=WIDE, return_tensors="pt").pixel_values.shape == (1, 1, 3, 96, 96)
    assert isinstance(AutoTokenizer.from_pretrained("demo"), PreTrainedTokenizer)


def test_config_fills_what_the_small_files_leave_out(tmp_path):
    PROCESSOR_BY_FAMILY["idefics3"].tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    write_json(tmp_path / "config.json", **tiny.IDEFICS3)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.image_processor.max_image_size == {"longest_edge": 32}
    assert processor.image_processor.size == {"longest_edge": 128}
    assert processor.image_seq_len == 4
    write_json(
        tmp_path / "preprocessor_config.json", max_image_size={"longest_edge": 16}, processor_class="Whatever"
    )
    assert AutoProcessor.from_pretrained(tmp_path).image_processor.max_image_size == {"longest_edge": 16}


def test_settings_may_be_given_when_loading(tmp_path):
    PROCESSOR_BY_FAMILY["idefics3"].save_pretrained(tmp_path)
    ours = AutoProcessor.from_pretrained(
        tmp_path, do_image_splitting=False, size={"longest_edge": 16}, padding_side="right"
    )
    assert ours.image_processor.size == {"longest_edge": 16}
    assert not ours.image_processor.do_image_splitting
    assert ours.tokenizer.padding_side == "right"
    with pytest.raises(TypeError, match="do_splitting"):
        AutoProcessor.from_pretrained(tmp_path, do_splitting=False)


@pytest.mark.parametrize("model_type", ["idefics3", "smolvlm"])
def test_model_types_have_their_processors(tmp_path, model_type):
    PROCESSOR_BY_FAMILY["idefics3"].save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", **tiny.merge_config(tiny.IDEFICS3, model_type=model_type))
    expected = {"idefics3": Idefics3Processor, "smolvlm": SmolVLMProcessor}
    assert type(AutoProcessor.from_pretrained(tmp_path)) is expected[model_type]
    assert {processor.model_type for processor in PROCESSOR_CLASSES} == {
        "idefics",
        "idefics2",
        "idefics3",
        "smolvlm",
    }


def test_the_wrong_class_is_refused(tmp_path):
    PROCESSOR_BY_FAMILY["idefics3"].save_pretrained(tmp_path)
    write_json(tmp_path / "config.json", **tiny.IDEFICS3)
    for wrong in (IdeficsProcessor, Idefics2Processor):
        with pytest.raises(UnsupportedModel, match=r"is a checkpoint of Idefics3, .*use AutoProcessor"):
            wrong.from_pretrained(tmp_path)


def test_what_cannot_be_found(tmp_path):
    with pytest.raises(ModelNotFound):
        AutoProcessor.from_pretrained(tmp_path)
    with pytest.raises(ModelNotFound, match="offline"):
        AutoProcessor.from_pretrained("owner/name", local_files_only=True)
    PROCESSOR_BY_FAMILY["idefics"].tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="there are processors for idefics, idefics2"):
        AutoProcessor.from_pretrained(tmp_path)
    with pytest.raises(BadSetting, match="revision"):
        AutoProcessor.from_pretrained(tmp_path, revision="v2")


@pytest.mark.parametrize("auto", [AutoProcessor, AutoTokenizer])
def test_they_are_not_made_by_themselves(auto):
    with pytest.raises(TypeError, match=f"{auto.__name__}.from_pretrained"):
        auto()


def test_an_image_size_that_contradicts_is_refused():
    ours = PROCESSOR_BY_FAMILY["idefics"]
    with pytest.raises(BadSetting, match="image_size is 100, and the image processor's is 8"):
        IdeficsProcessor(ours.image_processor, ours.tokenizer, image_size=100)
    assert IdeficsProcessor(ours.image_processor, ours.tokenizer, image_size=8)


def test_names_are_there_when_asked_for():
    for name in ("AutoProcessor", "AutoTokenizer", "BatchFeature", "IdeficsProcessor", "SmolVLMProcessor"):
        assert name in dir(compat)
        assert getattr(compat, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = compat.Nonsense
