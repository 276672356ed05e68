"""The commands of the tasks: the calls of the model, and the output."""

import json
from pathlib import Path

import pytest
from cli_fakes import FakeIdefics, FakeTerminal, run_command

from idefics.cli import main
from idefics.cli.main import run
from idefics.cli.tasks import make_task_command
from idefics.tasks.task import Task

pytestmark = pytest.mark.usefixtures("photo_folder")


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
def test_one_picture_prints_its_answer_alone(run_idefics, argv, said):
    done = run_idefics(*argv)
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{said}\n", "")
    assert done.load_flags[0].model == "smolvlm-500m"


@pytest.mark.parametrize(("words_name", "argv"), [("", []), ("style", ["In prose."])])
def test_the_record_of_a_task_gives_its_command(monkeypatch, capsys, words_name, argv):
    task = Task(
        name="tag",
        help="List what is in a picture.",
        examples=(),
        words_name=words_name,
        chat_prompt="Tag it.",
    )
    commands = (*main.COMMANDS, make_task_command(task))
    monkeypatch.setattr(main, "COMMANDS", commands)
    main._root_command.cache_clear()
    try:
        done = run_command(capsys, ["tag", "a.png", *argv])
        assert (done.exit_code, done.stdout) == (0, " ".join(["tag a", *argv]) + "\n")
        assert run(["tag", "--help"]) == 0
        help_text = capsys.readouterr().out
        assert ("--prompt" in help_text) == bool(words_name)
        assert help_text.startswith(f"Usage: idefics tag PICTURE...{' STYLE' if words_name else ''} [FLAGS]")
    finally:
        main._root_command.cache_clear()


def test_line_breaks_of_a_single_answer_are_kept_and_of_several_are_not(run_idefics):
    vlm = FakeIdefics("Once.\n\nThe end.")
    assert run_idefics("write", "a.png", vlm=vlm).stdout == "Once.\n\nThe end.\n"
    assert (
        run_idefics("write", "a.png", "b.png", vlm=vlm).stdout
        == "a.png: Once. The end.\nb.png: Once. The end.\n"
    )


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
def test_several_a_folder_or_a_pattern_print_names(run_idefics, named, printed):
    done = run_idefics("caption", *named)
    assert done.stdout.splitlines() == [f"{name}: caption {Path(name).stem}" for name in printed]
    assert done.exit_code == 0


def test_pictures_are_answered_together_but_the_first_alone(run_idefics, photo_folder):
    for number in range(20):
        (photo_folder / f"many{number:02}.png").write_bytes((photo_folder / "a.png").read_bytes())
    done = run_idefics("caption", "many*.png")
    assert [len(call.image) for call in done.vlm.calls] == [1, 2, 4, 8, 5]
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        f"many{number:02}.png" for number in range(20)
    ]
    assert len(done.load_flags) == 1


def test_unreadable_pictures_are_reported_and_the_others_answered(run_idefics):
    done = run_idefics("caption", "a.png", "no.png", "notes.txt", "broken.png", "b.png")
    assert done.exit_code == 2
    assert done.stdout == "a.png: caption a\nb.png: caption b\n"
    assert [line.split()[:3] for line in done.error_lines] == [
        ["idefics", "caption:", "no.png:"],
        ["idefics", "caption:", "notes.txt"],
        ["idefics", "caption:", "broken.png"],
    ]


def test_a_picture_that_the_model_refuses_stops_no_other(run_idefics):
    done = run_idefics("caption", "a.png", "b.png", "large.png", "c.png")
    assert done.exit_code == 2
    assert done.stdout.splitlines() == [f"{name}.png: caption {name}" for name in "abc"]
    [refusal] = done.error_lines
    assert refusal.startswith("idefics caption: large.png: the prompt has 9000 tokens")


def test_no_model_is_loaded_without_a_readable_picture(run_idefics):
    done = run_idefics("caption", "notes.txt", "no.png")
    assert done.exit_code == 2
    assert not done.load_flags


def test_json_is_one_object_a_picture(run_idefics):
    done = run_idefics("ask", "a.png", "no.png", "b.png", "What?", "--json")
    assert done.exit_code == 2
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["image"], second["image"]) == ("a.png", "b.png")
    assert first == {
        "image": "a.png",
        "text": "ask a What?",
        "finish": "stop",
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "pictures": 1, "cached_tokens": 0},
        "timings": {"prepare": 0.1, "first_token": 0.2, "total": 0.3},
    }


def test_json_of_a_ranking_has_every_label(run_idefics):
    [line] = run_idefics("classify", "a.png", "--labels", "cat,dog", "--json").stdout.splitlines()
    row = json.loads(line)
    assert row["image"] == "a.png"
    assert row["best"] == "cat"
    assert [label["label"] for label in row["labels"]] == ["cat", "dog"]
    assert sum(label["probability"] for label in row["labels"]) == pytest.approx(1)
    assert row["labels"][1]["logprob"] == -1


def test_json_holds_any_character(run_idefics):
    vlm = FakeIdefics('A "puppy"\n\x1b[31m — 🐶')
    [line] = run_idefics("caption", "a.png", "--json", vlm=vlm).stdout.splitlines()
    assert json.loads(line)["text"] == vlm.text


