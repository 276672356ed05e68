"""Tables for `request_model.py`: fields of OpenAI's API, vLLM, TGI and llama.cpp that this server does not use.

Each field has the values that are ignored, and a hint for requests with other values.
"""

from __future__ import annotations

from idefics.server.request_model import IgnoredFields, make_field_table

TOOLS_HINT = (
    "this server does not support tools; for structured output give {schema} with a JSON schema, or regex"
)
CHAT_TOOLS_HINT = TOOLS_HINT.format(schema="response_format")
REASONING_HINT = "this model answers without reasoning"
NOT_STORED_HINT = "the server stores nothing: send the whole conversation with each request"
SCHEMA_HINT = "give response_format with a JSON schema"
PENALTY_HINT = "give repetition_penalty, presence_penalty or frequency_penalty"
SAMPLING_HINT = "give temperature, top_p, top_k or min_p"
ADAPTER_HINT = "start the server with --adapters, and give the adapter's name as model"
AUDIO_HINT = "this model generates text only"
PROMPT_LOGPROBS_HINT = "use /v1/completions with echo and logprobs"

# Fields of every route: sampling, length and constraints under the names of other servers.
SAMPLING_FIELDS = make_field_table(
    any_value=(
        "repeat_last_n",  # only has an effect with repeat_penalty
        "spaces_between_special_tokens",  # has no effect on the tokenizers of this server
        "truncation_side",  # prompts are never truncated
        "guided_decoding_backend",  # there is one backend
        "mirostat_tau",  # only has an effect with mirostat
        "mirostat_eta",
        "dynatemp_exponent",
        "xtc_threshold",
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "n_keep",  # prompts are never truncated
        "n_discard",
        "n_cache_reuse",  # caches never change answers
        "cache_prompt",
        "return_mm_kwargs",  # belongs to another route of vLLM
        "routed_experts_prompt_start",
        "request_id",
        "session_id",
        "include_reasoning",  # there is no reasoning
        "reasoning_format",
        "separate_reasoning",
        "stream_reasoning",
        "keep_alive",  # the model stays loaded
    ),
    default_only={
        "top_k": -1,  # "off" in vLLM and llama.cpp
        "length_penalty": 1,
        "early_stopping": False,
        "logit_bias": [],
        "watermark": False,
        "watermarking": False,
        "min_keep": 0,
        "post_sampling_probs": False,
        "id_slot": -1,
        "return_progress": False,
        "timings_per_token": False,
        "return_token_offsets": False,
        "priority": 0,
        "stream_interval": 1,
    },
    values_or_hint={
        "use_beam_search": ("the routes /v1/images/tasks/... have num_beams", False),
        "typical_p": (SAMPLING_HINT, 1),
        "repeat_penalty": ("give repetition_penalty", 1),
        "min_tokens": ("ask for a longer answer in the prompt", 0),
        "stop_token_ids": ("give stop, as texts", []),
        "include_stop_str_in_output": ("append the stop string to the answer yourself", False),
        "ignore_eos": ("give stop or max_tokens to end an answer", False),
        "add_special_tokens": (
            "a prompt always begins with the tokens that the model was trained with",
            True,
        ),
        "bad_words": ("give banned", []),
        "structured_outputs": ("give response_format, regex or choices", {}),
        "grammar": ("give regex or a JSON schema", ""),
        "chat_template_kwargs": (
            "the model's own chat template has no arguments",
            *(
                {**one, **other}
                for one in ({}, {"enable_thinking": False})
                for other in ({}, {"thinking": False})
            ),
        ),
        "documents": ("write them into a message", []),
        "media_io_kwargs": ("give detail or max_tiles in image_url", {}),
        "mm_processor_kwargs": ("give detail or max_tiles in image_url", {}),
        "logits_processors": ("give logit_bias, banned or regex", []),
        "mirostat": (SAMPLING_HINT, 0),
        "dynatemp_range": (SAMPLING_HINT, 0),
        "xtc_probability": (SAMPLING_HINT, 0),
        "top_n_sigma": (SAMPLING_HINT, -1),
        "dry_multiplier": (PENALTY_HINT, 0),
        "samplers": (SAMPLING_HINT, []),
        "n_probs": ("give logprobs and top_logprobs", 0),
        "t_max_predict_ms": ("give max_tokens", 0),
        "return_tokens": ("give logprobs to get the tokens", False),
        "return_tokens_as_token_ids": ("logprobs have the bytes of each token", False),
        "return_token_ids": ("give logprobs to get the tokens", False),
        "lora": (ADAPTER_HINT, []),
        "thinking_token_budget": (REASONING_HINT, -1, 0),
        "thinking": (REASONING_HINT, False, {}, {"type": "disabled"}),
        "thinking_budget": (REASONING_HINT, 0),
        "reasoning_budget": (REASONING_HINT, 0, -1),
        "reasoning_effort": (REASONING_HINT, "none"),
        "enable_reasoning": (REASONING_HINT, False),
        "think": (REASONING_HINT, False),
        "enable_thinking": (REASONING_HINT, False),
        "no_stop_trim": ("append the stop string to the answer yourself", False),
        "options": ("give its fields in the request itself", {}),
    },
    null_or_hint={
        "do_sample": "give a temperature above 0 to sample, or none for a greedy answer",
        "n_predict": "give max_tokens",
        "max_length": "give max_tokens",
        "truncate": "send a shorter prompt",
        "truncate_prompt_tokens": "send a shorter prompt",
        "prompt_logprobs": PROMPT_LOGPROBS_HINT,
        "logprob_token_ids": "give top_logprobs",
        "allowed_token_ids": "give choices or regex",
        "structural_tag": "give regex",
        "guided_json": SCHEMA_HINT,
        "guided_regex": "give regex",
        "guided_choice": "give choices",
        "guided_grammar": "give regex or a JSON schema",
        "guided_whitespace_pattern": "give regex",
        "json_schema": SCHEMA_HINT,
        "chat_template": "the model's own template is used",
        "repetition_detection": PENALTY_HINT,
        "adapter_id": ADAPTER_HINT,
        "ebnf": "give regex or a JSON schema",
    },
)

