"""Unused fields are ignored with values that change nothing, and refused by name with others."""

import json
import re
import typing

import jsonschema_rs
import openai.types.chat as chat_types
import openai.types.responses as response_types
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from openai.types.shared_params import Reasoning
from pydantic import BaseModel, ValidationError

from idefics.server import chat_messages, request_model, responses, sampling_fields, tasks
from idefics.server.chat import ChatRequest
from idefics.server.chat_messages import check_refusal_role
from idefics.server.completions import CompletionRequest
from idefics.server.request_model import RequestModel
from idefics.server.responses import ResponseRequest
from server.request_bodies import (
    chat_request,
    image_part,
    parse_events,
    picture_data_uri,
    text_part,
    user_message,
)

CHAT, COMPLETIONS, RESPONSES, CAPTION = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/images/tasks/caption",
)
PICTURE = {"type": "input_image", "image_url": picture_data_uri("shapes")}
TEXT_PART = {"type": "input_text", "text": "What is shown?"}
PLAIN_REQUEST_BY_PATH = {
    CHAT: chat_request(max_tokens=3),
    COMPLETIONS: {"model": "demo", "prompt": "A", "max_tokens": 3},
    RESPONSES: {
        "model": "demo",
        "input": [{"role": "user", "content": [PICTURE, TEXT_PART]}],
        "max_output_tokens": 3,
    },
    CAPTION: {"image_url": picture_data_uri("shapes"), "max_new_tokens": 3},
}
TOOL_DEFINITION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def comparable_answer(body):
    """An answer without its ids and times."""
    if "choices" in body:
        return [one.get("message") or one["text"] for one in body["choices"]]
    return body["output"][0]["content"] if "output" in body else body["text"]


ACCEPTED_FIELDS = [
    *(
        (path, {name: None})
        for path in PLAIN_REQUEST_BY_PATH
        for name in ("tools", "seed", "temperature", "n", "anything")
    ),
    *((path, {"tools": [], "service_tier": "auto"}) for path in (CHAT, RESPONSES)),
    *((path, {"tool_choice": choice}) for path in (CHAT, RESPONSES) for choice in ("none", "auto")),
    *((path, {"parallel_tool_calls": is_so}) for path in (CHAT, RESPONSES) for is_so in (True, False)),
    *((path, {"prompt_cache_key": "a", "safety_identifier": "b"}) for path in (CHAT, RESPONSES)),
    *(
        (path, {"skip_special_tokens": True, "min_tokens": 0, "ignore_eos": False})
        for path in PLAIN_REQUEST_BY_PATH
    ),
    *((path, {"top_k": -1, "add_special_tokens": True}) for path in PLAIN_REQUEST_BY_PATH),
    (
        CHAT,
        {
            "reasoning_effort": None,
            "reasoning": {},
            "verbosity": None,
            "functions": [],
            "function_call": "none",
        },
    ),
    (CHAT, {"stream_options": {"include_obfuscation": False, "continuous_usage_stats": False}}),
    (
        CHAT,
        {"best_of": 1, "modalities": ["text"], "store": False, "add_generation_prompt": True, "echo": False},
    ),
    (CHAT, {"web_search_options": None, "prediction": {"type": "content", "content": "A"}}),
    (COMPLETIONS, {"best_of": 1, "suffix": None}),
    (COMPLETIONS, {"suffix": "", "logprobs": False}),
    (RESPONSES, {"previous_response_id": None, "conversation": None, "background": False, "prompt": None}),
    (RESPONSES, {"text": {"verbosity": None, "format": {"type": "text"}}}),
    (RESPONSES, {"text": {"verbosity": "medium"}}),
    (RESPONSES, {"include": ["reasoning.encrypted_content", "message.input_image.image_url"]}),
    (RESPONSES, {"include": [], "max_tool_calls": 3, "truncation": None}),
    (RESPONSES, {"reasoning": {"effort": "none", "summary": None}, "stream_options": {}}),
    (CAPTION, {"model": "demo", "detail": None, "shots": None, "stream": False}),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": False}, "keep_alive": "5m", "logit_bias": []}),
    (CHAT, {"chat_template_kwargs": {"thinking": False, "enable_thinking": False}}),
    *((path, {"thinking": {"type": "disabled"}}) for path in PLAIN_REQUEST_BY_PATH),
    *(
        (path, {"thinking": False, "thinking_budget": 0, "thinking_token_budget": 0})
        for path in PLAIN_REQUEST_BY_PATH
    ),
    *((path, {"reasoning_budget": 0, "enable_reasoning": False}) for path in PLAIN_REQUEST_BY_PATH),
    *((path, {"reasoning_effort": "none"}) for path in PLAIN_REQUEST_BY_PATH),
]


