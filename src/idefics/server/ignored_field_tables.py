"""Tables for `ignored_fields.py`: fields of OpenAI's API, vLLM, TGI and llama.cpp that this server does not use.

Each field has the values that are ignored, and a hint for requests with other values.
"""

from __future__ import annotations

from collections.abc import Mapping

from idefics.server.ignored_fields import ANY_VALUE, IgnoredFields, ignore_values

TOOLS_HINT = (
    "this server does not support tools; for structured output give {schema} with a JSON schema, or regex"
)
REASONING_HINT = "this model answers without reasoning"
NOT_STORED_HINT = "the server stores nothing: send the whole conversation with each request"
SCHEMA_HINT = "give response_format with a JSON schema"
PENALTY_HINT = "give repetition_penalty, presence_penalty or frequency_penalty"
SAMPLING_HINT = "give temperature, top_p, top_k or min_p"
AUDIO_HINT = "this model generates text only"
PROMPT_LOGPROBS_HINT = "use /v1/completions with echo and logprobs"

# Fields of every route: sampling, length and constraints under the names of other servers.
SAMPLING_FIELDS: IgnoredFields = {
    "top_k": ignore_values(-1),  # "off" in vLLM and llama.cpp
    "do_sample": ignore_values(hint="give a temperature above 0 to sample, or none for a greedy answer"),
    "use_beam_search": ignore_values(False, hint="the routes /v1/images/tasks/... have num_beams"),
    "length_penalty": ignore_values(1),
    "early_stopping": ignore_values(False),
    "typical_p": ignore_values(1, hint=SAMPLING_HINT),
    "repeat_penalty": ignore_values(1, hint="give repetition_penalty"),
    "repeat_last_n": ANY_VALUE,  # only has an effect with repeat_penalty
    "min_tokens": ignore_values(0, hint="ask for a longer answer in the prompt"),
    "n_predict": ignore_values(hint="give max_tokens"),
    "max_length": ignore_values(hint="give max_tokens"),
    "stop_token_ids": ignore_values([], hint="give stop, as texts"),
    "include_stop_str_in_output": ignore_values(False, hint="append the stop string to the answer yourself"),
    "ignore_eos": ignore_values(False, hint="give stop or max_tokens to end an answer"),
    "spaces_between_special_tokens": ANY_VALUE,  # has no effect on the tokenizers of this server
    "add_special_tokens": ignore_values(
        True, hint="a prompt always begins with the tokens that the model was trained with"
    ),
    "truncate": ignore_values(hint="send a shorter prompt"),
    "truncate_prompt_tokens": ignore_values(hint="send a shorter prompt"),
    "truncation_side": ANY_VALUE,  # prompts are never truncated
    "prompt_logprobs": ignore_values(hint=PROMPT_LOGPROBS_HINT),
    "logprob_token_ids": ignore_values(hint="give top_logprobs"),
    "allowed_token_ids": ignore_values(hint="give choices or regex"),
    "bad_words": ignore_values([], hint="give banned"),
    "structured_outputs": ignore_values({}, hint="give response_format, regex or choices"),
    "logit_bias": ignore_values([]),
    "structural_tag": ignore_values(hint="give regex"),
    "guided_json": ignore_values(hint=SCHEMA_HINT),
    "guided_regex": ignore_values(hint="give regex"),
    "guided_choice": ignore_values(hint="give choices"),
    "guided_grammar": ignore_values(hint="give regex or a JSON schema"),
    "guided_decoding_backend": ANY_VALUE,  # there is one backend
    "guided_whitespace_pattern": ignore_values(hint="give regex"),
    "grammar": ignore_values("", hint="give regex or a JSON schema"),
    "json_schema": ignore_values(hint=SCHEMA_HINT),
    "chat_template": ignore_values(hint="the model's own template is used"),
    "chat_template_kwargs": ignore_values(
        *(
            {**one, **other}
            for one in ({}, {"enable_thinking": False})
            for other in ({}, {"thinking": False})
        ),
        hint="the model's own chat template has no arguments",
    ),
    "documents": ignore_values([], hint="write them into a message"),
    "media_io_kwargs": ignore_values({}, hint="give detail or max_tiles in image_url"),
    "mm_processor_kwargs": ignore_values({}, hint="give detail or max_tiles in image_url"),
    "logits_processors": ignore_values([], hint="give logit_bias, banned or regex"),
    "repetition_detection": ignore_values(hint=PENALTY_HINT),
    "watermark": ignore_values(False),
    "watermarking": ignore_values(False),
    "mirostat": ignore_values(0, hint=SAMPLING_HINT),
    "mirostat_tau": ANY_VALUE,  # only has an effect with mirostat
    "mirostat_eta": ANY_VALUE,
    "dynatemp_range": ignore_values(0, hint=SAMPLING_HINT),
    "dynatemp_exponent": ANY_VALUE,
    "xtc_probability": ignore_values(0, hint=SAMPLING_HINT),
    "xtc_threshold": ANY_VALUE,
    "top_n_sigma": ignore_values(-1, hint=SAMPLING_HINT),
    "dry_multiplier": ignore_values(0, hint=PENALTY_HINT),
    "dry_base": ANY_VALUE,
    "dry_allowed_length": ANY_VALUE,
    "dry_penalty_last_n": ANY_VALUE,
    "dry_sequence_breakers": ANY_VALUE,
    "samplers": ignore_values([], hint=SAMPLING_HINT),
    "min_keep": ignore_values(0),
    "n_probs": ignore_values(0, hint="give logprobs and top_logprobs"),
    "post_sampling_probs": ignore_values(False),
    "n_keep": ANY_VALUE,  # prompts are never truncated
    "n_discard": ANY_VALUE,
    "n_cache_reuse": ANY_VALUE,  # caches never change answers
    "cache_prompt": ANY_VALUE,
    "id_slot": ignore_values(-1),
    "t_max_predict_ms": ignore_values(0, hint="give max_tokens"),
    "return_tokens": ignore_values(False, hint="give logprobs to get the tokens"),
    "return_progress": ignore_values(False),
    "timings_per_token": ignore_values(False),
    "return_tokens_as_token_ids": ignore_values(False, hint="logprobs have the bytes of each token"),
    "return_token_ids": ignore_values(False, hint="give logprobs to get the tokens"),
    "return_token_offsets": ignore_values(False),
    "return_mm_kwargs": ANY_VALUE,  # belongs to another route of vLLM
    "routed_experts_prompt_start": ANY_VALUE,
    "lora": ignore_values([], hint="serve the model with its adapter"),
    "adapter_id": ignore_values(hint="serve the model with its adapter"),
    "priority": ignore_values(0),
    "stream_interval": ignore_values(1),
    "request_id": ANY_VALUE,
    "session_id": ANY_VALUE,
    "include_reasoning": ANY_VALUE,  # there is no reasoning
    "thinking_token_budget": ignore_values(-1, 0, hint=REASONING_HINT),
    "thinking": ignore_values(False, {}, {"type": "disabled"}, hint=REASONING_HINT),
    "thinking_budget": ignore_values(0, hint=REASONING_HINT),
    "reasoning_budget": ignore_values(0, -1, hint=REASONING_HINT),
    "reasoning_effort": ignore_values("none", hint=REASONING_HINT),
    "enable_reasoning": ignore_values(False, hint=REASONING_HINT),
    "reasoning_format": ANY_VALUE,
    "separate_reasoning": ANY_VALUE,
    "stream_reasoning": ANY_VALUE,
    "think": ignore_values(False, hint=REASONING_HINT),
    "enable_thinking": ignore_values(False, hint=REASONING_HINT),
    "ebnf": ignore_values(hint="give regex or a JSON schema"),
    "no_stop_trim": ignore_values(False, hint="append the stop string to the answer yourself"),
    "keep_alive": ANY_VALUE,  # the model stays loaded
    "options": ignore_values({}, hint="give its fields in the request itself"),
}

