"""Which fields of a generation_config.json change an answer, and from which value on: transformers' 5.x fields.

`idefics.load` and `idefics.compat` both read this table. They ignore fields that cannot change an answer, and honour or
refuse by name those that do; each decides which it honours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Speed, placement, speculative decoding (which answers as the model alone would), what is returned with the answer, and
# the file's origin; the last line is for encoder-decoder models.
FIELDS_WITHOUT_EFFECT = frozenset(
    """
    use_cache cache_implementation cache_config max_cache_len prefill_chunk_size low_memory
    compile_config disable_compile continuous_batching_config remove_invalid_values use_mtp speculation_type
    is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
    prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight
    output_attentions output_hidden_states output_scores output_logits return_dict_in_generate
    transformers_version pad_token_id bos_token_id
    decoder_start_token_id
    """.split()  # noqa: SIM905  # a list would take thirty lines
)

# Decoding strategy, number and length of answers, which callers of `idefics.load` choose. Field -> value that changes
# nothing; None and empty lists, dicts and texts never change anything.
SEARCH_FIELDS: Mapping[str, object] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "length_penalty": 1.0,
    "early_stopping": False,
    "num_return_sequences": 1,
    "max_length": 20,
    "max_new_tokens": None,
    "max_time": None,
}

# Fields that change which tokens follow, whatever the strategy. Field -> value that changes nothing, as above.
OUTPUT_FIELDS: Mapping[str, object] = {
    "eos_token_id": None,
    "stop_strings": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "renormalize_logits": False,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "token_healing": False,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "penalty_alpha": 0.0,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
}

NEUTRAL_VALUE_BY_FIELD: Mapping[str, object] = {**SEARCH_FIELDS, **OUTPUT_FIELDS}


def changes_no_answer(name: str, value: object) -> bool:
    """Whether a field with this value changes no answer; true for unknown fields, which `generate` ignores."""
    return value in (NEUTRAL_VALUE_BY_FIELD.get(name, value), None, [], {}, "")


def answer_changing_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a generation_config.json that are not neutral (see `changes_no_answer`)."""
    return {name: value for name, value in settings.items() if not changes_no_answer(name, value)}