def test_a_name_cannot_forge_a_line(run_idefics, photo_folder):
    (photo_folder / "evil\nb.png: a cat\x1b.png").write_bytes((photo_folder / "a.png").read_bytes())
    done = run_idefics("caption", "evil*", "no\nno.png")
    assert done.stdout == "evil b.png: a cat.png: caption evil b.png: a cat\n"
    assert done.error_lines == ["idefics caption: no no.png: no such file"]


def test_standard_input_is_named_by_its_dash(run_idefics, send_stdin, photo_folder):
    data = (photo_folder / "a.png").read_bytes()
    send_stdin(data)
    assert run_idefics("caption", "-").stdout == f"caption <{len(data)} bytes>\n"
    send_stdin(data)
    assert json.loads(run_idefics("caption", "-", "--json").stdout)["image"] == "-"


def test_flags_reach_the_call(run_idefics):
    done = run_idefics(
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
    assert run_idefics("ask", "a.png", "What?", "--num-beams", 4).vlm.calls[0].options == {"num_beams": 4}
    assert run_idefics("ask", "a.png", "What?").vlm.calls[0].options == {}


def test_structured_output_and_penalties_reach_the_call(run_idefics, photo_folder):
    def options(*flags):
        return run_idefics("ask", "a.png", "What?", *flags).vlm.calls[0].options

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
    (photo_folder / "schema.json").write_text('{"type": "object"}')
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
            "an answer has one constraint, not 2: give one of regex, choices, schema",
        ),
        (["--choices", "a,,b"], "give a list of texts"),
    ],
)
def test_invalid_constraints_are_refused_before_a_model_is_loaded(run_idefics, photo_folder, flags, message):
    (photo_folder / "list.json").write_text("[1]")
    done = run_idefics("ask", "a.png", "What?", *flags)
    assert done.exit_code == 2
    assert message in done.error_lines[0]
    assert not done.load_flags


def test_flags_reach_the_model(run_idefics, monkeypatch):
    [flags] = run_idefics(
        *("caption", "a.png", "--model", "x", "--revision", "v1", "--device", "cpu", "--dtype", "bfloat16"),
        *("--offline", "--remote-images", "off"),
    ).load_flags
    assert (flags.model, flags.revision, flags.device, flags.dtype) == ("x", "v1", "cpu", "bfloat16")
    assert (flags.offline, flags.remote_images) == (True, "off")
    monkeypatch.setenv("IDEFICS_MODEL", "y")
    monkeypatch.setenv("IDEFICS_REMOTE_IMAGES", "public")
    [flags] = run_idefics("caption", "a.png").load_flags
    assert (flags.model, flags.remote_images) == ("y", "public")
    assert run_idefics("caption", "a.png", "--model", "x").load_flags[0].model == "x"


@pytest.mark.parametrize(
    ("flags", "expected"), [((), None), (("--feature-cache",), True), (("--no-feature-cache",), False)]
)
def test_files_of_encoded_pictures_are_a_flag(run_idefics, flags, expected):
    assert run_idefics("caption", "a.png", *flags).load_flags[0].feature_cache is expected


def test_ranking_flags_reach_the_call(run_idefics):
    done = run_idefics("classify", "a.png", "--labels", "cat,dog", "--calibrated", "--length-normalized")
    assert done.vlm.calls[0].words == ["cat", "dog"]
    assert done.vlm.calls[0].options == {"calibrated": True, "length_normalized": True}


COMMANDS_WITH_WORDS = [
    ["caption", "a.png"],
    ["ask", "a.png", "What?"],
    ["classify", "a.png", "--labels", "x,y"],
]


@pytest.mark.parametrize("argv", [*COMMANDS_WITH_WORDS, ["generate", "a.png", "What?"]])
def test_image_detail_reaches_the_call(run_idefics, argv):
    options = run_idefics(*argv, "--detail", "auto", "--max-tiles", "5").vlm.calls[0].options
    assert (options["detail"], options["max_tiles"]) == ("auto", 5)
    assert not {"detail", "max_tiles"} & run_idefics(*argv).vlm.calls[0].options.keys()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (("--detail", "best"), "--detail is 'best': give low, high or auto"),
        (("--max-tiles", "0"), "--max-tiles is 0; give a whole number from 1"),
        (("--max-tiles", "few"), "--max-tiles is 'few': give a whole number"),
    ],
)
@pytest.mark.parametrize("argv", COMMANDS_WITH_WORDS)
def test_invalid_image_detail_is_refused(run_idefics, argv, flag, message):
    done = run_idefics(*argv, *flag)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize("argv", COMMANDS_WITH_WORDS)
def test_shots_are_a_file(run_idefics, photo_folder, argv):
    (photo_folder / "shots.jsonl").write_text('{"image": "b.png", "answer": "A puppy."}\n')
    [shot] = run_idefics(*argv, "--shots", "shots.jsonl").vlm.shots
    assert (shot.picture.source, shot.answer) == (Path("b.png"), "A puppy.")


