"""Output on a terminal, interrupts, closed and full outputs."""

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cli_fakes import FakeIdefics, FakeTerminal, make_answer

from idefics.cli.main import run
from idefics.formats import join_titles
from idefics.processing.picture_files import readable_formats

pytestmark = pytest.mark.usefixtures("photo_folder")

HERE = Path(__file__).parent
CHILD_CODE = f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1] / "src")!r}]
from cli_fakes import FakeIdefics, FakeStream
from idefics.cli.main import run

class Slow(FakeStream):
    def __next__(self):
        time.sleep(0.05 if self.yielded_words else 0.5)
        return super().__next__()

class SlowIdefics(FakeIdefics):
    def run(self, task, image, words="", *, stream=False, **options):
        if stream:
            return Slow(self._answer_text(task, image, words))
        if len(image) > 1:
            time.sleep(60)
        return super().run(task, image, words, **options)

    def chat(self, messages, *, stream=False, **options):
        return Slow("word " * 200) if len(messages) == 1 else super().chat(messages, stream=stream, **options)

sys.exit(run(sys.argv[1:], lambda flags, screen: SlowIdefics(text="word " * 200 if "long" in sys.argv else "")))
"""


@pytest.fixture
def run_in_terminal(monkeypatch):
    """Runs a command line with a terminal as standard output; returns what it prints."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def run_it(*argv, vlm=None):
        terminal = FakeTerminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        assert run(argv, lambda flags, screen: vlm or FakeIdefics()) == 0
        return terminal.getvalue()

    return run_it


class TerminalSession:
    """A child process on a pseudo-terminal, with methods to type and to read."""

    def __init__(self, *argv, **environment):
        self.master, slave = os.openpty()
        self.child = subprocess.Popen(
            [sys.executable, "-c", CHILD_CODE, *argv],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
        )
        os.close(slave)
        self.output = ""

    def read_until(self, pattern, seconds=60):
        """Reads until the pattern has appeared since the last call; returns what was read."""
        end, start = time.monotonic() + seconds, len(self.output)
        while not re.search(pattern, self.output[start:]):
            assert time.monotonic() < end, f"no {pattern!r} in {self.output[start:]!r}"
            assert self._read_available(), f"the child is gone after {self.output!r}"
        return self.output[start:]

    def interrupt_until(self, pattern):
        """Sends Ctrl-C, repeatedly if need be, until the pattern has appeared."""
        for _ in range(20):
            self.child.send_signal(signal.SIGINT)
            with suppress(AssertionError):
                return self.read_until(pattern, seconds=2)
        raise AssertionError(f"no {pattern!r} after Ctrl-C, but {self.output!r}")

    def type(self, text):
        os.write(self.master, text.encode())

    def wait_for_exit(self):
        """Waits for the exit; returns the exit code and all output."""
        while self._read_available():
            pass
        code = self.child.wait(60)
        os.close(self.master)
        return code, self.output

    def _read_available(self):
        """Reads available output, waiting up to half a second; False at the end of the output."""
        if not select.select([self.master], [], [], 0.5)[0]:
            return True
        try:
            data = os.read(self.master, 65536)
        except OSError:  # what Linux says at the end of a terminal
            return False
        self.output += data.decode()
        return bool(data)


@pytest.fixture
def start_terminal_session():
    typists = []

    def start(*argv, **environment):
        typists.append(TerminalSession(*argv, **environment))
        return typists[-1]

    yield start
    for one in typists:
        if one.child.poll() is None:
            one.child.kill()
            one.child.wait()


def test_a_single_answer_is_streamed_without_control_characters(run_in_terminal):
    vlm = FakeIdefics("A \x1b[2Jcat \x07sits.")
    assert run_in_terminal("caption", "a.png", vlm=vlm) == "A [2Jcat sits.\n"


def test_a_cut_off_answer_is_reported_in_a_terminal(run_in_terminal, capsys):
    run_in_terminal("write", "a.png", vlm=FakeIdefics("Once upon a-"))
    assert capsys.readouterr().err == "(cut off after 3 tokens; --max-new-tokens allows more)\n"
    run_in_terminal("write", "a.png", vlm=FakeIdefics("Once upon a time."))
    assert capsys.readouterr().err == ""


def test_names_are_coloured_and_line_breaks_kept(run_in_terminal):
    vlm = FakeIdefics("Once.\nThe end.")
    assert run_in_terminal("write", "a.png", "b.png", vlm=vlm) == (
        "\x1b[36ma.png\x1b[0m: Once.\nThe end.\n\x1b[36mb.png\x1b[0m: Once.\nThe end.\n"
    )


