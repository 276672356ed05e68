"""Every layout in which checkpoints keep their preprocessor settings and chat templates."""

import json

import pytest

from idefics.errors import UnsupportedModel
from idefics.processing import settings


def put(folder, name, content):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_nothing_there(tmp_path):
    assert settings.preprocessor(tmp_path) == {}
    assert settings.chat_template(tmp_path) == ""


def test_preprocessor_config(tmp_path):
    put(tmp_path, "preprocessor_config.json", {"do_image_splitting": True})
    assert settings.preprocessor(tmp_path) == {"do_image_splitting": True}


def test_settings_nested_by_transformers_5(tmp_path):
    put(
        tmp_path,
        "processor_config.json",
        {"image_processor": {"size": {"longest_edge": 4}}, "image_seq_len": 64},
    )
    assert settings.preprocessor(tmp_path) == {"size": {"longest_edge": 4}}


def test_older_processor_config_has_no_image_settings(tmp_path):
    put(tmp_path, "processor_config.json", {"image_seq_len": 64})
    assert settings.preprocessor(tmp_path) == {}
    put(tmp_path, "preprocessor_config.json", {"resample": 1})
    assert settings.preprocessor(tmp_path) == {"resample": 1}


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json", "tokenizer_config.json"])
def test_templates_in_json(tmp_path, name):
    put(tmp_path, name, {"chat_template": "{{ 1 }}\n"})
    assert settings.chat_template(tmp_path) == "{{ 1 }}\n"


def test_the_newer_file_decides(tmp_path):
    put(tmp_path, "tokenizer_config.json", {"chat_template": "oldest"})
    put(tmp_path, "chat_template.json", {"chat_template": "older"})
    assert settings.chat_template(tmp_path) == "older"
    put(tmp_path, "chat_template.jinja", "newest")
    assert settings.chat_template(tmp_path) == "newest"


def test_named_templates(tmp_path):
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    put(tmp_path, "tokenizer_config.json", {"chat_template": named})
    assert settings.chat_template(tmp_path) == "a"
    put(tmp_path, "tokenizer_config.json", {"chat_template": named[1:]})
    with pytest.raises(UnsupportedModel, match="tool_use: one must be named default"):
        settings.chat_template(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "", "\x00"])
def test_broken_files_are_named(tmp_path, content):
    put(tmp_path, "preprocessor_config.json", content)
    with pytest.raises(UnsupportedModel, match=r"preprocessor_config\.json .*download it again"):
        settings.preprocessor(tmp_path)
