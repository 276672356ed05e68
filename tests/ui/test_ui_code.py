"""What "Show code" says really runs, and gives the answer that the page gave."""

import contextlib
import io
import json
import shlex

import pytest

from idefics.cli.main import run
from idefics.messages import Picture, assistant, user
from idefics.ui.batch import HINTS, batch, job_of
from idefics.ui.code import Call, Many, Talk

OWN = {"model": "demo", "server": "http://127.0.0.1:8000"}
COUNTS = [
    ("statue.png", "", "1 STATUE"),
    ("vegetables.png", "", "1 TOMATO, 1 CORN COB, 1 CARROT, 1 EGGPLANT"),
]
LABELS = ["animals", "vegetables", "city, landscape"]

CALLS = {
    "caption": Call(task="caption", picture="puppy.png", **OWN),
    "options": Call(
        task="caption", picture="puppy.png", options={"max_new_tokens": 5, "detail": "low"}, **OWN
    ),
    "complete": Call(task="complete", picture="tower.png", words="This is 'an' image of", **OWN),
    "ask": Call(task="ask", picture="picnic.png", words='What is on the "left"?', **OWN),
    "one word": Call(task="ask", picture="picnic.png", words="--help", **OWN),
    "write": Call(
        task="write",
        picture="door.png",
        words="Use the image to write a story.",
        options={"temperature": 0.9, "seed": 3, "top_p": 0.9},
        **OWN,
    ),
    "shots": Call(task="caption", picture="door.png", shots=COUNTS, **OWN),
    "question": Call(
        task="ask",
        picture="door.png",
        words="Where is it?",
        shots=[("tower.png", "What?", "A tower")],
        options={"num_beams": 2},
        **OWN,
    ),
}
CONVERSATION = Talk(
    messages=[
        user(Picture("tower.png"), "What is in this image?"),
        assistant("A tower."),
        user(Picture("statue.png"), Picture("door.png"), "And in these?\nSay it's so."),
    ],
    options={"max_new_tokens": 20},
    **OWN,
)


@pytest.fixture
def folder(tmp_path, bundled, monkeypatch):
    """A folder with the pictures and the file of shots of each call that has some."""
    for name, path in bundled.items():
        (tmp_path / name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def python(demo, monkeypatch):
    """Runs a script with the demo model."""
    import idefics.tasks.verbs

    monkeypatch.setattr(idefics.tasks.verbs, "load", lambda model: {"demo": demo}[model])

    def execute(script):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(script, "shown", "exec"), {})
        return said.getvalue().rstrip("\n")

    return execute


@pytest.fixture
def shell(demo, capsys):
    """Runs a command line of `idefics` with the demo model."""

    def execute(line):
        words = shlex.split(line)
        assert words[0] == "idefics"
        code = run(words[1:], lambda flags, screen: {"demo": demo}[flags.model])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        return out.rstrip("\n")

    return execute


def answered(demo, call):
    from idefics.messages import Shot
    from idefics.tasks import TASKS

    vlm = demo.with_shots([Shot(Picture(name), answer, question) for name, question, answer in call.shots])
    return vlm.run(TASKS[call.task], Picture(call.picture), call.words, **call.options).text


@pytest.mark.parametrize("name", CALLS)
def test_the_python_of_a_call_gives_its_answer(folder, demo, python, name):
    assert python(CALLS[name].python) == answered(demo, CALLS[name])


@pytest.mark.parametrize("name", CALLS)
def test_the_command_line_of_a_call_gives_its_answer(folder, demo, shell, name):
    call = CALLS[name]
    rows = [{"image": i, "question": q, "answer": a} for i, q, a in call.shots]
    (folder / "shots.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert shell(call.shell) == answered(demo, call)


@pytest.mark.parametrize("labels", [LABELS, ["cat", "dog", "vegetables"]], ids=["comma", "plain"])
def test_the_code_of_a_ranking_gives_it(folder, demo, python, shell, labels):
    options = {"calibrated": True, "length_normalized": True}
    call = Call(task="classify", picture="vegetables.png", labels=labels, options=options, **OWN)
    ranking = demo.classify("vegetables.png", labels, **options)
    assert python(call.python).splitlines() == [f"{one.probability:6.1%} {one.label}" for one in ranking]
    assert shell(call.shell) == ranking.best


def test_the_python_of_a_conversation_gives_its_answer(folder, demo, python):
    assert python(CONVERSATION.python) == demo.chat(CONVERSATION.messages, max_new_tokens=20).text


def test_the_command_line_of_a_conversation_has_its_turns(folder, demo, shell, monkeypatch):
    typed, line = CONVERSATION.shell.split(" |\n  ")
    words = shlex.split(typed.replace("\\\n", ""))
    assert words[:2] == ["printf", "%s\\n"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(words[2:])))
    first = demo.chat([CONVERSATION.messages[0]], max_new_tokens=20).text
    said = shell(line).splitlines()
    assert said[0] == first == "A tower."
    pictures = [Picture("statue.png"), Picture("door.png")]
    last = user(*pictures, "And in these? Say it's so.")
    assert said[1:] == [demo.chat([CONVERSATION.messages[0], assistant(first), last], max_new_tokens=20).text]


def test_a_name_that_looks_like_a_flag_stays_a_name():
    assert "./-x.png" in shlex.split(Call(task="caption", picture="-x.png", **OWN).shell)


WORDS = {task: "vegetables, animals" if task == "classify" else hint for task, (_, hint) in HINTS.items()}


@pytest.fixture(params=["caption", *WORDS])
def many(request, desk, bundled, tmp_path):
    """What "Show code" says of a task's batch, and the table of it: names of pictures -> answers."""
    task, words = request.param, WORDS.get(request.param, "")
    files = [{"path": str(path), "orig_name": name} for name, path in bundled.items()]
    *_, (_, _, rows, _) = batch(desk, "me", files, None, task, words)
    (tmp_path / "photos").mkdir()
    for name, path in bundled.items():
        (tmp_path / "photos" / name).write_bytes(path.read_bytes())
    job = job_of(task, words)
    shown = Many(task=job.task, words=job.words, labels=job.labels, **OWN)
    return shown, {row.image: row.text for row in rows}


def told(lines):
    """Names of pictures -> answers, of lines that say both."""
    return dict(line.removeprefix("photos/").split(": ", 1) for line in lines.splitlines())


def test_the_python_of_a_batch_gives_its_table(folder, python, many):
    shown, table = many
    assert told(python(shown.python)) == table


def test_the_command_line_of_a_batch_gives_its_table(folder, shell, many):
    shown, table = many
    line, file = shown.shell.rstrip().split(" > ")  # what the shell itself does
    assert file == "answers.txt"
    assert told(shell(line)) == table
