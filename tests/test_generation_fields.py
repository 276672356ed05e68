"""The table has every generation field of transformers, and its default values change nothing."""

from idefics.generation_fields import (
    FIELDS_WITHOUT_EFFECT,
    OUTPUT_FIELDS,
    SEARCH_FIELDS,
    answer_changing_fields,
    changes_no_answer,
)


def test_every_field_of_transformers_is_known_once():
    from transformers import GenerationConfig

    theirs = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert theirs == FIELDS_WITHOUT_EFFECT | SEARCH_FIELDS.keys() | OUTPUT_FIELDS.keys()
    assert len(FIELDS_WITHOUT_EFFECT) + len(SEARCH_FIELDS) + len(OUTPUT_FIELDS) == len(theirs)


def test_the_defaults_of_transformers_are_neutral():
    from transformers import GenerationConfig

    defaults = vars(GenerationConfig()) | GenerationConfig._get_default_generation_params()
    assert answer_changing_fields(defaults) == {}


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
    assert answer_changing_fields(settings) == {"suppress_tokens": [5], "top_p": 0.9}


def test_values_are_compared_as_they_are():
    assert changes_no_answer("guidance_scale", 1) and changes_no_answer("stop_strings", None)
    assert not changes_no_answer("do_sample", True) and not changes_no_answer("eos_token_id", 0)