# Fields of chat completions and responses.
OPENAI_FIELDS = make_field_table(
    any_value=(
        "parallel_tool_calls",  # only has an effect with tools
        "max_tool_calls",
        "tool_prompt",
        "safety_identifier",
        "prompt_cache_key",  # caches never change answers
        "prompt_cache_options",
        "prompt_cache_retention",
    ),
    values_or_hint={
        "service_tier": ("there is only one tier", "auto", "default"),
        "background": ("give stream, or wait for the answer", False),
    },
    null_or_hint={"moderation": "the server does not moderate"},
)


def _tool_fields(schema_field: str) -> IgnoredFields:
    """Fields about tools; `schema_field` is the route's field for a JSON schema, which the hint names."""
    hint = TOOLS_HINT.format(schema=schema_field)
    return make_field_table(
        values_or_hint={
            "tools": (hint, []),
            "tool_choice": (hint, "none", "auto"),
            "functions": (hint, []),
            "function_call": (hint, "none", "auto"),
        }
    )


CHAT_FIELDS = make_field_table(
    SAMPLING_FIELDS,
    OPENAI_FIELDS,
    _tool_fields("response_format"),
    any_value=("prediction",),  # speeds up other servers, and does not change the answer
    values_or_hint={
        "add_special_tokens": ("", False, True),  # the chat template writes all special tokens
        "echo": ("prepend the prompt to the answer yourself", False),
        "best_of": ("give n, and choose the best answer yourself", 1),
        "modalities": (AUDIO_HINT, ["text"], []),
        "verbosity": ("ask for a longer or shorter answer in the prompt, or give max_tokens", "medium"),
    },
    null_or_hint={
        "audio": AUDIO_HINT,
        "web_search_options": "the server does not search the web",
    },
)

