"""Preprocessor settings and chat templates are found in every layout of checkpoint folders."""

import json

import pytest

from idefics.errors import UnsupportedModel
from idefics.processing import checkpoint_settings


def write_json(folder, name, content):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def test_missing_files_give_no_settings(tmp_path):
    assert checkpoint_settings.read_preprocessor_config(tmp_path) == {}
    assert checkpoint_settings.read_chat_template(tmp_path) == ""


def test_preprocessor_config(tmp_path):
    write_json(tmp_path, "preprocessor_config.json", {"do_image_splitting": True})
    assert checkpoint_settings.read_preprocessor_config(tmp_path) == {"do_image_splitting": True}


def test_settings_nested_by_transformers_5(tmp_path):
    write_json(
        tmp_path,
        "processor_config.json",
        {"image_processor": {"size": {"longest_edge": 4}}, "image_seq_len": 64},
    )
    assert checkpoint_settings.read_preprocessor_config(tmp_path) == {"size": {"longest_edge": 4}}


def test_older_processor_config_has_no_image_settings(tmp_path):
    write_json(tmp_path, "processor_config.json", {"image_seq_len": 64})
    assert checkpoint_settings.read_preprocessor_config(tmp_path) == {}
    write_json(tmp_path, "preprocessor_config.json", {"resample": 1})
    assert checkpoint_settings.read_preprocessor_config(tmp_path) == {"resample": 1}


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json", "tokenizer_config.json"])
def test_templates_in_json(tmp_path, name):
    write_json(tmp_path, name, {"chat_template": "{{ 1 }}\n"})
    assert checkpoint_settings.read_chat_template(tmp_path) == "{{ 1 }}\n"


def test_the_newer_file_decides(tmp_path):
    write_json(tmp_path, "tokenizer_config.json", {"chat_template": "oldest"})
    write_json(tmp_path, "chat_template.json", {"chat_template": "older"})
    assert checkpoint_settings.read_chat_template(tmp_path) == "older"
    write_json(tmp_path, "chat_template.jinja", "newest")
    assert checkpoint_settings.read_chat_template(tmp_path) == "newest"


def test_named_templates(tmp_path):
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    write_json(tmp_path, "tokenizer_config.json", {"chat_template": named})
    assert checkpoint_settings.read_chat_template(tmp_path) == "a"
    write_json(tmp_path, "tokenizer_config.json", {"chat_template": named[1:]})
    with pytest.raises(UnsupportedModel, match="tool_use: one must be named default"):
        checkpoint_settings.read_chat_template(tmp_path)


@pytest.mark.parametrize("content", ["{", "[1]", "", "\x00"])
def test_broken_files_are_named(tmp_path, content):
    write_json(tmp_path, "preprocessor_config.json", content)
    with pytest.raises(UnsupportedModel, match=r"preprocessor_config\.json .*download it again"):
        checkpoint_settings.read_preprocessor_config(tmp_path)