# Fields of chat completions and responses.
OPENAI_FIELDS: IgnoredFields = {
    "parallel_tool_calls": ANY_VALUE,  # only has an effect with tools
    "max_tool_calls": ANY_VALUE,
    "tool_prompt": ANY_VALUE,
    "service_tier": ignore_values("auto", "default", hint="there is only one tier"),
    "safety_identifier": ANY_VALUE,
    "prompt_cache_key": ANY_VALUE,  # caches never change answers
    "prompt_cache_options": ANY_VALUE,
    "prompt_cache_retention": ANY_VALUE,
    "moderation": ignore_values(hint="the server does not moderate"),
    "background": ignore_values(False, hint="give stream, or wait for the answer"),
}


def _tool_fields(schema_field: str) -> IgnoredFields:
    """Fields about tools; `schema_field` is the route's field for a JSON schema, which the hint names."""
    hint = TOOLS_HINT.format(schema=schema_field)
    return {
        "tools": ignore_values([], hint=hint),
        "tool_choice": ignore_values("none", "auto", hint=hint),
        "functions": ignore_values([], hint=hint),
        "function_call": ignore_values("none", "auto", hint=hint),
    }


CHAT_FIELDS: IgnoredFields = {
    **SAMPLING_FIELDS,
    **OPENAI_FIELDS,
    **_tool_fields("response_format"),
    "add_special_tokens": ignore_values(False, True),  # the chat template writes all special tokens
    "echo": ignore_values(False, hint="prepend the prompt to the answer yourself"),
    "best_of": ignore_values(1, hint="give n, and choose the best answer yourself"),
    "modalities": ignore_values(["text"], [], hint=AUDIO_HINT),
    "audio": ignore_values(hint=AUDIO_HINT),
    "prediction": ANY_VALUE,  # speeds up other servers, and does not change the answer
    "verbosity": ignore_values(
        "medium", hint="ask for a longer or shorter answer in the prompt, or give max_tokens"
    ),
    "web_search_options": ignore_values(hint="the server does not search the web"),
}

