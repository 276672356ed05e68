"""The code of "Show code" runs and gives the same answer as the page."""

import contextlib
import io
import json
import shlex
from dataclasses import replace

import pytest

from idefics.cli.main import run
from idefics.messages import Picture, assistant, user
from idefics.page.batch import LABEL_AND_PLACEHOLDER_BY_TASK, make_batch_job, run_batch_with_progress
from idefics.page.code_snippets import BatchSnippets, ChatSnippets, TaskSnippets

MODEL_AND_SERVER = {"model": "demo", "server": "http://127.0.0.1:8000"}
COUNT_SHOTS = [
    ("statue.png", "", "1 STATUE"),
    ("vegetables.png", "", "1 TOMATO, 1 CORN COB, 1 CARROT, 1 EGGPLANT"),
]
LABELS = ["animals", "vegetables", "city, landscape"]

CALL_BY_NAME = {
    "caption": TaskSnippets(task="caption", picture="puppy.png", **MODEL_AND_SERVER),
    "options": TaskSnippets(
        task="caption",
        picture="puppy.png",
        options={"max_new_tokens": 5, "detail": "low"},
        **MODEL_AND_SERVER,
    ),
    "complete": TaskSnippets(
        task="complete", picture="tower.png", words="This is 'an' image of", **MODEL_AND_SERVER
    ),
    "ask": TaskSnippets(task="ask", picture="picnic.png", words='What is on the "left"?', **MODEL_AND_SERVER),
    "one word": TaskSnippets(task="ask", picture="picnic.png", words="--help", **MODEL_AND_SERVER),
    "write": TaskSnippets(
        task="write",
        picture="door.png",
        words="Use the image to write a story.",
        options={"temperature": 0.9, "seed": 3, "top_p": 0.9},
        **MODEL_AND_SERVER,
    ),
    "shots": TaskSnippets(task="caption", picture="door.png", shots=COUNT_SHOTS, **MODEL_AND_SERVER),
    "question": TaskSnippets(
        task="ask",
        picture="door.png",
        words="Where is it?",
        shots=[("tower.png", "What?", "A tower")],
        options={"num_beams": 2},
        **MODEL_AND_SERVER,
    ),
}
EXAMPLE_CONVERSATION = ChatSnippets(
    messages=[
        user(Picture("tower.png"), "What is in this image?"),
        assistant("A tower."),
        user(Picture("statue.png"), Picture("door.png"), "And in these?\nSay it's so."),
    ],
    options={"max_new_tokens": 20},
    **MODEL_AND_SERVER,
)


@pytest.fixture
def folder(tmp_path, bundled_pictures, monkeypatch):
    """A folder with the pictures and the few-shot file that the code names."""
    for name, path in bundled_pictures.items():
        (tmp_path / name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_python(demo_model, monkeypatch):
    """Runs a script with the demo model."""
    import idefics.tasks.idefics_model

    monkeypatch.setattr(idefics.tasks.idefics_model, "load", lambda model: {"demo": demo_model}[model])

    def execute(script):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(script, "shown", "exec"), {})
        return said.getvalue().rstrip("\n")

    return execute


@pytest.fixture
def run_shell(demo_model, capsys):
    """Runs a command line of `idefics` with the demo model."""

    def execute(line):
        words = shlex.split(line)
        assert words[0] == "idefics"
        code = run(words[1:], lambda flags, screen: {"demo": demo_model}[flags.model])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out.rstrip("\n")

    return execute


def direct_answers(demo, call):
    from idefics.messages import Shot
    from idefics.tasks import TASKS

    vlm = demo.with_shots([Shot(Picture(name), answer, question) for name, question, answer in call.shots])
    return vlm.run(TASKS[call.task], Picture(call.picture), call.words, **call.options).text


@pytest.mark.parametrize("name", CALL_BY_NAME)
def test_the_python_of_a_call_gives_its_answer(folder, demo_model, run_python, name):
    assert run_python(CALL_BY_NAME[name].python) == direct_answers(demo_model, CALL_BY_NAME[name])


