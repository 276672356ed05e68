"""The tables of `neutral.py`: fields of OpenAI's API, vLLM, TGI and llama.cpp that this server does not use.

Each has the values that are ignored, and what to do where another one was meant to have an effect.
"""

from __future__ import annotations

from collections.abc import Mapping

from idefics.server.neutral import ANY, Unused, neutral

TOOLS = "this server calls no tools; for structured output give {schema} with a JSON schema, or regex"
REASONING = "this model answers at once, without reasoning"
STORED = "nothing is kept here: send the whole conversation with each request"
SCHEMA = "give response_format with a JSON schema"
PENALTY = "give repetition_penalty, presence_penalty or frequency_penalty"
DRAWN = "give temperature, top_p, top_k or min_p"
AUDIO = "this model answers in text alone"
PROMPT_LOGPROBS = "ask /v1/completions with echo and logprobs"

# How tokens are chosen, as other servers call it: on every route.
SAMPLING: Unused = {
    "top_k": neutral(-1),  # vLLM's and llama.cpp's value for "off"
    "do_sample": neutral(instead="give a temperature above 0 to sample, or none for a greedy answer"),
    "use_beam_search": neutral(False, instead="the routes /v1/images/tasks/... have num_beams"),
    "length_penalty": neutral(1),
    "early_stopping": neutral(False),
    "typical_p": neutral(1, instead=DRAWN),
    "repeat_penalty": neutral(1, instead="give repetition_penalty"),
    "repeat_last_n": ANY,  # reaches what repeat_penalty would do
    "min_tokens": neutral(0, instead="ask for a longer answer in words"),
    "n_predict": neutral(instead="give max_tokens"),
    "max_length": neutral(instead="give max_tokens"),
    "stop_token_ids": neutral([], instead="give stop, as texts"),
    "include_stop_str_in_output": neutral(False, instead="add the text that you gave as stop yourself"),
    "ignore_eos": neutral(False, instead="give stop or max_tokens to end an answer"),
    "spaces_between_special_tokens": ANY,  # tokenizers that would care are not used here
    "add_special_tokens": neutral(True, instead="a prompt begins as the model was trained"),
    "truncate": neutral(instead="send a shorter prompt"),
    "truncate_prompt_tokens": neutral(instead="send a shorter prompt"),
    "truncation_side": ANY,  # of a prompt that is never truncated
    "prompt_logprobs": neutral(instead=PROMPT_LOGPROBS),
    "logprob_token_ids": neutral(instead="give top_logprobs"),
    "allowed_token_ids": neutral(instead="give choices or regex"),
    "bad_words": neutral([], instead="give banned"),
    "structured_outputs": neutral({}, instead="give response_format, regex or choices"),
    "logit_bias": neutral([]),
    "structural_tag": neutral(instead="give regex"),
    "guided_json": neutral(instead=SCHEMA),
    "guided_regex": neutral(instead="give regex"),
    "guided_choice": neutral(instead="give choices"),
    "guided_grammar": neutral(instead="give regex or a JSON schema"),
    "guided_decoding_backend": ANY,  # there is one way to keep to a form
    "guided_whitespace_pattern": neutral(instead="give regex"),
    "grammar": neutral("", instead="give regex or a JSON schema"),
    "json_schema": neutral(instead=SCHEMA),
    "chat_template": neutral(instead="the model's own is used"),
    "chat_template_kwargs": neutral(
        *(
            {**one, **other}
            for one in ({}, {"enable_thinking": False})
            for other in ({}, {"thinking": False})
        ),
        instead="the model's own chat template has no arguments",
    ),
    "documents": neutral([], instead="write them into a message"),
    "media_io_kwargs": neutral({}, instead="give detail or max_tiles beside the url of a picture"),
    "mm_processor_kwargs": neutral({}, instead="give detail or max_tiles beside the url of a picture"),
    "logits_processors": neutral([], instead="give logit_bias, banned or regex"),
    "repetition_detection": neutral(instead=PENALTY),
    "watermark": neutral(False),
    "watermarking": neutral(False),
    "mirostat": neutral(0, instead=DRAWN),
    "mirostat_tau": ANY,  # of mirostat, which is off
    "mirostat_eta": ANY,
    "dynatemp_range": neutral(0, instead=DRAWN),
    "dynatemp_exponent": ANY,
    "xtc_probability": neutral(0, instead=DRAWN),
    "xtc_threshold": ANY,
    "top_n_sigma": neutral(-1, instead=DRAWN),
    "dry_multiplier": neutral(0, instead=PENALTY),
    "dry_base": ANY,
    "dry_allowed_length": ANY,
    "dry_penalty_last_n": ANY,
    "dry_sequence_breakers": ANY,
    "samplers": neutral([], instead=DRAWN),
    "min_keep": neutral(0),
    "n_probs": neutral(0, instead="give logprobs and top_logprobs"),
    "post_sampling_probs": neutral(False),
    "n_keep": ANY,  # of a prompt that is never truncated
    "n_discard": ANY,
    "n_cache_reuse": ANY,  # what is cached never changes an answer
    "cache_prompt": ANY,
    "id_slot": neutral(-1),
    "t_max_predict_ms": neutral(0, instead="give max_tokens"),
    "return_tokens": neutral(False, instead="give logprobs to get the tokens"),
    "return_progress": neutral(False),
    "timings_per_token": neutral(False),
    "return_tokens_as_token_ids": neutral(False, instead="logprobs have the bytes of each token"),
    "return_token_ids": neutral(False, instead="give logprobs to get the tokens"),
    "return_token_offsets": neutral(False),
    "return_mm_kwargs": ANY,  # of another route of vLLM
    "routed_experts_prompt_start": ANY,
    "lora": neutral([], instead="serve the model with its adapter"),
    "adapter_id": neutral(instead="serve the model with its adapter"),
    "priority": neutral(0),
    "stream_interval": neutral(1),
    "request_id": ANY,
    "session_id": ANY,
    "include_reasoning": ANY,  # there is none
    "thinking_token_budget": neutral(-1, 0, instead=REASONING),
    "thinking": neutral(False, {}, {"type": "disabled"}, instead=REASONING),
    "thinking_budget": neutral(0, instead=REASONING),
    "reasoning_budget": neutral(0, -1, instead=REASONING),
    "reasoning_effort": neutral("none", instead=REASONING),
    "enable_reasoning": neutral(False, instead=REASONING),
    "reasoning_format": ANY,
    "separate_reasoning": ANY,
    "stream_reasoning": ANY,
    "think": neutral(False, instead=REASONING),
    "enable_thinking": neutral(False, instead=REASONING),
    "ebnf": neutral(instead="give regex or a JSON schema"),
    "no_stop_trim": neutral(False, instead="add the text that you gave as stop yourself"),
    "keep_alive": ANY,  # the model stays loaded
    "options": neutral({}, instead="give its fields beside the messages"),
}