COMPLETION_FIELDS: IgnoredFields = {
    **SAMPLING_FIELDS,
    "best_of": ignore_values(1, hint="give n, and choose the best answer yourself"),
    "suffix": ignore_values("", hint="this model only continues the end of a text"),
    "logprobs": ignore_values(False),
    "prompt_embeds": ignore_values(hint="give the prompt as text"),
    "response_format": ignore_values({"type": "text"}, hint="give regex, or use /v1/chat/completions"),
    "image_data": ignore_values([], hint="use /v1/chat/completions for pictures"),
}

RESPONSE_FIELDS: IgnoredFields = {
    **SAMPLING_FIELDS,
    **OPENAI_FIELDS,
    **_tool_fields("text.format"),
    "previous_response_id": ignore_values(hint=f"{NOT_STORED_HINT} as input"),
    "conversation": ignore_values(hint=f"{NOT_STORED_HINT} as input"),
    "prompt": ignore_values(hint="the server stores nothing: write the prompt into instructions or input"),
    "context_management": ignore_values([], hint="send a shorter conversation"),
    "background_options": ANY_VALUE,  # only has an effect with background
    "access_programs": ignore_values({}),
    "image": ignore_values({}, hint="give detail or max_tiles in the input_image"),
    "response_format": ignore_values(hint="give text.format"),
    "max_tokens": ignore_values(hint="give max_output_tokens"),
    "n": ignore_values(1, hint="use /v1/chat/completions, or send several requests"),
    "logprobs": ignore_values(False, hint='give include: ["message.output_text.logprobs"]'),
}

TASK_FIELDS: IgnoredFields = {
    **SAMPLING_FIELDS,
    "model": ANY_VALUE,  # there is only one
    "stream": ignore_values(False),
    "max_tokens": ignore_values(hint="give max_new_tokens"),
    "n": ignore_values(1, hint="send several requests"),
    "logprobs": ignore_values(False, hint="use /v1/chat/completions"),
    "response_format": ignore_values({"type": "text"}, hint="give regex, or use /v1/chat/completions"),
}

