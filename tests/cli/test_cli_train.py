"""`idefics train` from the command line: what it refuses, what it prints, what it writes, and how it goes on."""

import json
import re
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from PIL import Image

from idefics.cli import main as cli
from idefics.cli.train import _next_commands
from idefics.cli.train_progress import TrainProgress
from idefics.train import plan
from idefics.train.dry_run import DryRun
from idefics.train.logs import TrainingHistory
from idefics.train.settings import TrainSettings
from train.train_history import make_step

COLOURS = ("red", "green", "blue", "white")
QUESTION = "What colour is it?"


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """The working folder; its folder `photos` has four pictures, a question about each and its answer."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for colour in COLOURS:
        Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
        rows.append({"file_name": f"{colour}.png", "question": QUESTION, "answer": f"{colour.title()}."})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def train(data_folder, capsys):
    """Runs `idefics train` with the demo model: (exit code, output, lines on standard error)."""

    def run(*words, data="photos", out="adapter"):
        fixed = ["--data", data, "--model", "demo", *(["--out", out] if out else [])]
        code = cli.run(["train", *fixed, *map(str, words)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err.splitlines()

    return run


def read_history(folder):
    history = TrainingHistory()
    for line in (folder / "log.jsonl").read_text().splitlines():
        value = json.loads(line)
        history.add(value.pop("kind"), value)
    return history


def test_an_adapter_is_trained_watched_and_used(train, data_folder, capsys):
    code, out, err = train(
        *("--steps", 6, "--batch-size", 2, "--learning-rate", 5e-3, "--warmup-steps", 1),
        *(
            "--val",
            "photos",
            "--validate-every",
            3,
            "--sample-every",
            3,
            "--num-samples",
            2,
            "--max-tiles",
            1,
        ),
    )
    assert code == 0, err
    assert (
        err[0].startswith("4 rows of ")
        and "6 steps, " in err[1]
        and err[2].startswith("memory: at most about ")
    )
    assert re.match(r"one batch of \d+ tokens: took .* of memory, .* tokens/s; the steps take about ", err[3])
    assert err[4].startswith("before training: validation loss ") and "of 4 answers right" in err[4]
    assert err[5].startswith("before training: photos/metadata.jsonl#1: ") and err[5].endswith(
        "(right: 'Red.')"
    )
    assert err[6].startswith("before training: photos/metadata.jsonl#3: "), "rows at equal distances"
    assert "step 6 of 6, loss " in "\n".join(err) and "checkpoint" not in "\n".join(err)
    use = "--model demo --adapter adapter"
    assert out.splitlines() == [
        "adapter was written: 248,320 numbers, learned in 6 steps",
        "report: adapter.training/report.html",
        f"to ask: idefics ask photo.jpg 'What is it?' {use} --max-tiles 1",
        f"to ask on a page: idefics ui {use}",
        "to make one model of both: idefics merge demo adapter --out adapter-merged",
        f"to score it: idefics eval folder --data photos {use} --out adapter-eval.json",
    ]
    history = read_history(data_folder / "adapter.training")
    assert [one.step for one in history.steps] == [1, 2, 3, 4, 5, 6]
    assert [one.step for one in history.validations] == [0, 3, 6]
    assert history.validations[-1].loss < history.validations[0].loss
    assert [(one.step, one.row[-1]) for one in history.samples] == [
        (step, row) for step in (0, 3, 6) for row in "13"
    ]
    assert history.start["rows"] == 4 and history.start["settings"]["steps"] == 6
    page = (data_folder / "adapter.training" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert sorted(path.name for path in (data_folder / "adapter.training").iterdir()) == [
        "log.jsonl",
        "report.html",
    ]
    answer = history.samples[-2].answer
    asked = ["ask", "photos/red.png", QUESTION, "--max-tiles", "1", "--model", "demo"]
    assert cli.run([*asked, "--adapter", "adapter", "--max-new-tokens", "64"]) == 0
    assert capsys.readouterr().out.strip() == answer, "what the sample said is what the adapter says"


def test_a_whole_model_is_trained(train, data_folder):
    code, out, err = train("--full", "--steps", 2, "--num-samples", 0, out="new-model")
    assert code == 0, err
    assert "to ask: idefics ask photo.jpg 'What is it?' --model ./new-model" in out
    assert "merge" not in out and "learning" not in out
    assert cli.run(["ask", "photos/red.png", QUESTION, "--model", "./new-model"]) == 0


def test_a_training_goes_on_after_ctrl_c(train, data_folder, monkeypatch):
    words = ("--steps", 5, "--batch-size", 2, "--num-samples", 1, "--tensorboard")
    on_step = TrainProgress.on_step

    def interrupt(progress, record):
        on_step(progress, record)
        if record.step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainProgress, "on_step", interrupt)
    monkeypatch.setattr("sys.argv", ["idefics", "train", "--data", "photos", "--out", "adapter"])
    code, out, err = train(*words)
    assert (code, out) == (130, "")
    assert err[-3].startswith("finishing the step in hand") or err[-4].startswith(
        "finishing the step in hand"
    )
    assert re.fullmatch(r"stopped after step 2 of 5: adapter\.training/step-0*2", err[-2])
    assert err[-1] == "to go on: idefics train --data photos --out adapter --resume"
    assert "So far" in (data_folder / "adapter.training" / "report.html").read_text()
    monkeypatch.setattr(TrainProgress, "on_step", on_step)
    code, _, err = train(*words)
    assert code == 2 and "continue with --resume, or remove adapter.training to begin again" in err[-1]
    code, _, err = train(*words, "--resume", "--rank", 4, "--val", "photos")
    changes = "--val 'photos' (was None); --rank 4 (was 16): give the same settings"
    assert code == 2 and len(err) == 1 and changes in err[0], "before rows are read"
    code, _, err = train(*words, "--resume")
    assert code == 0, err
    assert "adapter is written: this training is finished" in train(*words, "--resume")[2][0]
    assert [one.step for one in read_history(data_folder / "adapter.training").steps] == [1, 2, 3, 4, 5]
    assert list((data_folder / "adapter.training" / "tensorboard").iterdir())


def test_a_training_that_ends_at_once_says_how_it_goes_on(train, data_folder, monkeypatch):
    def interrupt(progress, record):
        if record.step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainProgress, "on_step", interrupt)
    monkeypatch.setattr("sys.argv", ["idefics", "train", "--data", "photos", "--out", "adapter"])
    code, out, err = train("--steps", 5, "--batch-size", 2, "--num-samples", 0, "--save-every", 2)
    assert (code, out) == (130, "")
    assert err[-1] == (
        "stopped; to go on from adapter.training/step-00000002: idefics train --data photos --out adapter --resume"
    )


def test_slow_steps_are_named_once(capsys):
    lines = []
    progress = TrainProgress(SimpleNamespace(print_status=lines.append, progress=Mock()))
    progress.on_dry_run(DryRun(num_tokens=300, tokens_per_second=1200, peak_bytes=None, seconds_left=1))
    for step in range(1, 9):
        progress.on_step(make_step(step, epoch=step / 2, seconds=2))  # 150 tokens a second
    (line,) = [line for line in lines if "slow" in line]
    assert line.startswith(
        "steps are 8 times as slow as one batch was before training: if other programs keep "
    )
    lines.clear()
    progress = TrainProgress(SimpleNamespace(print_status=lines.append, progress=Mock()))
    progress.on_dry_run(DryRun(num_tokens=300, tokens_per_second=1200, peak_bytes=None, seconds_left=1))
    progress.on_step(make_step(9, epoch=1, seconds=99))
    for step in range(10, 30):
        progress.on_step(make_step(step, epoch=2, seconds=0.3))
    assert not any("slow" in line for line in lines)


def test_a_dry_run_writes_nothing(train, data_folder):
    code, out, err = train("--dry-run", out=None)
    assert (code, out) == (0, "")
    assert len(err) == 5 and err[4].startswith("one batch of ")
    assert err[3] == "1 step will change little: 200 epochs have 50"
    assert "has no checkpoint: begin without --resume" in train("--dry-run", "--resume")[2][0]
    assert [path.name for path in data_folder.iterdir()] == ["photos"]
    checkpoint = data_folder / "adapter.training" / "step-00000001"
    checkpoint.mkdir(parents=True)
    features = data_folder / "adapter.training" / "features"
    features.mkdir()
    assert train("--dry-run")[0] == 0, "an older training is not read"
    assert list(checkpoint.iterdir()) == [] and features.is_dir()


def test_what_is_wrong_is_said_before_anything_long_begins(train, data_folder, monkeypatch):
    def refusal(*words, **options):
        code, out, err = train(*words, **options)
        assert (code, out, len(err)) == (2, "", 1), err
        return err[0]

    assert refusal(out=None) == "idefics train: nothing says where the result goes: give --out DIR"
    assert refusal("--rank", 0) == "idefics train: --rank is 0; give a whole number from 1 to 1024"
    assert refusal("--show", 0) == "idefics train: --show is 0; give a number of rows above 0"
    assert "--batch-size is 'x': give a whole number" in refusal("--batch-size", "x")
    assert "--quantize nf4 keeps the weights fixed" in refusal("--full", "--quantize", "nf4")
    assert refusal("--quantize", "int8").endswith("--quantize is 'int8': give nf4")
    assert "--validate-every 3 needs rows to validate with: give --val ROWS" in refusal("--validate-every", 3)
    assert "photos already holds other files" in refusal(out="photos", data="nothing")
    assert "has no checkpoint: begin without --resume" in refusal("--resume")
    assert "photos/red.png is a file: give a new folder" in refusal(out="photos/red.png")
    assert "x.training cannot be written (Not a directory): give" in refusal(out="photos/red.png/x")
    assert "nothing" in refusal(data="nothing")
    monkeypatch.setattr(plan, "free_memory", lambda device: 1_000_000)
    code, _, err = train()
    assert code == 2
    assert re.match(r"idefics train: this training \(.*\) needs \d+ MB, 1 MB free: try ", err[-1])
    assert "--gradient-checkpointing" in err[-1] and "--quantize nf4" in err[-1]
    assert [path.name for path in data_folder.iterdir()] == ["photos"]


def test_a_batch_that_does_not_fit_is_an_error_with_advice(train, data_folder, monkeypatch):
    def fail(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("idefics.train.training.run_dry", fail)
    code, _, err = train()
    assert code == 2 and "one batch took more memory than was forecast: the training (weights " in err[-1]
    assert "try --micro-batch-tokens " in err[-1] and "--gradient-checkpointing" in err[-1]
    assert [path.name for path in data_folder.iterdir()] == ["photos"]


def test_rows_are_shown_as_the_model_sees_them(train):
    code, out, _ = train("--show", 2, out=None)
    assert code == 0
    assert out.count(QUESTION) == 2 and "Red." in out and "Green." in out and "Blue." not in out


@pytest.mark.parametrize(
    ("data", "val", "words"),
    [
        ("photos", None, "eval folder --data test.csv"),
        ("photos", "val.csv", "eval folder --data val.csv"),
        ("easy-vqa", None, "eval easy-vqa"),
        ("photos", "easy-vqa:test", "eval easy-vqa"),
        ("photos", "easy-vqa:train", "eval easy-vqa --split train"),
        ("vqav2:.", None, "eval vqav2 --data ."),
        ("vqav2:folder:train", None, "eval vqav2 --data folder"),
        ("vqav2:.", "vqav2:folder:minival", "eval vqav2 --data folder --split minival"),
        ("easy-vqa", "val.csv", "eval folder --data val.csv"),
    ],
)
def test_the_last_line_scores_what_was_learned(data, val, words):
    settings = TrainSettings(data=data, val=val, model="demo", out="adapter")
    command = " ".join(_next_commands(settings, settings.out)[-1][1])
    assert command == f"{words} --model demo --adapter adapter --out adapter-eval.json"


def test_the_flags_have_the_defaults_of_the_settings(train, data_folder, monkeypatch):
    taken = []

    def stop(settings, *_, **__):
        taken.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("idefics.train.training.run", stop)
    assert train()[0] == 130
    assert taken == [TrainSettings(data="photos", model="demo", out="adapter")]
