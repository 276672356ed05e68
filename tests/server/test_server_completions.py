"""`/v1/completions` continues texts, with echo and log-probabilities."""

from pathlib import Path

import pytest

import idefics
from idefics.processing.tokenizer import TextPiece
from idefics.server import logprobs
from idefics.server.app import create_app
from idefics.server.settings import Settings
from server.conftest import SyncClient
from server.request_bodies import parse_events
from shared_engine import cancel_all_requests

PATH = "/v1/completions"
DEMO = Path(idefics.__file__).parent / "demo"
TEXT = "The red circle is"


def completion_request(**more):
    return {"model": "demo", "prompt": TEXT, "max_tokens": 6, **more}


def test_a_text_is_continued(client, vlm):
    body = client.post(PATH, completion_request(prompt=[TEXT])).json()
    expected = vlm.generate([TEXT], max_new_tokens=6)
    (choice,) = body["choices"]
    assert body["object"] == "text_completion"
    assert choice["text"] == " " + expected.text  # as the model wrote it
    assert choice["finish_reason"] == expected.finish
    assert choice["logprobs"] is None
    assert body["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert (
        client.post(PATH, completion_request(echo=True)).json()["choices"][0]["text"]
        == f"{TEXT} {expected.text}"
    )


@pytest.mark.parametrize("more", [{}, {"echo": True}, {"stream": True}, {"stream": True, "echo": True}])
@pytest.mark.parametrize("prompt", [TEXT, TEXT + " ", "Once upon a time,", "The red circle i"])
def test_prompt_and_answer_join_with_the_right_space(client, vlm, prompt, more):
    answer = client.post(PATH, completion_request(prompt=prompt, logprobs=0, **more))
    parts = parse_events(answer.text)[:-1] if "stream" in more else [answer.json()]
    choices = [choice for part in parts for choice in part["choices"]]
    text = "".join(choice["text"] for choice in choices)
    said = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    tokens = [token for one in said for token in one["tokens"]]
    offsets = [offset for one in said for offset in one["text_offset"]]
    generated = vlm.generate([prompt], max_new_tokens=6).tokens
    written = vlm.processor.tokenizer.decode_bytes(generated).decode()
    assert text == (prompt if "echo" in more else "") + written
    assert "".join(tokens) == (text if "echo" in more else written)
    assert tokens
    assert all(text[offset:].startswith(token) for offset, token in zip(offsets, tokens, strict=True))


FOX_REQUEST = {"regex": "🦊é", "max_tokens": 20}


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_token_texts_join_to_the_answer_if_tokens_split_characters(client, more):
    answer = client.post(PATH, completion_request(logprobs=0, **FOX_REQUEST, **more))
    parts = parse_events(answer.text)[:-1] if more else [answer.json()]
    choices = [choice for part in parts for choice in part["choices"]]
    tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
    assert len(tokens) >= 6, "one for each byte"
    assert "".join(tokens) == "".join(choice["text"] for choice in choices) == "🦊é"


@pytest.mark.parametrize("more", [{}, {"echo": True}, {"n": 2, "temperature": 1.2, "seed": 3, "logprobs": 2}])
def test_a_stream_has_the_same_answer(client, more):
    _, whole = (
        client.post(PATH, completion_request(**more)).json() for _ in range(2)
    )  # now it is in the cache
    *chunks, last, done = parse_events(
        client.post(
            PATH, completion_request(stream=True, stream_options={"include_usage": True}, **more)
        ).text
    )
    assert done == "[DONE]"
    assert last["usage"] == whole["usage"]
    for number, choice in enumerate(whole["choices"]):
        mine = [one for chunk in chunks for one in chunk["choices"] if one["index"] == number]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"]:
            said = [one["logprobs"] for one in mine if one["logprobs"]]
            for field in choice["logprobs"]:
                streamed = [value for one in said for value in one[field]]
                for value, wanted in zip(streamed, choice["logprobs"][field], strict=True):
                    # Choices that are read apart round otherwise than those that are read together.
                    assert value == (wanted if isinstance(wanted, str) else pytest.approx(wanted, abs=1e-4))


