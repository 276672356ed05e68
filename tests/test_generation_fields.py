"""The table has every generation field of transformers, and its default values change nothing."""

from idefics.generation_fields import (
    FIELDS_WITHOUT_EFFECT,
    OUTPUT_FIELDS,
    SEARCH_FIELDS,
    effective_fields,
    is_neutral,
)


def test_every_field_of_transformers_is_known_once():
    from transformers import GenerationConfig

    theirs = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert theirs == FIELDS_WITHOUT_EFFECT | SEARCH_FIELDS.keys() | OUTPUT_FIELDS.keys()
    assert len(FIELDS_WITHOUT_EFFECT) + len(SEARCH_FIELDS) + len(OUTPUT_FIELDS) == len(theirs)


def test_the_defaults_of_transformers_are_neutral():
    from transformers import GenerationConfig

    defaults = vars(GenerationConfig()) | GenerationConfig._get_default_generation_params()
    assert effective_fields(defaults) == {}


def test_what_changes_an_answer_is_left():
    settings = {
        "suppress_tokens": [5],
        "top_p": 0.9,
        "num_assistant_tokens": 4,
        "min_length": 0,
        "transformers_version": "5.23.0",
        "_from_model_config": True,
        "of_another_library": 7,
    }
    assert effective_fields(settings) == {"suppress_tokens": [5], "top_p": 0.9}


def test_values_are_compared_as_they_are():
    assert is_neutral("guidance_scale", 1) and is_neutral("stop_strings", None)
    assert not is_neutral("do_sample", True) and not is_neutral("eos_token_id", 0)
