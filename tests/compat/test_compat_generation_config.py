"""`GenerationConfig`: what it accepts, what it writes and reads."""

import copy
import json
import pickle

import numpy as np
import pytest

from idefics.compat.generation_config import FIELD_NAMES, GenerationConfig
from idefics.errors import BadSetting, BrokenCheckpoint, ModelNotFound, UnknownArgument


def test_what_is_not_set_has_its_default():
    settings = GenerationConfig(max_new_tokens=5, top_p=None)
    assert settings.max_new_tokens == 5
    assert (settings.max_length, settings.top_k, settings.top_p, settings.eos_token_id) == (20, 50, 1.0, None)
    assert {name for name in FIELD_NAMES if settings.is_field_set(name)} == {"max_new_tokens"}
    settings.max_new_tokens = None
    assert settings == GenerationConfig()


def test_defaults_are_those_of_the_reference():
    transformers = pytest.importorskip("transformers")
    defaults = transformers.GenerationConfig._get_default_generation_params()
    for name in FIELD_NAMES:
        assert getattr(GenerationConfig(), name) == defaults.get(name, None) or name not in defaults, name
    assert set(FIELD_NAMES) <= transformers.GenerationConfig().to_dict().keys()


def test_repr_and_equality():
    settings = GenerationConfig(num_beams=2)
    assert repr(settings) == "GenerationConfig(num_beams=2)"
    assert settings == GenerationConfig(num_beams=2) != GenerationConfig(num_beams=3)
    assert settings != "GenerationConfig(num_beams=2)"
    assert copy.deepcopy(settings) == pickle.loads(pickle.dumps(settings)) == settings


def test_numbers_of_numpy_are_numbers():
    settings = GenerationConfig(
        max_new_tokens=np.int64(3), temperature=np.float32(0.5), eos_token_id=(np.int32(2),)
    )
    assert (
        json.dumps([settings.max_new_tokens, settings.temperature, settings.eos_token_id]) == "[3, 0.5, [2]]"
    )


BAD_SETTINGS = [
    *(
        ({name: value})
        for name in ("max_length", "max_new_tokens", "num_beams")
        for value in (0, -1, 1.5, True, "2")
    ),
    {"top_k": -1},
    {"min_length": -1},
    {"no_repeat_ngram_size": 1.0},
    {"temperature": -0.1},
    {"temperature": "hot"},
    {"temperature": float("nan")},
    {"top_p": 1.1},
    {"min_p": -0.1},
    {"typical_p": 0},
    {"repetition_penalty": 0},
    {"length_penalty": True},
    {"do_sample": 1},
    {"use_cache": "no"},
    {"early_stopping": "always"},
    {"early_stopping": 1},
    {"eos_token_id": "</s>"},
    {"eos_token_id": [1, "</s>"]},
    {"pad_token_id": 0.0},
    {"bad_words_ids": [1, 2]},
    {"bad_words_ids": [[-1]]},
    {"bad_words_ids": 5},
]


@pytest.mark.parametrize("settings", BAD_SETTINGS, ids=str)
def test_values_that_cannot_be(settings):
    (name, value) = next(iter(settings.items()))
    for attempt in (lambda: GenerationConfig(**settings), lambda: setattr(GenerationConfig(), name, value)):
        with pytest.raises(BadSetting, match="; give ") as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert name in str(caught.value)


def test_names_that_are_none():
    for attempt in (
        lambda: GenerationConfig(max_new_token=3),
        lambda: setattr(GenerationConfig(), "max_new_token", 3),
        lambda: GenerationConfig().update(max_new_token=3),
    ):
        with pytest.raises(
            UnknownArgument, match=r"'max_new_token' \(did you mean 'max_new_tokens'\?\); it takes "
        ):
            attempt()


def test_update():
    settings = GenerationConfig(top_p=0.5)
    settings.update(top_p=None, num_beams=3)
    assert settings == GenerationConfig(num_beams=3)
    settings.update(defaults_only=True, num_beams=5, top_k=7)
    assert settings == GenerationConfig(num_beams=3, top_k=7)


def test_a_dict_and_back():
    settings = GenerationConfig(max_new_tokens=5, bad_words_ids=[[3], [4, 5]], early_stopping="never")
    assert set(settings.to_dict()) == set(FIELD_NAMES)
    assert settings.to_dict()["max_length"] is None
    assert GenerationConfig.from_dict(settings.to_dict()) == settings
    assert GenerationConfig.from_dict(settings.to_dict(), num_beams=2).num_beams == 2


def test_a_folder_and_back(tmp_path):
    settings = GenerationConfig(max_new_tokens=5, eos_token_id=[2, 7], pad_token_id=0, do_sample=False)
    settings.save_pretrained(tmp_path / "new" / "folder")
    assert GenerationConfig.from_pretrained(tmp_path / "new" / "folder") == settings
    assert GenerationConfig.from_pretrained(str(tmp_path / "new" / "folder"), top_k=4).top_k == 4


def test_a_file_of_the_reference(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig(max_new_tokens=7, do_sample=True, top_p=0.5, eos_token_id=[2, 3])
    theirs.save_pretrained(tmp_path)
    ours = GenerationConfig.from_pretrained(tmp_path)
    assert ours == GenerationConfig(max_new_tokens=7, do_sample=True, top_p=0.5, eos_token_id=[2, 3])
    ours.save_pretrained(tmp_path)
    assert transformers.GenerationConfig.from_pretrained(tmp_path).top_p == 0.5


def test_unrelated_fields_of_a_file(tmp_path):
    raw = {
        "_from_model_config": True,
        "transformers_version": "4.33.0",
        "cache_implementation": "hybrid",
        "num_beam_groups": None,
        "diversity_penalty": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    assert GenerationConfig.from_dict(raw) == GenerationConfig(pad_token_id=0, eos_token_id=2)
    assert GenerationConfig.from_dict({"guidance_scale": 2.0, "of_another_program": 5}).guidance_scale == 2.0
    with pytest.raises(BadSetting, match=r"penalty_alpha is 0.6.*leave it out"):
        GenerationConfig.from_dict({"penalty_alpha": 0.6})


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "is not JSON"), ("[]", "not a JSON object"), ("\udcff", "cannot be read")],
    ids=repr,
)
def test_a_file_that_is_none(tmp_path, content, reason):
    (tmp_path / "generation_config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(BrokenCheckpoint, match=reason):
        GenerationConfig.from_pretrained(tmp_path)


def test_a_folder_without_the_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BrokenCheckpoint, match=r"no generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path)
    with pytest.raises(ModelNotFound):
        GenerationConfig.from_pretrained(tmp_path / "nowhere")


def test_the_special_ids_of_a_config():
    raw = {"pad_token_id": 0, "eos_token_id": None, "text_config": {"eos_token_id": 5, "pad_token_id": 7}}
    assert GenerationConfig.from_model_config(raw) == GenerationConfig(pad_token_id=0, eos_token_id=5)
    assert GenerationConfig.from_model_config({"bos_token_id": 1}) == GenerationConfig(bos_token_id=1)
