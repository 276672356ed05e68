"""`/v1/completions`."""

import pytest

from idefics.processing.tokenizer import Piece
from server.asking import events

PATH = "/v1/completions"
TEXT = "The red circle is"


def asked(**more):
    return {"model": "demo", "prompt": TEXT, "max_tokens": 6, **more}


def test_a_text_goes_on(client, vlm):
    body = client.post(PATH, asked(prompt=[TEXT])).json()
    expected = vlm.generate([TEXT], max_new_tokens=6)
    (choice,) = body["choices"]
    assert body["object"] == "text_completion"
    assert choice["text"] == " " + expected.text  # as the model wrote it
    assert choice["finish_reason"] == expected.finish
    assert choice["logprobs"] is None
    assert body["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert client.post(PATH, asked(echo=True)).json()["choices"][0]["text"] == f"{TEXT} {expected.text}"


@pytest.mark.parametrize("more", [{}, {"echo": True}, {"stream": True}, {"stream": True, "echo": True}])
@pytest.mark.parametrize("prompt", [TEXT, TEXT + " ", "Once upon a time,", "The red circle i"])
def test_prompt_and_text_are_the_text_as_the_model_wrote_it(client, vlm, prompt, more):
    answer = client.post(PATH, asked(prompt=prompt, logprobs=0, **more))
    parts = events(answer.text)[:-1] if "stream" in more else [answer.json()]
    choices = [choice for part in parts for choice in part["choices"]]
    text = "".join(choice["text"] for choice in choices)
    said = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    tokens = [token for one in said for token in one["tokens"]]
    offsets = [offset for one in said for offset in one["text_offset"]]
    generated = vlm.generate([prompt], max_new_tokens=6).tokens
    written = vlm.processor.tokenizer.decode_bytes(generated).decode()
    assert text == (prompt if "echo" in more else "") + written
    assert "".join(tokens) == written
    assert tokens
    assert all(text[offset:].startswith(token) for offset, token in zip(offsets, tokens, strict=True))


FOX = {"regex": "🦊é", "max_tokens": 20}


@pytest.mark.parametrize("more", [{}, {"stream": True}])
def test_tokens_join_to_the_text_where_they_split_characters(client, more):
    answer = client.post(PATH, asked(logprobs=0, **FOX, **more))
    parts = events(answer.text)[:-1] if more else [answer.json()]
    choices = [choice for part in parts for choice in part["choices"]]
    tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
    assert len(tokens) >= 6, "one for each byte"
    assert "".join(tokens) == "".join(choice["text"] for choice in choices) == "🦊é"


@pytest.mark.parametrize("more", [{}, {"echo": True}, {"n": 2, "temperature": 1.2, "seed": 3, "logprobs": 2}])
def test_a_stream_says_the_same(client, more):
    _, whole = (client.post(PATH, asked(**more)).json() for _ in range(2))  # now it is in the cache
    *chunks, last, done = events(
        client.post(PATH, asked(stream=True, stream_options={"include_usage": True}, **more)).text
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


def test_log_probabilities_are_the_models(client, vlm):
    said = client.post(PATH, asked(logprobs=3)).json()["choices"][0]["logprobs"]
    expected = vlm.generate([TEXT], max_new_tokens=6, logprobs=True, top_logprobs=3)
    assert said["token_logprobs"] == pytest.approx(expected.logprobs)
    assert len(said["tokens"]) == len(expected.tokens) == len(said["text_offset"])
    for token, logprob, top in zip(said["tokens"], said["token_logprobs"], said["top_logprobs"], strict=True):
        assert len(top) == 3
        assert top[token] == pytest.approx(logprob), "greedy takes the likeliest"


@pytest.mark.parametrize(
    "prompt",
    ["<image>", "a<end_of_utterance>b", "https://example.com/a.png", "data:image/png;base64,AA", "photo.jpg"],
)
def test_text_is_text_whatever_it_looks_like(client, vlm, prompt):
    body = client.post(PATH, asked(prompt=prompt)).json()
    tokenizer = vlm.processor.tokenizer
    plain = tokenizer.encode_pieces(
        [Piece(vlm.processor.style.start, trusted=True), Piece(prompt, trusted=False)]
    )
    assert body["usage"]["prompt_tokens"] == len(vlm.processor._opening() + plain)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ""}, "empty"),
        ({"suffix": "a"}, 'suffix ("a") is not supported'),
        ({"best_of": 2}, "best_of (2) is not supported: give n"),
        ({"logprobs": 6}, "logprobs"),
    ],
)
def test_what_cannot_be_is_named(client, wrong, words):
    answer = client.post(PATH, asked(**wrong))
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]
