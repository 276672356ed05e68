"""Prompts of suites: the authors' texts, filled in by hand here, and this package's own."""

import pytest
from eval_rows import evaluation_row

from idefics.batch.sources.settings import file_media
from idefics.errors import BadPrompt, BadSetting
from idefics.evaluate.prompt_style import choose_style
from idefics.evaluate.prompts import SuitePrompts, picture_place
from idefics.evaluate.request import EvaluationRequest, PictureRef
from idefics.evaluate.shots import PictureContents
from idefics.evaluate.suite import Suite

VQA = Suite(
    name="v", help="", answer="text", metric="vqa", layout="table", prompts="vqav2", has_questions=True
)
MEMES = Suite(
    name="m",
    help="",
    answer="rank",
    metric="roc-auc",
    layout="table",
    prompts="hateful-memes",
    labels=("no", "yes"),
)
REVIEWS = Suite(
    name="r", help="", answer="rank", metric="accuracy", layout="table", prompts="rendered-sst2",
    labels=("negative", "positive"),
)  # fmt: skip
SCIENCE = Suite(
    name="s", help="", answer="rank", metric="accuracy", layout="table", prompts="scienceqa",
    excluded_fields=("solution",),
)  # fmt: skip
CAPTIONS = Suite(name="c", help="", answer="caption", metric="cider", layout="table", prompts="coco")
OWN = Suite(name="o", help="", answer="text", metric="vqa", layout="table", has_questions=True)


class FixedShots:
    def __init__(self, *shots):
        self.support_by_name = {one.name: one for one in shots}

    def select(self, row):
        return list(self.support_by_name.values())


def prompts(suite, kind="base", family="idefics1", choice="auto", shots=()):
    selector = FixedShots(*shots) if shots else None
    style = choose_style(suite, family=family, kind=kind, choice=choice, has_shots=bool(shots))
    return SuitePrompts(suite, style, style, kind, selector, 0, PictureContents())


def text_of(request):
    return request.describe()


QUERY = evaluation_row("q", fields={"question": "How many?"})
SHOT = evaluation_row(
    "s1", "puppy.png", fields={"question": "What is it?"}, references=("dog", "puppy", "puppy")
)


def test_open_questions_for_a_base_checkpoint():
    request = prompts(VQA, shots=[SHOT]).make_request(QUERY)
    assert text_of(request) == (
        "Instruction: provide an answer to the question. Use the image to answer.\n"
        "Image:<image>Question: What is it? Answer: puppy\n"  # the most frequent answer
        "Image:<image>Question: How many? Answer:"
    )
    assert request.turns[0][1][1] == PictureRef("s1")
    assert request.begins_with_bos
    assert request.labels == ()


def test_open_questions_for_a_chat_checkpoint():
    request = prompts(VQA, kind="chat", family="idefics3").make_request(QUERY)
    assert (
        text_of(request) == "User:<image>How many?\nGive a very brief answer.<end_of_utterance>\nAssistant:"
    )


def test_the_first_family_has_no_instruct_prompt_for_questions():
    request = prompts(VQA, kind="chat", family="idefics1").make_request(QUERY)
    assert text_of(request).startswith("Instruction: provide an answer")
    with pytest.raises(
        BadSetting, match="prompts is 'instruct'; for v and this checkpoint there are: base, chat"
    ):
        prompts(VQA, kind="chat", family="idefics1", choice="instruct")


def test_labels_are_scored_with_what_follows_them():
    request = prompts(REVIEWS).make_request(evaluation_row("q"))
    assert text_of(request).splitlines()[:2] == [
        "Instruction: A movie review is written on an image. Say if it is positive or negative.",
        "Image:<image>Sentiment:",
    ]
    assert request.labels == ("negative", "positive")
    assert request.continuations == (" negative.", " positive.")


def test_memes_begin_without_a_token_of_the_document():
    row = evaluation_row("q", fields={"text": 'say "hi" {class_name}'})
    request = prompts(MEMES).make_request(row)
    assert not request.begins_with_bos
    assert 'an image with written "say "hi" {class_name}" on it. Is it hateful? Answer:' in text_of(request)
    assert request.continuations == (" no", " yes")
    instruct = prompts(MEMES, kind="chat").make_request(row)
    assert instruct.continuations == (" no.<end_of_utterance>", " yes.<end_of_utterance>")