def test_logprobs_are_those_of_the_model(client, vlm):
    said = client.post(PATH, completion_request(logprobs=3)).json()["choices"][0]["logprobs"]
    expected = vlm.generate([TEXT], max_new_tokens=6, logprobs=True, top_logprobs=3)
    assert said["token_logprobs"] == pytest.approx(expected.logprobs, abs=1e-5)
    assert len(said["tokens"]) == len(expected.tokens) == len(said["text_offset"])
    for token, logprob, top in zip(said["tokens"], said["token_logprobs"], said["top_logprobs"], strict=True):
        assert len(top) == 3
        assert top[token] == pytest.approx(logprob, abs=1e-5), "greedy takes the likeliest"


@pytest.mark.parametrize(
    "prompt",
    ["<image>", "a<end_of_utterance>b", "https://example.com/a.png", "data:image/png;base64,AA", "photo.jpg"],
)
def test_special_tokens_in_prompts_are_plain_text(client, vlm, prompt):
    body = client.post(PATH, completion_request(prompt=prompt)).json()
    tokenizer = vlm.processor.tokenizer
    plain = tokenizer.encode_pieces(
        [TextPiece(vlm.processor.prompt_format.prompt_prefix, trusted=True), TextPiece(prompt, trusted=False)]
    )
    assert body["usage"]["prompt_tokens"] == len(vlm.processor.special_prefix_ids() + plain)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 20, "n": 8}, "are 160 answers; the limit is 128"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt: give a text or a list of texts"),
        ({"prompt": ["a", ""]}, "empty"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"prompt": ""}, "empty"),
        ({"suffix": "a"}, 'suffix ("a") is not supported'),
        ({"best_of": 2}, "best_of (2) is not supported: give n"),
        ({"logprobs": 6}, "logprobs"),
    ],
)
def test_invalid_fields_are_named(client, wrong, words):
    answer = client.post(PATH, completion_request(**wrong))
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


PROMPTS = [TEXT, "Once upon a time,", TEXT]


@pytest.mark.parametrize("more", [{}, {"echo": True, "logprobs": 1}, {"n": 2, "temperature": 1.2, "seed": 3}])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_several_prompts_have_the_answers_of_each_alone(client, more, is_streamed):
    alone = [client.post(PATH, completion_request(prompt=prompt, **more)).json() for prompt in PROMPTS]
    wanted = [choice for body in alone for choice in body["choices"]]
    how = {"stream": True, "stream_options": {"include_usage": True}} if is_streamed else {}
    answer = client.post(PATH, completion_request(prompt=PROMPTS, **more, **how))
    if is_streamed:
        *chunks, last, done = parse_events(answer.text)
        assert done == "[DONE]"
        parts = [choice for chunk in chunks for choice in chunk["choices"]]
        usage = last["usage"]
    else:
        parts, usage = answer.json()["choices"], answer.json()["usage"]
    for index, choice in enumerate(wanted):
        own = [part for part in parts if part["index"] == index]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        for name in choice["logprobs"] or ():
            found = [value for part in own for value in (part["logprobs"] or {name: []})[name]]
            if name in ("tokens", "text_offset"):
                assert found == choice["logprobs"][name]
            elif name == "token_logprobs":
                assert found[1:] == pytest.approx(choice["logprobs"][name][1:], abs=1e-4)
    assert {part["index"] for part in parts} == set(range(len(wanted)))
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert {name: usage[name] for name in names} == {
        name: sum(one["usage"][name] for one in alone) for name in names
    }