@pytest.mark.parametrize(("path", "more"), ACCEPTED_FIELDS, ids=lambda value: str(value)[:60])
def test_ignored_fields_do_not_change_the_answer(client, path, more):
    answer = client.post(path, PLAIN_REQUEST_BY_PATH[path] | more)
    assert answer.status_code == 200, answer.text
    assert comparable_answer(answer.json()) == comparable_answer(
        client.post(path, PLAIN_REQUEST_BY_PATH[path]).json()
    )


def test_answers_of_chat_can_be_sent_back(client):
    reply = {"role": "assistant", "content": "A circle."}
    kept = {
        **reply,
        "id": "chatcmpl-1",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "tool_call_id": None,
        "reasoning": None,
        "reasoning_content": "",
        "parsed": {"shape": "circle"},
        "provider_specific_fields": {"refusal": None},
        "index": 0,
        "type": "message",
        "finish_reason": "stop",
        "stop_reason": None,
        "logprobs": {"content": []},
    }
    more = user_message({**text_part("And its colour?"), "cache_control": {"type": "ephemeral"}})
    first = user_message(image_part("shapes", format="image/png", detail=None), text_part("What?"))
    plain = client.post(
        CHAT,
        chat_request(
            [
                user_message(image_part("shapes"), text_part("What?")),
                reply,
                user_message(text_part("And its colour?")),
            ]
        ),
    )
    answer = client.post(CHAT, chat_request([first, kept, more | {"cache_control": {"type": "ephemeral"}}]))
    assert answer.status_code == 200, answer.text
    assert comparable_answer(answer.json()) == comparable_answer(plain.json())


@pytest.mark.parametrize(("path", "kind"), [(CHAT, "messages"), (RESPONSES, "input")])
def test_parts_of_answers_can_be_sent_back(client, path, kind):
    """Also refusals of another model, which are read as text of the assistant."""
    name = "text" if path == CHAT else "output_text"
    noted = {"index": 0, "id": "part_1", "annotations": [], "logprobs": [{"token": "A"}]}
    parts = [
        {"type": name, "text": "A circle."} | noted,
        {"type": "refusal", "refusal": "I may not."} | noted,
    ]
    plain = [{"type": name, "text": "A circle."}, {"type": name, "text": "I may not."}]
    question, more = {"role": "user", "content": "What?"}, {"role": "user", "content": "And its colour?"}
    answers = [
        client.post(
            path, {"model": "demo", kind: [question, {"role": "assistant", "content": content}, more]}
        )
        for content in (parts, plain)
    ]
    assert answers[0].status_code == 200, answers[0].text
    assert comparable_answer(answers[0].json()) == comparable_answer(answers[1].json())
    told = client.post(path, {"model": "demo", kind: [{"role": "user", "content": parts[1:]}]})
    assert told.status_code == 400
    assert "refusal" in told.json()["error"]["message"]
    assert "assistant" in told.json()["error"]["message"]


def test_answers_of_responses_can_be_sent_back(client):
    text = {"type": "output_text", "text": "A circle.", "annotations": [], "logprobs": []}
    reply = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]}
    more = {"role": "user", "content": "And its colour?"}
    first = {"role": "user", "content": [{**PICTURE, "file_id": None}, TEXT_PART]}
    answer = client.post(RESPONSES, {"model": "demo", "input": [first, reply | {"phase": None}, more]})
    assert answer.status_code == 200, answer.text
    turns = [*PLAIN_REQUEST_BY_PATH[RESPONSES]["input"], {"role": "assistant", "content": "A circle."}, more]
    plain = client.post(RESPONSES, {"model": "demo", "input": turns})
    assert comparable_answer(answer.json()) == comparable_answer(plain.json())