@pytest.mark.parametrize("name", CALL_BY_NAME)
def test_the_command_line_of_a_call_gives_its_answer(folder, demo_model, run_shell, name):
    call = CALL_BY_NAME[name]
    rows = [{"image": i, "question": q, "answer": a} for i, q, a in call.shots]
    (folder / "shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_shell(call.shell) == direct_answers(demo_model, call)


@pytest.mark.parametrize("labels", [LABELS, ["cat", "dog", "vegetables"]], ids=["comma", "plain"])
def test_the_code_of_a_ranking_gives_it(folder, demo_model, run_python, run_shell, labels):
    options = {"calibrated": True, "length_normalized": True}
    call = TaskSnippets(
        task="classify", picture="vegetables.png", labels=labels, options=options, **MODEL_AND_SERVER
    )
    ranking = demo_model.classify("vegetables.png", labels, **options)
    assert run_python(call.python).splitlines() == [f"{one.probability:6.1%} {one.label}" for one in ranking]
    assert run_shell(call.shell) == ranking.best


def test_the_python_of_a_conversation_gives_its_answer(folder, demo_model, run_python):
    assert (
        run_python(EXAMPLE_CONVERSATION.python)
        == demo_model.chat(EXAMPLE_CONVERSATION.messages, max_new_tokens=20).text
    )


def test_the_command_line_of_a_conversation_has_its_turns(folder, demo_model, run_shell, monkeypatch):
    typed, line = EXAMPLE_CONVERSATION.shell.split(" |\n  ")
    words = shlex.split(typed.replace("\\\n", ""))
    assert words[:2] == ["printf", "%s\\n"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(words[2:])))
    first = demo_model.chat([EXAMPLE_CONVERSATION.messages[0]], max_new_tokens=20).text
    said = run_shell(line).splitlines()
    assert said[0] == first == "A tower."
    pictures = [Picture("statue.png"), Picture("door.png")]
    last = user(*pictures, "And in these? Say it's so.")
    assert said[1:] == [
        demo_model.chat([EXAMPLE_CONVERSATION.messages[0], assistant(first), last], max_new_tokens=20).text
    ]


def test_a_name_that_looks_like_a_flag_stays_a_name():
    assert "./-x.png" in shlex.split(TaskSnippets(task="caption", picture="-x.png", **MODEL_AND_SERVER).shell)


WORDS_BY_TASK = {
    task: "vegetables, animals" if task == "classify" else hint
    for task, (_, hint) in LABEL_AND_PLACEHOLDER_BY_TASK.items()
}


@pytest.fixture(params=["caption", *WORDS_BY_TASK])
def batch_code_and_answers(request, page_backend, bundled_pictures, tmp_path):
    """The code of a task's batch, and its results: name of a picture -> answer."""
    task, words = request.param, WORDS_BY_TASK.get(request.param, "")
    files = [{"path": str(path), "orig_name": name} for name, path in bundled_pictures.items()]
    *_, (_, _, rows, _) = run_batch_with_progress(page_backend, "me", files, None, task, words)
    (tmp_path / "photos").mkdir()
    for name, path in bundled_pictures.items():
        (tmp_path / "photos" / name).write_bytes(path.read_bytes())
    job = make_batch_job(task, words)
    shown = BatchSnippets(task=job.task, words=job.words, labels=job.labels, **MODEL_AND_SERVER)
    return shown, {row.image: row.text for row in rows}


def answer_by_name(lines):
    """Name of a picture -> answer, from lines "name: answer"."""
    return dict(line.removeprefix("photos/").split(": ", 1) for line in lines.splitlines())


def test_the_python_of_a_batch_gives_its_table(folder, run_python, batch_code_and_answers):
    shown, table = batch_code_and_answers
    assert answer_by_name(run_python(shown.python)) == table


def test_the_command_line_of_a_batch_gives_its_table(folder, run_shell, batch_code_and_answers):
    shown, table = batch_code_and_answers
    line, file = shown.shell.rstrip().split(" > ")  # what the shell itself does
    assert file == "answers.txt"
    assert answer_by_name(run_shell(line)) == table


@pytest.mark.parametrize(
    "call",
    [CALL_BY_NAME["ask"], EXAMPLE_CONVERSATION, BatchSnippets(task="caption", **MODEL_AND_SERVER)],
    ids=["task", "chat", "batch"],
)
def test_the_code_names_the_adapter(call):
    adapted = replace(call, adapter="my adapter")
    assert "vlm = idefics.load('demo', adapter='my adapter')" in adapted.python
    assert "--model demo --adapter 'my adapter'" in adapted.shell
    assert "vlm = idefics.load('demo')" in call.python
    assert "--adapter" not in call.shell