@pytest.mark.parametrize("piece", [512, 2])
@pytest.mark.parametrize("folder", ["idefics3", "idefics1"])
def test_echo_has_the_logprobs_of_the_prompt(folder, piece, monkeypatch):
    """Compared with one uncached pass. Idefics 1 has a token before every text, so the first token is scored too."""
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", piece)
    vlm = idefics.load(DEMO / folder, remote_images="off")
    client = SyncClient(create_app(vlm, Settings(model="demo")))
    body = client.post(PATH, completion_request(max_tokens=0, echo=True, logprobs=3)).json()
    (choice,) = body["choices"]
    prompt = vlm.prompt([TEXT])
    opening = vlm.processor.num_raw_prompt_prefix_tokens
    assert opening == (folder == "idefics1")
    said = choice["logprobs"]
    assert (choice["text"], choice["finish_reason"]) == (TEXT, "length")
    assert "".join(said["tokens"]) == TEXT
    assert [
        TEXT[offset:].startswith(token)
        for offset, token in zip(said["text_offset"], said["tokens"], strict=True)
    ]
    wanted = vlm.logits(prompt).log_softmax(-1)
    rows = [wanted[place - 1] if place else None for place in range(opening, len(prompt))]
    assert len(rows) == len(said["tokens"]) == len(said["top_logprobs"])
    for row, id, token, logprob, top in zip(
        rows, prompt.ids[opening:], said["tokens"], said["token_logprobs"], said["top_logprobs"], strict=True
    ):
        if row is None:
            assert (logprob, top) == (None, None)
        else:
            assert logprob == pytest.approx(row[id].item(), abs=1e-4)
            assert sorted(top.values(), reverse=True) == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
            assert token not in top or top[token] == logprob
    usage = {"prompt_tokens": len(prompt), "completion_tokens": 0, "total_tokens": len(prompt)}
    assert usage.items() <= body["usage"].items()
    cancel_all_requests(vlm.engine)


def test_max_tokens_0_generates_nothing(client, vlm):
    plain = client.post(PATH, completion_request(max_tokens=0)).json()
    assert plain["choices"] == [{"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}]
    body = client.post(PATH, completion_request(prompt=["A b", TEXT], max_tokens=0, echo=True, n=2)).json()
    assert [choice["text"] for choice in body["choices"]] == ["A b", "A b", TEXT, TEXT]
    *chunks, last, done = parse_events(
        client.post(PATH, completion_request(max_tokens=0, echo=True, logprobs=0, stream=True)).text
    )
    assert [choice["text"] for chunk in [*chunks, last] for choice in chunk["choices"]] == [TEXT, ""]
    assert chunks[0]["choices"][0]["logprobs"]["token_logprobs"][0] is None
    assert (last["choices"][0]["finish_reason"], done) == ("length", "[DONE]")


def test_echoed_prompt_and_answer_have_logprobs(client):
    whole = client.post(PATH, completion_request(echo=True, logprobs=2)).json()["choices"][0]
    prompt = client.post(PATH, completion_request(echo=True, logprobs=2, max_tokens=0)).json()["choices"][0]
    answer = client.post(PATH, completion_request(logprobs=2)).json()["choices"][0]
    assert whole["text"] == prompt["text"] + answer["text"]
    count = len(prompt["logprobs"]["tokens"])
    for name, values in whole["logprobs"].items():
        assert len(values) == count + len(answer["logprobs"][name])
    assert whole["logprobs"]["tokens"] == prompt["logprobs"]["tokens"] + answer["logprobs"]["tokens"]
    assert whole["logprobs"]["text_offset"][count] == len(TEXT)


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_a_scored_prompt_counts_once_in_the_metrics(client, vlm, max_tokens, monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", 1)
    prompts = client.app.state.service.metrics.prompt_tokens._value
    before = prompts.get()
    assert (
        client.post(PATH, completion_request(max_tokens=max_tokens, echo=True, logprobs=1)).status_code == 200
    )
    assert prompts.get() - before == len(vlm.prompt([TEXT]))