REFUSED_FIELDS = [
    (CHAT, {"tools": [TOOL_DEFINITION]}, ["tools is not supported", "response_format", "regex"]),
    (RESPONSES, {"tools": [TOOL_DEFINITION]}, ["tools is not supported", "text.format", "regex"]),
    (CHAT, {"tool_choice": "required"}, ['tool_choice ("required") is not supported', "response_format"]),
    (CHAT, {"reasoning_effort": "high"}, ['reasoning_effort ("high")', "without reasoning"]),
    *(
        (path, {"thinking": value}, ["thinking", "without reasoning"])
        for path in PLAIN_REQUEST_BY_PATH
        for value in ({"type": "enabled", "budget_tokens": 1024}, True)
    ),
    (CHAT, {"thinking_budget": 512}, ["thinking_budget (512)", "without reasoning"]),
    (RESPONSES, {"reasoning": {"effort": "low"}}, ['reasoning.effort ("low")', "without reasoning"]),
    (
        RESPONSES,
        {"previous_response_id": "resp_1"},
        ['previous_response_id ("resp_1")', "the server stores nothing"],
    ),
    (RESPONSES, {"conversation": "conv_1"}, ["conversation", "the server stores nothing"]),
    (CHAT, {"service_tier": "priority"}, ['service_tier ("priority")']),
    (CHAT, {"web_search_options": {}}, ["web_search_options ({})"]),  # which switches the search on
    (CHAT, {"guided_json": {}}, ["guided_json ({})", "response_format"]),
    (CHAT, {"guided_regex": "a"}, ["guided_regex", "give regex"]),
    (CHAT, {"min_tokens": 5}, ["min_tokens (5)"]),
    (CHAT, {"bad_words": ["a"]}, ["bad_words", "give banned"]),
    (CHAT, {"best_of": True}, ["best_of (true)"]),  # 1 and true are different values
    (COMPLETIONS, {"suffix": "a"}, ['suffix ("a")']),
    (COMPLETIONS, {"n_predict": 5}, ["n_predict (5)", "give max_tokens"]),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": True}}, ["chat_template_kwargs", "no arguments"]),
    (CHAT, {"temprature": 1}, ["unknown field: temprature: did you mean temperature?"]),
    (CHAT, {"foo": 1, "bar": 2}, ["unknown fields: foo, bar: leave out"]),
    (CHAT, {"foo": False}, ["unknown field: foo"]),
    (CHAT, {"foo": 1, "best_of": 2}, ["best_of (2) is not supported", "; unknown field: foo"]),
    (RESPONSES, {"text": {"verbosity": "low"}}, ['text.verbosity ("low")', "give max_output_tokens"]),
    (
        CHAT,
        {"messages": [{"role": "assistant", "content": "A", "tool_calls": [{}]}]},
        ["messages[0].tool_calls"],
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": "A", "images": ["a"]}]},
        ["messages[0].images", "image_url"],
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": None}]},
        ["messages[0].content: give text or a list of parts"],
    ),
    (
        RESPONSES,
        {"input": [{"role": "user", "content": None}]},
        ["input[0].content: give text or a list of parts"],
    ),
    (
        RESPONSES,
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        ["input[0]", "the server stores nothing"],
    ),
    (RESPONSES, {"input": [{"id": "msg_1"}]}, ["input[0]", "the server stores nothing"]),
    (
        RESPONSES,
        {"input": [{"type": "function_call", "name": "f"}]},
        ["input[0]", "does not support tools", "text.format"],
    ),
    (
        CHAT,
        {"messages": [{"role": "tool", "content": "A", "tool_call_id": "1"}]},
        ["messages[0]", "does not support tools"],
    ),
    (CAPTION, {"max_tokens": 5}, ["max_tokens (5) is not supported: give max_new_tokens"]),
]