def test_probabilities_are_bars(run_in_terminal):
    lines = run_in_terminal("classify", "a.png", "--labels", "cat,a small dog").splitlines()
    assert [re.sub(r"\x1b\[[\d;]*m", "", line).split("  ")[0] for line in lines] == ["cat", "a small dog"]
    assert "66.7%" in lines[0]
    assert lines[0].count("█") == 20
    assert lines[1].count("█") == 10


def test_only_the_most_likely_labels_are_drawn(run_in_terminal):
    labels = ",".join(f"label {number}" for number in range(14))
    lines = run_in_terminal("classify", "a.png", "b.png", "--labels", labels).splitlines()
    assert len(lines) == 2 * (1 + 10 + 1)
    assert lines[-1] == "and 4 less likely ones (--json lists all)"


def test_json_is_for_programs_on_a_terminal_too(run_in_terminal):
    assert run_in_terminal("caption", "a.png", "--json").startswith('{"image": "a.png"')


def test_no_color_is_respected(run_in_terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in run_in_terminal("classify", "a.png", "b.png", "--labels", "cat,dog")
    assert "\x1b[3" not in run_in_terminal("models")


def test_a_terminal_shows_a_spinner(start_terminal_session):
    code, seen = start_terminal_session("caption", "a.png").wait_for_exit()
    assert code == 0
    assert "Answering" in seen
    assert seen.endswith("\x1b[2Kcaption a\r\n"), "the line that moved is gone before the words come"


def test_answers_and_refusals_stand_on_lines_of_their_own_with_a_progress_bar(start_terminal_session):
    code, seen = start_terminal_session("caption", "a.png", "notes.txt", "b.png").wait_for_exit()
    assert code == 2
    assert "Answering" in seen
    assert "1/3" in seen
    left = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", re.sub(r".*\x1b\[2K", "", seen)).splitlines()
    assert [line for line in left if line and "Answering" not in line] == [
        "a.png: caption a",
        f"idefics caption: notes.txt is not a picture that can be read: give {join_titles(readable_formats())}",
        "b.png: caption b",
    ]


def test_ctrl_c_keeps_the_answer_so_far(start_terminal_session):
    screen = start_terminal_session("write", "a.png", "long")
    screen.read_until("word word")
    screen.child.send_signal(signal.SIGINT)
    code, seen = screen.wait_for_exit()
    assert code == 130
    assert "Traceback" not in seen
    assert seen.endswith("\r\n")


def test_ctrl_c_down_a_pipe_keeps_finished_answers():
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD_CODE, "caption", "a.png", "b.png", "c.png"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "a.png: caption a\n"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, "", "")


def test_any_answer_can_be_printed_in_ascii():
    """With ASCII as the encoding of standard output, as in some containers."""
    Path("🐶.png").write_bytes(Path("a.png").read_bytes())
    for flags, line in (((), r"caption \U0001f436"), (("--json",), r"\ud83d\udc36")):
        done = subprocess.run(
            [sys.executable, "-c", CHILD_CODE, "caption", "🐶.png", *flags],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            check=True,
        )
        assert line in done.stdout
        assert done.stderr == ""


def test_a_closed_pipe_ends_the_command_quietly(photo_folder):
    for number in range(40):
        (photo_folder / f"many{number:02}.png").write_bytes((photo_folder / "a.png").read_bytes())
    command = "import sys; sys.path[:0] = sys.argv[1].split(':'); from cli_fakes import FakeIdefics; "
    command += (
        "from idefics.cli.main import run; sys.exit(run(sys.argv[2:], lambda *_: FakeIdefics('x' * 5000)))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", command, f"{HERE}:{HERE.parents[1] / 'src'}", "caption", "many*.png"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout.readline().startswith(b"many00.png: xxx")
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait(60) == 0


def run_shell(line):
    """Runs a line of a shell in which `$IDEFICS` is the command, with the fake model."""
    code = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1] / "src")!r}]