def test_a_refused_policy_fetches_nothing(run_idefics):
    done = run_idefics("caption", "https://example.com/a.png", "--remote-images", "off")
    assert done.exit_code == 2
    assert "may not be fetched" in done.stderr
    assert not done.load_flags


def test_labels_come_from_a_file_too(run_idefics, photo_folder):
    (photo_folder / "labels.txt").write_text("\ufeffsnow leopard, ounce\n\n  kitten \n", encoding="utf-8")
    done = run_idefics("classify", "a.png", "--labels-file", "labels.txt", "--label", "puppy")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.vlm.calls[0].words == ["puppy", "snow leopard, ounce", "kitten"]


@pytest.mark.parametrize(
    "argv", [["caption", "a.png"], ["generate", "a.png", "This is"], ["chat", "a.png", "What?"]]
)
def test_log_probabilities_of_tokens_are_in_the_json(capsys, photo_folder, demo_model, send_stdin, argv):
    send_stdin(b"")
    code = run(
        [*argv, "--json", "--top-logprobs", "2", "--max-new-tokens", "4"], lambda flags, screen: demo_model
    )
    row = json.loads(capsys.readouterr().out)
    assert code == 0
    assert len(row["tokens"]) == row["usage"]["completion_tokens"] > 0
    assert "".join(token["text"] for token in row["tokens"]).strip() == row["text"].strip()
    for token in row["tokens"]:
        assert token["logprob"] <= 0
        assert [token["id"], token["logprob"]] == [token["top"][0]["id"], token["top"][0]["logprob"]]
        assert len(token["top"]) == 2


def test_without_top_logprobs_tokens_have_their_own_alone(capsys, photo_folder, demo_model):
    assert run(["caption", "a.png", "--json", "--logprobs"], lambda flags, screen: demo_model) == 0
    assert set(json.loads(capsys.readouterr().out)["tokens"][0]) == {"id", "text", "logprob"}


def test_rows_without_logprobs_have_no_tokens(run_idefics):
    done = run_idefics("caption", "a.png", "--json")
    assert "tokens" not in json.loads(done.stdout)


def test_files_that_flags_name_may_be_standard_input(run_idefics, send_stdin, photo_folder):
    send_stdin("\ufeffsnow leopard\n\nkit\u2028ten\n".encode())
    done = run_idefics("classify", "a.png", "--labels-file", "-", "--label", "puppy")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.vlm.calls[0].words == ["puppy", "snow leopard", "kit\u2028ten"]
    send_stdin('\ufeff{"image": "b.png", "answer": "One\u2028two."}\n'.encode())
    done = run_idefics("caption", "a.png", "--shots", "-")
    assert (done.exit_code, done.stderr) == (0, "")
    [shot] = done.vlm.shots
    assert (str(shot.picture.source), shot.answer) == ("b.png", "One\u2028two.")
    send_stdin(b'\xef\xbb\xbf{"type": "integer"}')
    done = run_idefics("ask", "a.png", "How many?", "--schema", "-")
    assert (done.exit_code, done.vlm.calls[0].options["schema"]) == (0, {"type": "integer"})


@pytest.mark.parametrize("flag", ["--labels-file", "--shots"])
def test_errors_of_standard_input_as_a_file(run_idefics, send_stdin, photo_folder, flag):
    command = ["classify", "a.png", "--label", "puppy", "--label", "door", flag, "-"]
    send_stdin(b"\n")
    assert run_idefics(*command).stderr.startswith(
        f"idefics classify: {flag} -: standard input is empty: send one "
    )
    send_stdin(b"Caf\xe9")
    assert run_idefics(*command).stderr.startswith(
        f"idefics classify: {flag} - is not text in UTF-8: give one "
    )


def test_turns_and_a_schema_cannot_both_be_standard_input(run_idefics, send_stdin, photo_folder):
    send_stdin(b"{}")
    done = run_idefics("chat", "a.png", "--schema", "-")
    assert (done.exit_code, done.stderr) == (
        2,
        "idefics chat: --schema - cannot be used here: the lines of standard input are the turns\n",
    )


@pytest.mark.parametrize(
    ("argv", "stored_after"),
    [
        (["ask", "a.png", "What is it?"], [1]),
        (["caption", "a.png", "--json"], [1]),
        (["classify", "a.png", "--labels", "cat,dog"], [1]),
        (["caption", "a.png", "b.png"], []),
        (["classify", "*.png", "--labels", "cat,dog"], []),
        (["caption", "broken.png"], []),
        (["caption", "large.png"], []),
    ],
    ids=str,
)
def test_the_beginning_of_a_prompt_is_stored_after_an_answer_about_one_picture(
    run_idefics, argv, stored_after
):
    assert run_idefics(*argv).vlm.loaded_model.stored_after == stored_after


def test_the_beginning_of_a_prompt_is_stored_after_a_streamed_answer(monkeypatch):
    monkeypatch.setattr("sys.stdout", FakeTerminal())
    vlm = FakeIdefics()
    assert run(["ask", "a.png", "What is it?"], lambda *_: vlm) == 0
    assert vlm.loaded_model.stored_after == [1]