@pytest.mark.parametrize(("path", "more", "words"), REFUSED_FIELDS, ids=lambda value: str(value)[:60])
def test_values_that_could_change_the_answer_are_refused(client, path, more, words):
    answer = client.post(path, PLAIN_REQUEST_BY_PATH[path] | more)
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message


def all_request_classes(kind=RequestModel):
    for one in kind.__subclasses__():
        yield one
        yield from all_request_classes(one)


REQUEST_CLASSES = sorted({*all_request_classes()}, key=lambda kind: kind.__name__)
CLASS_AND_UNUSED_FIELD = [(kind, name) for kind in REQUEST_CLASSES for name in kind.ignored_fields]
SMALLEST_VALUE_BY_FIELD = {
    "input_file_id": "file-1",
    "endpoint": CHAT,
    "completion_window": "24h",
    "anchor": "created_at",
    "seconds": 3600,
    "refusal": "A",
    "messages": [{"role": "user", "content": "Hi"}],
    "content": "Hi",
    "input": "Hi",
    "model": "demo",
    "prompt": "Hi",
    "role": "user",
    "text": "Hi",
    "url": "data:,",
    "image_url": "data:,",
    "labels": ["a", "b"],
    "words": "Hi",
    "schema": {},
    "json_schema": {"schema": {}},
    "answer": "Hi",
    "question": "Hi",
    "value": "a",
    "video": ["data:,"],
    "width": 1,
    "height": 1,
}


def smallest_object(kind):
    """The smallest object of a class: its required fields."""
    found = {}
    for name, field in kind.model_fields.items():
        if field.is_required():
            name = field.alias or name
            literal = typing.get_args(field.annotation)[0] if name == "type" else None
            found[name] = literal or SMALLEST_VALUE_BY_FIELD[name]
    if kind.__name__ == "ChatImagePart" and "input_image" not in found.values():
        found["image_url"] = {"url": "data:,"}
    return found


def parse_or_none(kind, value):
    """The parsed object, or None if it is refused."""
    try:
        return kind.model_validate(value)
    except ValidationError:
        return None


@pytest.mark.parametrize(
    "kind", [kind for kind in REQUEST_CLASSES if kind.ignored_fields], ids=lambda kind: kind.__name__
)
def test_ignored_values_are_accepted_and_documented(kind):
    plain = kind.model_validate(smallest_object(kind))
    described = jsonschema_rs.validator_for(kind.model_json_schema())
    for name, row in kind.ignored_fields.items():
        for value in (
            None,
            *(row.ignored_values if row.ignored_values is not None else ("x", 1, True, {"a": 1})),
        ):
            said = smallest_object(kind) | {name: value}
            assert kind.model_validate(said) == plain
            assert described.is_valid(said), f"the description of the API refuses {said}"
        if row.ignored_values is not None:
            said = smallest_object(kind) | {name: {"other": "value"}}
            assert parse_or_none(kind, said) is None
            assert not described.is_valid(said), f"the description of the API allows {said}"


@pytest.mark.parametrize("kind", REQUEST_CLASSES, ids=lambda kind: kind.__name__)
def test_null_is_the_same_as_leaving_a_field_out(kind):
    plain = kind.model_validate(smallest_object(kind))
    described = jsonschema_rs.validator_for(kind.model_json_schema())
    for name in {field.alias or name for name, field in kind.model_fields.items()} - {
        *smallest_object(kind)
    } | {"other"}:
        said = smallest_object(kind) | {name: None}
        assert kind.model_validate(said) == plain
        assert described.is_valid(said)
    for value, is_ignored in (([], True), ({}, True), (False, False), (0, False), ("", False)):
        said = smallest_object(kind) | {"other": value}
        assert (parse_or_none(kind, said) == plain) is is_ignored
        assert described.is_valid(said) is is_ignored


def field_names(*params):
    """The fields of classes of OpenAI's package, for requests or answers."""
    return {
        name
        for one in params
        for name in (one.model_fields if issubclass(one, BaseModel) else typing.get_type_hints(one))
    }


