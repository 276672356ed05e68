"""The commands that answer about pictures: what is asked of the model, and what is printed."""

import json
from pathlib import Path

import pytest
from cli_fakes import FakeIdefics

from idefics.cli.main import run

pytestmark = pytest.mark.usefixtures("photos")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["caption", "a.png"], "caption a"),
        (["complete", "a.png", "This is an image of "], "complete a This is an image of"),
        (["ask", "a.png", "What is it?"], "ask a What is it?"),
        (["ask", "a.png", "--prompt", "b.png"], "ask a b.png"),
        (["ask", "--prompt", "What?", "a.png"], "ask a What?"),
        (["write", "a.png"], "write a Use the image to write a story."),
        (["write", "a.png", "A poem."], "write a A poem."),
        (["classify", "a.png", "--labels", "cat, dog"], "cat"),
        (["classify", "a.png", "--label", "red, round", "--label", "dog"], "red, round"),
        (["classify", "a.png", "--labels", "cat,dog", "--label", "owl"], "cat"),
    ],
)
def test_one_picture_prints_its_answer_alone(idefics, argv, said):
    done = idefics(*argv)
    assert (done.code, done.out, done.err) == (0, f"{said}\n", "")
    assert done.loads[0].model == "smolvlm-500m"


def test_line_breaks_of_a_single_answer_are_kept_and_of_several_are_not(idefics):
    vlm = FakeIdefics("Once.\n\nThe end.")
    assert idefics("write", "a.png", vlm=vlm).out == "Once.\n\nThe end.\n"
    assert idefics("write", "a.png", "b.png", vlm=vlm).out == "a.png: Once. The end.\nb.png: Once. The end.\n"


@pytest.mark.parametrize(
    ("named", "printed"),
    [
        (["b.png", "a.png"], ["b.png", "a.png"]),
        (["folder"], ["folder/x.png", "folder/y.png"]),
        (["folder/"], ["folder/x.png", "folder/y.png"]),
        (["[a].png"], ["a.png"]),
        (["[ab].png", "folder/x.png"], ["a.png", "b.png", "folder/x.png"]),
    ],
)
def test_several_a_folder_or_a_pattern_print_names(idefics, named, printed):
    done = idefics("caption", *named)
    assert done.out.splitlines() == [f"{name}: caption {Path(name).stem}" for name in printed]
    assert done.code == 0


def test_pictures_are_answered_together_but_the_first_alone(idefics, photos):
    for number in range(20):
        (photos / f"many{number:02}.png").write_bytes((photos / "a.png").read_bytes())
    done = idefics("caption", "many*.png")
    assert [len(call.image) for call in done.vlm.calls] == [1, 2, 4, 8, 5]
    assert [line.partition(":")[0] for line in done.out.splitlines()] == [
        f"many{number:02}.png" for number in range(20)
    ]
    assert len(done.loads) == 1


def test_what_cannot_be_read_is_refused_and_the_rest_answered(idefics):
    done = idefics("caption", "a.png", "no.png", "notes.txt", "broken.png", "b.png")
    assert done.code == 2
    assert done.out == "a.png: caption a\nb.png: caption b\n"
    assert [line.split()[:3] for line in done.refusals] == [
        ["idefics", "caption:", "no.png:"],
        ["idefics", "caption:", "notes.txt"],
        ["idefics", "caption:", "broken.png"],
    ]


def test_a_picture_that_is_too_much_for_the_model_spoils_no_other(idefics):
    done = idefics("caption", "a.png", "b.png", "large.png", "c.png")
    assert done.code == 2
    assert done.out.splitlines() == [f"{name}.png: caption {name}" for name in "abc"]
    [refusal] = done.refusals
    assert refusal.startswith("idefics caption: large.png: the prompt has 9000 tokens")


def test_no_model_is_loaded_for_nothing(idefics):
    done = idefics("caption", "notes.txt", "no.png")
    assert done.code == 2
    assert not done.loads


def test_json_is_one_object_a_picture(idefics):
    done = idefics("ask", "a.png", "no.png", "b.png", "What?", "--json")
    assert done.code == 2
    first, second = map(json.loads, done.out.splitlines())
    assert (first["image"], second["image"]) == ("a.png", "b.png")
    assert first == {
        "image": "a.png",
        "text": "ask a What?",
        "finish": "stop",
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "pictures": 1, "cached_tokens": 0},
        "timings": {"prepare": 0.1, "first_token": 0.2, "total": 0.3},
    }


def test_json_of_a_ranking_has_every_label(idefics):
    [line] = idefics("classify", "a.png", "--labels", "cat,dog", "--json").out.splitlines()
    row = json.loads(line)
    assert row["image"] == "a.png"
    assert row["best"] == "cat"
    assert [label["label"] for label in row["labels"]] == ["cat", "dog"]
    assert sum(label["probability"] for label in row["labels"]) == pytest.approx(1)
    assert row["labels"][1]["logprob"] == -1