# What OpenAI's chat completions and responses share.
OPENAI: Unused = {
    "parallel_tool_calls": ANY,  # of tools, which a request has none of
    "max_tool_calls": ANY,
    "tool_prompt": ANY,
    "service_tier": neutral("auto", "default", instead="there is one"),
    "safety_identifier": ANY,
    "prompt_cache_key": ANY,  # what is cached never changes an answer
    "prompt_cache_options": ANY,
    "prompt_cache_retention": ANY,
    "moderation": neutral(instead="nothing is moderated here"),
    "background": neutral(False, instead="ask with stream, or wait for the answer"),
}


def _tools(schema: str) -> Unused:
    """The fields of tools; `schema` is the field that holds a JSON schema on the route."""
    instead = TOOLS.format(schema=schema)
    return {
        "tools": neutral([], instead=instead),
        "tool_choice": neutral("none", "auto", instead=instead),
        "functions": neutral([], instead=instead),
        "function_call": neutral("none", "auto", instead=instead),
    }


CHAT: Unused = {
    **SAMPLING,
    **OPENAI,
    **_tools("response_format"),
    "add_special_tokens": neutral(False, True),  # the chat template writes all that there are
    "echo": neutral(False, instead="put what you sent before the answer yourself"),
    "best_of": neutral(1, instead="give n, and choose"),
    "modalities": neutral(["text"], [], instead=AUDIO),
    "audio": neutral(instead=AUDIO),
    "prediction": ANY,  # makes other servers quicker, and leaves the answer as it is
    "verbosity": neutral("medium", instead="ask for a longer or shorter answer in words, or give max_tokens"),
    "web_search_options": neutral(instead="nothing is looked up on the web"),
}

COMPLETION: Unused = {
    **SAMPLING,
    "best_of": neutral(1, instead="give n, and choose"),
    "suffix": neutral("", instead="this model only goes on from the end of a text"),
    "logprobs": neutral(False),
    "prompt_embeds": neutral(instead="give the prompt as text"),
    "response_format": neutral({"type": "text"}, instead="give regex, or ask /v1/chat/completions"),
    "image_data": neutral([], instead="ask /v1/chat/completions about pictures"),
}

