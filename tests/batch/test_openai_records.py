"""What a report shows of the requests of OpenAI's batch files."""

import pytest

from idefics.batch.openai_records import find_picture, prompt_text

PICTURE, OTHER = "data:image/png;base64,AAAA", "data:image/jpeg;base64,BBBB"


def chat(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}], "model": "demo"}


@pytest.mark.parametrize(
    ("body", "picture"),
    [
        ({"image_url": PICTURE, "shots": [{"image_url": OTHER, "answer": "a"}]}, PICTURE),
        ({"shots": [{"image_url": OTHER, "answer": "a"}], "image_url": PICTURE}, PICTURE),
        (
            chat(
                {"type": "image_url", "image_url": {"url": OTHER}},
                {"type": "image_url", "image_url": PICTURE},
            ),
            PICTURE,
        ),
        ({"input": [{"content": [{"type": "input_image", "image_url": PICTURE}]}]}, PICTURE),
        ({"image_url": "https://example.com/a.png"}, None),
        (chat({"type": "text", "text": "a"}), None),
        (5, None),
    ],
)
def test_the_picture_is_the_one_asked_about(body, picture):
    assert find_picture(body) == picture


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"words": "What?"}, "What?"),
        ({"prompt": "A"}, "A"),
        ({"input": "Hi"}, "Hi"),
        (chat({"type": "image_url"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}), "a b"),
        ({"messages": [{"content": "first"}, {"content": "last"}]}, "last"),
        ({"input": [{"content": [{"text": "x"}]}]}, "x"),
        ({"prompt": ["a", "b"]}, ""),
        ({"messages": []}, ""),
        ({"messages": 3}, ""),
        ({"messages": [{"content": [{"text": 5}, 7]}]}, ""),
        ([], ""),
    ],
)
def test_the_prompt_is_the_text_of_the_last_message(body, text):
    assert prompt_text(body) == text