REASONING_FIELDS: IgnoredFields = {
    "effort": ignore_values("none", hint=REASONING_HINT),
    "enabled": ignore_values(False, hint=REASONING_HINT),
    "max_tokens": ignore_values(0, hint=REASONING_HINT),
    "exclude": ANY_VALUE,  # how to show reasoning
    "summary": ANY_VALUE,
    "generate_summary": ANY_VALUE,
    "context": ANY_VALUE,
    "mode": ignore_values("standard", hint=REASONING_HINT),
}

STREAM_OPTIONS_FIELDS: IgnoredFields = {
    "include_obfuscation": ANY_VALUE,  # padding against traffic analysis
    "continuous_usage_stats": ignore_values(False, hint="the last chunk has the usage"),
}

TEXT_CONFIG_FIELDS: IgnoredFields = {
    "verbosity": ignore_values(
        "medium", hint="ask for a longer or shorter answer in the prompt, or give max_output_tokens"
    )
}

# Hints for the caches of other servers; caches never change answers.
CACHE_HINT_FIELDS: IgnoredFields = {"cache_control": ANY_VALUE, "prompt_cache_breakpoint": ANY_VALUE}

# Messages and parts that clients send back as they received them.
MESSAGE_FIELDS: IgnoredFields = {
    **CACHE_HINT_FIELDS,
    "id": ANY_VALUE,
    "index": ANY_VALUE,  # of the choice
    "type": ignore_values("message"),
    "finish_reason": ANY_VALUE,
    "stop_reason": ANY_VALUE,
    "logprobs": ANY_VALUE,
    "parsed": ANY_VALUE,  # the content, parsed as JSON by the client
    "refusal": ignore_values("", hint='put it into content, as text or {"type": "refusal", ...}'),
    "annotations": ignore_values([]),
    "reasoning": ignore_values("", hint=REASONING_HINT),
    "reasoning_content": ignore_values("", hint=REASONING_HINT),
    "tool_calls": ignore_values([], hint=TOOLS_HINT.format(schema="response_format")),
    "function_call": ignore_values(hint=TOOLS_HINT.format(schema="response_format")),
    "tool_call_id": ignore_values(hint=TOOLS_HINT.format(schema="response_format")),
    "audio": ignore_values(hint=AUDIO_HINT),
    "images": ignore_values([], hint='put pictures into content, as {"type": "image_url", ...}'),
    "provider_specific_fields": ANY_VALUE,  # added by LiteLLM
}

IMAGE_URL_FIELDS: IgnoredFields = {
    "format": ANY_VALUE,
    "file_id": ignore_values(hint="send the picture as a data URI"),
}

CONTENT_PART_FIELDS: IgnoredFields = {
    **CACHE_HINT_FIELDS,
    "id": ANY_VALUE,
    "index": ANY_VALUE,  # of the part in its message
    "logprobs": ANY_VALUE,
    "annotations": ignore_values([]),
    "file_id": ignore_values(hint="send the picture as a data URI"),
}

INPUT_ITEM_FIELDS: IgnoredFields = {
    **CACHE_HINT_FIELDS,
    "id": ANY_VALUE,
    "status": ANY_VALUE,
    "phase": ANY_VALUE,
}

# Types of items and roles of messages that OpenAI has and this server refuses, each with a hint.
ITEM_REFERENCE = "item_reference"
HINT_BY_UNSUPPORTED_ITEM: Mapping[str, str] = {
    ITEM_REFERENCE: f"{NOT_STORED_HINT} as input",
    "compaction": f"{NOT_STORED_HINT} as input",
    "compaction_trigger": "send a shorter conversation",
    "reasoning": REASONING_HINT,
}
HINT_BY_UNSUPPORTED_ROLE: Mapping[str, str] = dict.fromkeys(
    ("tool", "function"), TOOLS_HINT.format(schema="response_format")
)
UNKNOWN_ITEM_HINT = f"send messages; {TOOLS_HINT.format(schema='text.format')}"