RESPONSE: Unused = {
    **SAMPLING,
    **OPENAI,
    **_tools("text.format"),
    "previous_response_id": neutral(instead=f"{STORED} as input"),
    "conversation": neutral(instead=f"{STORED} as input"),
    "prompt": neutral(instead="nothing is kept here: write the prompt itself into instructions or input"),
    "context_management": neutral([], instead="send a shorter conversation"),
    "background_options": ANY,  # of background, which is off
    "access_programs": neutral({}),
    "image": neutral({}, instead="give detail or max_tiles beside a picture"),
    "response_format": neutral(instead="give text.format"),
    "max_tokens": neutral(instead="give max_output_tokens"),
    "n": neutral(1, instead="ask /v1/chat/completions, or several times"),
    "logprobs": neutral(False, instead='give include: ["message.output_text.logprobs"]'),
}

TASK: Unused = {
    **SAMPLING,
    "model": ANY,  # there is one
    "stream": neutral(False),
    "max_tokens": neutral(instead="give max_new_tokens"),
    "n": neutral(1, instead="ask several times"),
    "logprobs": neutral(False, instead="ask /v1/chat/completions"),
    "response_format": neutral({"type": "text"}, instead="give regex, or ask /v1/chat/completions"),
}

REASONING_FIELD: Unused = {
    "effort": neutral("none", instead=REASONING),
    "enabled": neutral(False, instead=REASONING),
    "max_tokens": neutral(0, instead=REASONING),
    "exclude": ANY,  # how reasoning would be shown
    "summary": ANY,
    "generate_summary": ANY,
    "context": ANY,
    "mode": neutral("standard", instead=REASONING),
}

STREAM_OPTIONS: Unused = {
    "include_obfuscation": ANY,  # noise against those who watch the network
    "continuous_usage_stats": neutral(False, instead="the last chunk tells the usage"),
}

TEXT_FIELD: Unused = {
    "verbosity": neutral(
        "medium", instead="ask for a longer or shorter answer in words, or give max_output_tokens"
    )
}

# Cache hints are of other servers: what is cached never changes an answer.
CACHE_HINTS: Unused = {"cache_control": ANY, "prompt_cache_breakpoint": ANY}

# Answers come back as clients keep them.
MESSAGE: Unused = {
    **CACHE_HINTS,
    "id": ANY,
    "index": ANY,  # of the choice that it was
    "type": neutral("message"),
    "finish_reason": ANY,
    "stop_reason": ANY,
    "logprobs": ANY,
    "parsed": ANY,  # the content, read as JSON by the client
    "refusal": neutral("", instead='put it into content, as text or {"type": "refusal", ...}'),
    "annotations": neutral([]),
    "reasoning": neutral("", instead=REASONING),
    "reasoning_content": neutral("", instead=REASONING),
    "tool_calls": neutral([], instead=TOOLS.format(schema="response_format")),
    "function_call": neutral(instead=TOOLS.format(schema="response_format")),
    "tool_call_id": neutral(instead=TOOLS.format(schema="response_format")),
    "audio": neutral(instead=AUDIO),
    "images": neutral([], instead='put pictures into content, as {"type": "image_url", ...}'),
    "provider_specific_fields": ANY,  # LiteLLM's notes
}

IMAGE_ADDRESS: Unused = {"format": ANY, "file_id": neutral(instead="send the picture as a data URI")}

PART: Unused = {
    **CACHE_HINTS,
    "id": ANY,
    "index": ANY,  # of the part, in the message that it was
    "logprobs": ANY,
    "annotations": neutral([]),
    "file_id": neutral(instead="send the picture as a data URI"),
}

ITEM: Unused = {**CACHE_HINTS, "id": ANY, "status": ANY, "phase": ANY}

# What a conversation may hold elsewhere beside messages: types of items, or roles; and what is said of them here.
ITEM_REFERENCE = "item_reference"
UNSUPPORTED_ITEMS: Mapping[str, str] = {
    ITEM_REFERENCE: f"{STORED} as input",
    "compaction": f"{STORED} as input",
    "compaction_trigger": "send a shorter conversation",
    "reasoning": REASONING,
}
UNSUPPORTED_ROLES: Mapping[str, str] = dict.fromkeys(
    ("tool", "function"), TOOLS.format(schema="response_format")
)
NO_ITEM = f"send messages; {TOOLS.format(schema='text.format')}"
