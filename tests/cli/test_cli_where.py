"""`--where`: the map of an answer and of a ranking, and what is refused before any work."""

import json

import pytest
from PIL import Image

from idefics.cli.main import run
from idefics.demo import pictures


@pytest.fixture
def run_demo(capsys, demo_model):
    """Runs `idefics ARGV` with the demo model: (exit code, standard output, standard error)."""

    def run_command(*argv):
        code = run([str(argument) for argument in argv], lambda flags, screen: demo_model)
        return code, *capsys.readouterr()

    return run_command


PUPPY = next(path for path in pictures() if path.stem == "puppy")


def size_of(path):
    with Image.open(path) as file:
        return file.size


@pytest.mark.parametrize(
    ("argv", "columns"),
    [
        (["ask", PUPPY, "What is in this image?"], 3),
        (["caption", PUPPY], 3),
        (["complete", PUPPY, "This is an image of"], 3),
        (["classify", PUPPY, "--labels", "puppy,car"], 2),
    ],
)
def test_the_answer_is_printed_and_its_maps_are_written(run_demo, tmp_path, argv, columns):
    path = tmp_path / "map.png"
    code, plain, _ = run_demo(*argv)
    assert code == 0
    code, out, err = run_demo(*argv, "--where", path)
    assert (code, out) == (0, plain)
    assert err.startswith(f"{path}: the map; without the picture the answer is ")
    assert size_of(path)[0] <= columns * 490 + 10


def test_json_stays_json(run_demo, tmp_path):
    code, out, _ = run_demo("ask", PUPPY, "What is in this image?", "--json", "--where", tmp_path / "map.png")
    assert code == 0
    assert json.loads(out)["image"] == str(PUPPY)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a.png", "Q?", "--where", "map.txt"], "--where is 'map.txt': give a file that ends in .png"),
        (["a.png", "Q?", "--where", "none/map.png"], "there is no folder 'none'"),
        (["a.png", "b.png", "Q?", "--where", "map.png"], "draws the map of one picture, and 2 are named"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_the_model_is_loaded(run_idefics, photo_folder, argv, message):
    result = run_idefics("ask", *argv)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not result.load_flags


def test_a_file_that_cannot_be_written_is_an_error_of_one_line(run_demo, tmp_path):
    (tmp_path / "map.png").mkdir()
    code, out, err = run_demo("ask", PUPPY, "What is in this image?", "--where", tmp_path / "map.png")
    assert code != 0
    assert out
    assert err.count("\n") == 1
    assert "cannot be written" in err