from cli_fakes import FakeIdefics
from idefics.cli.main import run
sys.exit(run(sys.argv[1:], lambda flags, screen: FakeIdefics()))
"""
    command = shlex.join([sys.executable, "-c", code])
    return subprocess.run(
        ["bash", "-c", line.replace("$IDEFICS", command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


DISK_FULL_MESSAGE = "cannot write answers: disk full"
STDOUT_CLOSED_MESSAGE = "cannot write answers: standard output is closed"


@pytest.mark.parametrize(
    ("line", "code", "err"),
    [
        ("$IDEFICS caption a.png b.png >/dev/full", 1, f"idefics caption: {DISK_FULL_MESSAGE} (0 of 2 done)"),
        ("$IDEFICS caption a.png b.png >&-", 1, f"idefics caption: {STDOUT_CLOSED_MESSAGE} (0 of 2 done)"),
        ("$IDEFICS ask a.png What? --json >/dev/full", 1, f"idefics ask: {DISK_FULL_MESSAGE} (0 of 1 done)"),
        ("$IDEFICS chat a.png What? >/dev/full </dev/null", 1, f"idefics chat: {DISK_FULL_MESSAGE}"),
        ("$IDEFICS generate a.png A >&-", 1, f"idefics generate: {STDOUT_CLOSED_MESSAGE}"),
        ("$IDEFICS models >/dev/full", 1, f"idefics models: {DISK_FULL_MESSAGE}"),
        ("$IDEFICS --version >/dev/full", 1, f"idefics: {DISK_FULL_MESSAGE}"),
        ("$IDEFICS --help >&-", 1, f"idefics: {STDOUT_CLOSED_MESSAGE}"),
        (
            "$IDEFICS caption - <&-",
            2,
            "idefics caption: standard input is empty: send the bytes of a picture into it",
        ),
    ],
)
def test_output_that_cannot_be_written_is_one_line(line, code, err):
    done = run_shell(line)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"{err}\n")


def test_answers_before_the_disk_was_full_are_kept_and_counted(photo_folder):
    """A file size limit of 1 KiB has the same effect as a full disk."""
    for number in range(40):
        (photo_folder / f"many{number:02}.png").write_bytes((photo_folder / "a.png").read_bytes())
    done = run_shell("ulimit -f 1; trap '' XFSZ; $IDEFICS caption many*.png >answers.txt")
    kept = (photo_folder / "answers.txt").read_text().splitlines()
    assert done.returncode == 1
    assert re.fullmatch(
        r"idefics caption: cannot write answers: file too large \((\d+) of 40 done\)\n", done.stderr
    )
    assert kept[0] == "many00.png: caption many00"
    assert (
        int(re.search(r"\d+", done.stderr)[0]) == 1024 // len("many00.png: caption many00\n") == len(kept) - 1
    )


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_errors_for_a_closed_standard_error_are_dropped(closed):
    done = run_shell(f"$IDEFICS caption a.png no.png {closed}")
    assert (done.returncode, done.stdout, done.stderr) == (2, "a.png: caption a\n", "")


def test_a_chat_whose_standard_input_is_closed_ends():
    done = run_shell("$IDEFICS chat a.png <&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_interactive_conversation(start_terminal_session):
    chat = start_terminal_session("chat", "a.png")
    chat.read_until("> $")
    chat.type("What is it?\n")
    chat.read_until("word word")
    chat.interrupt_until("> $")  # the answer, not the program
    chat.type("/image b.png\n")
    assert "1 picture added." in chat.read_until("> $")
    chat.type("And now?\n")
    assert "3 turns, 1 pictures, And now?" in chat.read_until("> $")
    assert "Ctrl-D" in chat.interrupt_until("> $")
    chat.type("/image no.png\n")
    assert "no.png: no such file" in chat.read_until("> $")
    chat.type("/help\n")
    assert "/image PATH" in chat.read_until("> $")
    chat.type("\x04")
    code, seen = chat.wait_for_exit()
    assert code == 0
    assert "Traceback" not in seen


def test_ctrl_c_before_an_answer_begins_drops_the_turn(start_terminal_session):
    chat = start_terminal_session("chat", "a.png", "--prompt", "What is it?")
    chat.read_until("Answering")
    chat.interrupt_until("> $")
    chat.type("Again?\n")
    chat.read_until("word word")  # what is said in a first turn
    chat.interrupt_until("> $")
    chat.type("/quit\n")
    assert chat.wait_for_exit()[0] == 0


def test_errors_do_not_break_the_progress_line(capsys):
    """`write_result` and `report_error` pause the bar; without a terminal there is none."""
    from idefics.cli.output import OutputWriter

    with OutputWriter("idefics test") as screen:
        screen.write_result(make_answer("A cat."))
        screen.report_error("no\nno.png: no such file")
    assert capsys.readouterr() == ("A cat.\n", "idefics test: no no.png: no such file\n")
    assert screen.exit_code == 2