def test_json_holds_any_character(idefics):
    vlm = FakeIdefics('A "puppy"\n\x1b[31m — 🐶')
    [line] = idefics("caption", "a.png", "--json", vlm=vlm).out.splitlines()
    assert json.loads(line)["text"] == vlm.text


def test_a_name_cannot_forge_a_line(idefics, photos):
    (photos / "evil\nb.png: a cat\x1b.png").write_bytes((photos / "a.png").read_bytes())
    done = idefics("caption", "evil*", "no\nno.png")
    assert done.out == "evil b.png: a cat.png: caption evil b.png: a cat\n"
    assert done.refusals == ["idefics caption: no no.png: no such file"]


def test_standard_input_is_called_by_its_dash(idefics, standard_input, photos):
    data = (photos / "a.png").read_bytes()
    standard_input(data)
    assert idefics("caption", "-").out == f"caption <{len(data)} bytes>\n"
    standard_input(data)
    assert json.loads(idefics("caption", "-", "--json").out)["image"] == "-"


def test_flags_reach_the_call(idefics):
    done = idefics(
        *("ask", "a.png", "What?", "--max-new-tokens", 9, "--temperature", 0.5, "--top-k", 3, "--top-p", 0.9),
        *("--min-p", 0.1, "--repetition-penalty", 1.2, "--seed", 7, "--stop", "A", "--stop", "B"),
    )
    assert done.vlm.calls[0].options == {
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "seed": 7,
        "stop": ["A", "B"],
    }
    assert idefics("ask", "a.png", "What?", "--num-beams", 4).vlm.calls[0].options == {"num_beams": 4}
    assert idefics("ask", "a.png", "What?").vlm.calls[0].options == {}


def test_forms_and_penalties_reach_the_call(idefics, photos):
    def options(*flags):
        return idefics("ask", "a.png", "What?", *flags).vlm.calls[0].options

    assert options(
        "--presence-penalty", 0.5, "--frequency-penalty", -1, "--banned", "a", "--banned", "b"
    ) == {
        "presence_penalty": 0.5,
        "frequency_penalty": -1.0,
        "banned": ["a", "b"],
    }
    assert options("--regex", "[a,b]+") == {"regex": "[a,b]+"}
    assert options("--choices", "day, night", "--choice", "dusk, dawn") == {
        "choices": ["day", "night", "dusk, dawn"]
    }
    assert options("--choice", "x") == {"choices": ["x"]}
    (photos / "schema.json").write_text('{"type": "object"}')
    assert options("--schema", "schema.json") == {"schema": {"type": "object"}}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--presence-penalty", "3"], "--presence-penalty is 3.0; give a number from -2.0 to 2.0"),
        (["--frequency-penalty", "x"], "--frequency-penalty is 'x': give a number"),
        (["--schema", "none.json"], "--schema none.json: no such file"),
        (["--schema", "a.png"], "--schema a.png is not text in UTF-8"),
        (["--schema", "list.json"], "schema is [1]; give a JSON schema as a dict"),
        (
            ["--regex", "a", "--choice", "b"],
            "an answer has one form, not 2: give one of regex, choices, schema",
        ),
        (["--choices", "a,,b"], "give a list of texts"),
    ],
)
def test_forms_that_are_none_are_refused_before_a_model_is_loaded(idefics, photos, flags, message):
    (photos / "list.json").write_text("[1]")
    done = idefics("ask", "a.png", "What?", *flags)
    assert done.code == 2
    assert message in done.refusals[0]
    assert not done.loads


def test_flags_reach_the_model(idefics, monkeypatch):
    [flags] = idefics(
        *("caption", "a.png", "--model", "x", "--revision", "v1", "--device", "cpu", "--dtype", "bfloat16"),
        *("--offline", "--remote-images", "off"),
    ).loads
    assert (flags.model, flags.revision, flags.device, flags.dtype) == ("x", "v1", "cpu", "bfloat16")
    assert (flags.offline, flags.remote_images) == (True, "off")
    monkeypatch.setenv("IDEFICS_MODEL", "y")
    monkeypatch.setenv("IDEFICS_REMOTE_IMAGES", "public")
    [flags] = idefics("caption", "a.png").loads
    assert (flags.model, flags.remote_images) == ("y", "public")
    assert idefics("caption", "a.png", "--model", "x").loads[0].model == "x"


def test_ranking_flags_reach_the_call(idefics):
    done = idefics("classify", "a.png", "--labels", "cat,dog", "--calibrated", "--length-normalized")
    assert done.vlm.calls[0].words == ["cat", "dog"]
    assert done.vlm.calls[0].options == {"calibrated": True, "length_normalized": True}


WORDED = [["caption", "a.png"], ["ask", "a.png", "What?"], ["classify", "a.png", "--labels", "x,y"]]