COMPLETION_FIELDS = make_field_table(
    SAMPLING_FIELDS,
    default_only={"logprobs": False},
    values_or_hint={
        "best_of": ("give n, and choose the best answer yourself", 1),
        "suffix": ("this model only continues the end of a text", ""),
        "response_format": ("give regex, or use /v1/chat/completions", {"type": "text"}),
        "image_data": ("use /v1/chat/completions for pictures", []),
    },
    null_or_hint={"prompt_embeds": "give the prompt as text"},
)

RESPONSE_FIELDS = make_field_table(
    SAMPLING_FIELDS,
    OPENAI_FIELDS,
    _tool_fields("text.format"),
    any_value=("background_options",),  # only has an effect with background
    default_only={"access_programs": {}},
    values_or_hint={
        "context_management": ("send a shorter conversation", []),
        "image": ("give detail or max_tiles in the input_image", {}),
        "n": ("use /v1/chat/completions, or send several requests", 1),
        "logprobs": ('give include: ["message.output_text.logprobs"]', False),
    },
    null_or_hint={
        "previous_response_id": f"{NOT_STORED_HINT} as input",
        "conversation": f"{NOT_STORED_HINT} as input",
        "prompt": "the server stores nothing: write the prompt into instructions or input",
        "response_format": "give text.format",
        "max_tokens": "give max_output_tokens",
    },
)

TASK_FIELDS = make_field_table(
    SAMPLING_FIELDS,
    default_only={"stream": False},
    values_or_hint={
        "n": ("send several requests", 1),
        "logprobs": ("use /v1/chat/completions", False),
        "response_format": ("give regex, or use /v1/chat/completions", {"type": "text"}),
    },
    null_or_hint={"max_tokens": "give max_new_tokens"},
)

# Hints for the caches of other servers; caches never change answers.
CACHE_HINT_FIELDS = make_field_table(any_value=("cache_control", "prompt_cache_breakpoint"))

# Messages and parts that clients send back as they received them.
MESSAGE_FIELDS = make_field_table(
    CACHE_HINT_FIELDS,
    any_value=(
        "id",
        "index",  # of the choice
        "finish_reason",
        "stop_reason",
        "logprobs",
        "parsed",  # the content, parsed as JSON by the client
        "provider_specific_fields",  # added by LiteLLM
    ),
    default_only={
        "type": "message",
        "annotations": [],
    },
    values_or_hint={
        "refusal": ('put it into content, as text or {"type": "refusal", ...}', ""),
        "reasoning": (REASONING_HINT, ""),
        "reasoning_content": (REASONING_HINT, ""),
        "tool_calls": (CHAT_TOOLS_HINT, []),
        "images": ('put pictures into content, as {"type": "image_url", ...}', []),
    },
    null_or_hint={
        "function_call": CHAT_TOOLS_HINT,
        "tool_call_id": CHAT_TOOLS_HINT,
        "audio": AUDIO_HINT,
    },
)

CONTENT_PART_FIELDS = make_field_table(
    CACHE_HINT_FIELDS,
    any_value=(
        "id",
        "index",  # of the part in its message
        "logprobs",
    ),
    default_only={"annotations": []},
    null_or_hint={"file_id": "send the picture as a data URI"},
)

# Types of items that OpenAI has and this server refuses, each with a hint.
HINT_BY_UNSUPPORTED_ITEM = {
    "item_reference": f"{NOT_STORED_HINT} as input",
    "compaction": f"{NOT_STORED_HINT} as input",
    "compaction_trigger": "send a shorter conversation",
    "reasoning": REASONING_HINT,
}
UNKNOWN_ITEM_HINT = f"send messages; {TOOLS_HINT.format(schema='text.format')}"