def union_members(union):
    return {one.__name__: one for one in typing.get_args(union)}


MESSAGES = union_members(chat_types.ChatCompletionMessageParam)
CLASS_AND_OPENAI_FIELDS = [
    (ChatRequest, field_names(chat_create_params.CompletionCreateParamsStreaming)),
    (CompletionRequest, field_names(completion_create_params.CompletionCreateParamsStreaming)),
    (ResponseRequest, field_names(response_create_params.ResponseCreateParamsStreaming)),
    (chat_messages.ChatMessage, field_names(*MESSAGES.values(), chat_types.ParsedChatCompletionMessage)),
    (chat_messages.ChatTextPart, field_names(chat_types.ChatCompletionContentPartTextParam)),
    (chat_messages.ChatImagePart, field_names(chat_types.ChatCompletionContentPartImageParam)),
    (chat_messages.ImageURL, field_names(chat_types.chat_completion_content_part_image_param.ImageURL)),
    (
        sampling_fields.StreamOptions,
        field_names(chat_types.ChatCompletionStreamOptionsParam, response_create_params.StreamOptions),
    ),
    (sampling_fields.ReasoningConfig, field_names(Reasoning)),
    (
        responses.ResponseInputItem,
        field_names(response_types.EasyInputMessageParam, response_types.ResponseOutputMessageParam),
    ),
    (
        responses.ResponseTextPart,
        field_names(response_types.ResponseInputTextParam, response_types.ResponseOutputTextParam),
    ),
    (responses.ResponseImagePart, field_names(response_types.ResponseInputImageParam)),
    (responses.ResponseTextConfig, field_names(response_types.ResponseTextConfigParam)),
    (responses.ResponseJsonSchemaFormat, field_names(response_types.ResponseFormatTextJSONSchemaConfigParam)),
]


@pytest.mark.parametrize(
    ("kind", "names"), CLASS_AND_OPENAI_FIELDS, ids=lambda value: getattr(value, "__name__", "")
)
def test_every_field_of_the_openai_client_is_known(kind, names):
    """A field that a new version adds must be used, or get a line in `ignored_field_tables.py`."""
    known = {field.alias or name for name, field in kind.model_fields.items()}
    assert names - known - {*kind.ignored_fields} == set()


def test_every_include_option_of_the_openai_client_is_known():
    assert set(typing.get_args(response_types.ResponseIncludable)) == set(
        typing.get_args(responses.IncludeOption)
    )


# The fields of other servers' requests that their documents name.
VLLM_FIELDS = re.findall(
    r"\w+",
    """use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids
    include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens
    truncate_prompt_tokens truncation_side prompt_logprobs logprob_token_ids allowed_token_ids bad_words
    add_special_tokens structured_outputs priority request_id session_id return_tokens_as_token_ids return_token_ids
    repetition_detection thinking_token_budget stream_interval guided_json guided_regex guided_choice guided_grammar
    guided_decoding_backend guided_whitespace_pattern mm_processor_kwargs media_io_kwargs logits_processors""",
)
VLLM_CHAT_FIELDS = re.findall(
    r"\w+",
    """echo add_generation_prompt continue_final_message documents chat_template chat_template_kwargs
    include_reasoning reasoning_effort""",
)
LLAMA_CPP_FIELDS = re.findall(
    r"\w+",
    """n_predict dynatemp_range dynatemp_exponent top_k min_p top_n_sigma xtc_probability xtc_threshold typical_p
    repeat_last_n repeat_penalty dry_multiplier dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers
    mirostat mirostat_tau mirostat_eta n_probs min_keep n_keep n_discard n_cache_reuse cache_prompt id_slot grammar
    json_schema samplers post_sampling_probs return_tokens return_progress timings_per_token t_max_predict_ms lora
    ignore_eos reasoning_format""",
)
SGLANG_FIELDS = ["ebnf", "no_stop_trim", "separate_reasoning", "stream_reasoning", "chat_template_kwargs"]
OLLAMA_FIELDS = ["keep_alive", "options", "think"]
REASONING_SWITCHES = [
    "thinking",
    "thinking_budget",
    "reasoning_budget",
    "enable_reasoning",
    "reasoning_effort",
]
TGI_FIELDS = [
    "adapter_id",
    "do_sample",
    "repetition_penalty",
    "truncate",
    "typical_p",
    "watermark",
    "grammar",
]


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest, ResponseRequest, tasks.TaskRequest])
def test_every_field_of_other_servers_is_known(kind):
    names = {
        *VLLM_FIELDS,
        *LLAMA_CPP_FIELDS,
        *TGI_FIELDS,
        *SGLANG_FIELDS,
        *OLLAMA_FIELDS,
        *REASONING_SWITCHES,
        *(VLLM_CHAT_FIELDS if kind is ChatRequest else ()),
    }
    assert names - {*kind.model_fields} - {*kind.ignored_fields} == set()