@pytest.mark.parametrize("argv", [*WORDED, ["generate", "a.png", "What?"]])
def test_how_closely_pictures_are_looked_at(idefics, argv):
    options = idefics(*argv, "--detail", "auto", "--max-tiles", "5").vlm.calls[0].options
    assert (options["detail"], options["max_tiles"]) == ("auto", 5)
    assert not {"detail", "max_tiles"} & idefics(*argv).vlm.calls[0].options.keys()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (("--detail", "best"), "--detail is 'best': give low, high or auto"),
        (("--max-tiles", "0"), "--max-tiles is 0; give a whole number from 1"),
        (("--max-tiles", "few"), "--max-tiles is 'few': give a whole number"),
    ],
)
@pytest.mark.parametrize("argv", WORDED)
def test_what_is_no_look_is_refused(idefics, argv, flag, message):
    done = idefics(*argv, *flag)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


@pytest.mark.parametrize("argv", WORDED)
def test_shots_are_a_file(idefics, photos, argv):
    (photos / "shots.jsonl").write_text('{"image": "b.png", "answer": "A puppy."}\n')
    [shot] = idefics(*argv, "--shots", "shots.jsonl").vlm.shots
    assert (shot.picture.source, shot.answer) == (Path("b.png"), "A puppy.")


def test_a_refused_policy_fetches_nothing(idefics):
    done = idefics("caption", "https://example.com/a.png", "--remote-images", "off")
    assert done.code == 2
    assert "may not be fetched" in done.err
    assert not done.loads


def test_labels_come_from_a_file_too(idefics, photos):
    (photos / "labels.txt").write_text("\ufeffsnow leopard, ounce\n\n  kitten \n", encoding="utf-8")
    done = idefics("classify", "a.png", "--labels-file", "labels.txt", "--label", "puppy")
    assert (done.code, done.err) == (0, "")
    assert done.vlm.calls[0].words == ["puppy", "snow leopard, ounce", "kitten"]


@pytest.mark.parametrize(
    "argv", [["caption", "a.png"], ["generate", "a.png", "This is"], ["chat", "a.png", "What?"]]
)
def test_log_probabilities_of_tokens_are_in_the_json(capsys, photos, demo, standard_input, argv):
    standard_input(b"")
    code = run([*argv, "--json", "--top-logprobs", "2", "--max-new-tokens", "4"], lambda flags, screen: demo)
    row = json.loads(capsys.readouterr().out)
    assert code == 0
    assert len(row["tokens"]) == row["usage"]["completion_tokens"] > 0
    assert "".join(token["text"] for token in row["tokens"]).strip() == row["text"].strip()
    for token in row["tokens"]:
        assert token["logprob"] <= 0
        assert [token["id"], token["logprob"]] == [token["top"][0]["id"], token["top"][0]["logprob"]]
        assert len(token["top"]) == 2


def test_without_top_logprobs_tokens_have_their_own_alone(capsys, photos, demo):
    assert run(["caption", "a.png", "--json", "--logprobs"], lambda flags, screen: demo) == 0
    assert set(json.loads(capsys.readouterr().out)["tokens"][0]) == {"id", "text", "logprob"}


def test_rows_without_logprobs_have_no_tokens(idefics):
    done = idefics("caption", "a.png", "--json")
    assert "tokens" not in json.loads(done.out)


def test_files_that_flags_name_may_be_standard_input(idefics, standard_input, photos):
    standard_input("\ufeffsnow leopard\n\nkit\u2028ten\n".encode())
    done = idefics("classify", "a.png", "--labels-file", "-", "--label", "puppy")
    assert (done.code, done.err) == (0, "")
    assert done.vlm.calls[0].words == ["puppy", "snow leopard", "kit\u2028ten"]
    standard_input('\ufeff{"image": "b.png", "answer": "One\u2028two."}\n'.encode())
    done = idefics("caption", "a.png", "--shots", "-")
    assert (done.code, done.err) == (0, "")
    [shot] = done.vlm.shots
    assert (str(shot.picture.source), shot.answer) == ("b.png", "One\u2028two.")
    standard_input(b'\xef\xbb\xbf{"type": "integer"}')
    done = idefics("ask", "a.png", "How many?", "--schema", "-")
    assert (done.code, done.vlm.calls[0].options["schema"]) == (0, {"type": "integer"})


@pytest.mark.parametrize("flag", ["--labels-file", "--shots"])
def test_what_is_wrong_with_standard_input_as_a_file(idefics, standard_input, photos, flag):
    command = ["classify", "a.png", "--label", "puppy", "--label", "door", flag, "-"]
    standard_input(b"\n")
    assert idefics(*command).err.startswith(f"idefics classify: {flag} -: standard input is empty: send one ")
    standard_input(b"Caf\xe9")
    assert idefics(*command).err.startswith(f"idefics classify: {flag} - is not text in UTF-8: give one ")


def test_turns_and_a_schema_cannot_both_be_standard_input(idefics, standard_input, photos):
    standard_input(b"{}")
    done = idefics("chat", "a.png", "--schema", "-")
    assert (done.code, done.err) == (
        2,
        "idefics chat: --schema - cannot be used here: the lines of standard input are the turns\n",
    )