def test_the_solution_is_in_shots_only():
    shot = evaluation_row("s1", fields={"context": "C1 ", "solution": "Because."}, references=("sun",))
    row = evaluation_row("q", fields={"context": "C2 ", "solution": "Secret."}, labels=("sun", "moon"))
    request = prompts(SCIENCE, shots=[shot]).make_request(row)
    assert request.describe().startswith(
        "<image>C1 Answer: The best answer is sun. Because.<image>C2 Answer: The best answer is\nlabels:"
    )
    assert request.continuations == (" sun.", " moon.")


def test_a_caption_of_a_shot_is_drawn_and_stays_the_same():
    shot = evaluation_row("s1", references=tuple(f"caption {number}" for number in range(50)))
    texts = {text_of(prompts(CAPTIONS, shots=[shot]).make_request(evaluation_row("q"))) for _ in range(3)}
    assert len(texts) == 1
    others = {
        text_of(prompts(CAPTIONS, shots=[shot]).make_request(evaluation_row(f"q{n}"))) for n in range(20)
    }
    assert len(others) > 5
    assert texts.pop().startswith("Image:<image>Caption: caption ")


def test_own_prompts_in_a_chat_and_for_documents():
    chat = prompts(OWN, kind="chat", family="idefics3", shots=[SHOT]).make_request(QUERY)
    assert chat.turns == (
        ("user", (PictureRef("s1"), "What is it?")),
        ("assistant", ("puppy",)),
        ("user", (PictureRef(""), "How many?")),
    )
    base = prompts(OWN).make_request(QUERY)
    assert text_of(base) == (
        "Instruction: Provide an answer to the question. Use the image to answer.\n<image>Question: How many? Answer:"
    )


def test_a_request_is_the_same_after_its_text():
    for one in (prompts(VQA, shots=[SHOT]), prompts(OWN, kind="chat", family="idefics3"), prompts(REVIEWS)):
        request = one.make_request(QUERY)
        for labels in ((), one.suite.labels):
            assert EvaluationRequest.from_text(request.to_text(labels), labels) == request
    assert "positive" in request.to_text(())
    assert "positive" not in request.to_text(REVIEWS.labels).partition("Sentiment")[2]


def test_further_pictures_are_those_of_shots_and_of_the_row():
    second = SHOT.media
    row = evaluation_row(
        "q", fields={"question": f"{picture_place(0)} or {picture_place(1)}?"}, more_media=(second,)
    )
    shot = evaluation_row("s1", "door.png", fields={"question": "What?"})
    one = prompts(OWN, kind="chat", family="idefics3", shots=[shot])
    text = one.render(row, None)
    media = one.further_media(row, text)
    assert [one.path.rpartition("/")[2] for one in media] == ["door.png", "puppy.png"]
    assert EvaluationRequest.from_text(text, ()).turns[-1][1] == (
        PictureRef(""),
        " or ",
        PictureRef("q#picture1"),
        "?",
    )


def test_a_request_changes_with_the_content_of_a_further_picture(tmp_path):
    path = tmp_path / "s.png"
    texts = set()
    for data in (b"one", b"two"):
        path.write_bytes(data)
        shot = evaluation_row("s1", media=file_media(path, "s.png"), fields={"question": "What?"})
        row = evaluation_row("q", fields={"question": f"Is it {picture_place(1)}?"}, more_media=(shot.media,))
        texts.add(prompts(OWN, kind="chat", family="idefics3", shots=[shot]).render(QUERY, None))
        texts.add(prompts(OWN, kind="chat", family="idefics3").render(row, None))
    assert len(texts) == 4


def test_a_missing_field_names_the_row():
    with pytest.raises(BadPrompt, match="q has no question, which the prompt needs"):
        prompts(VQA).render(evaluation_row("q"), None)


def test_a_base_checkpoint_has_no_chat_prompts():
    with pytest.raises(BadSetting, match="no chat template"):
        prompts(VQA, choice="chat")