def test_used_fields_are_not_ignored_with_any_value():
    """Some values of a used field may be ignored, but not all."""
    assert not [
        (kind, name)
        for kind, name in CLASS_AND_UNUSED_FIELD
        if name in kind.model_fields and kind.ignored_fields[name].ignored_values is None
    ]


def test_forms_may_have_ignored_fields(client):
    files = {"image": ("a.png", b"x"), "tools": (None, "[]"), "seed": (None, "null"), "n": (None, "2")}
    answer = client.post(CAPTION, files=files)
    assert answer.json()["error"]["message"] == "n (2) is not supported: send several requests"


def test_only_short_refused_values_are_shown(client):
    message = client.post(CHAT, chat_request(guided_json={"a": "b" * 50})).json()["error"]["message"]
    assert message.startswith("guided_json is not supported: ")
    assert len(client.post(CHAT, chat_request(**{"x" * 5000: 1})).json()["error"]["message"]) < 300


def test_streams_ignore_the_same_fields(client):
    body = PLAIN_REQUEST_BY_PATH[CHAT] | {
        "tools": [],
        "stream": True,
        "stream_options": {"include_obfuscation": True},
    }
    assert parse_events(client.post(CHAT, body).text)[-1] == "[DONE]"


def test_nested_empty_values_are_not_ignored(client):
    deep = json.loads("[" * 400 + "]" * 400)
    assert "unknown field: foo" in client.post(CHAT, chat_request(foo=deep)).json()["error"]["message"]
    assert request_model.EMPTY_VALUES == (None, [], {})


def test_items_that_are_no_messages_are_refused_by_type(client):
    kinds = {
        typing.get_args(typing.get_type_hints(one)["type"])[0]
        for one in typing.get_args(response_types.ResponseInputItemParam)
        if one.__name__ != "ItemReference"
    } - {"message"}
    assert len(kinds) > 20
    for kind in kinds:
        body = {
            "model": "demo",
            "input": [{"role": "user", "content": "Hi"}, {"type": kind, "id": "a", "call_id": "b"}],
        }
        error = client.post(RESPONSES, body).json()["error"]
        assert error["message"].startswith(f"input[1] ({kind}) is not supported: "), error


def test_classify_ignores_the_same_fields(client):
    body = {"image_url": picture_data_uri("shapes"), "labels": ["a circle", "a dog"]}
    plain = client.post("/v1/images/tasks/classify", body).json()
    more = {"stream": False, "temperature": None, "tools": [], "model": "demo", "calibrated": None}
    again = client.post("/v1/images/tasks/classify", body | more).json()
    assert [row["label"] for row in again["labels"]] == [row["label"] for row in plain["labels"]]
    logprobs = [[row["logprob"] for row in answer["labels"]] for answer in (again, plain)]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)  # the second one finds the prompt in the cache
    refused = client.post("/v1/images/tasks/classify", body | {"stream": True})
    assert refused.json()["error"]["message"].startswith("stream (true) is not supported")


def test_a_text_is_not_searched_for_parts():
    """Iterating over a million characters would block other requests."""

    class Text(str):
        def __iter__(self):
            raise AssertionError("it was walked through")

    check_refusal_role("user", Text("Hello"))
