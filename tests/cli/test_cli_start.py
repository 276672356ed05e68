"""Start-up time: modules that are never imported, or only when they are needed."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from idefics.cli import main
from idefics.demo import pictures

# What no answer about a picture in a file needs. torch._dynamo is its compiler, which takes seconds.
MODULES_NOT_IMPORTED = (
    "accelerate",
    "av",
    "bitsandbytes",
    "httpx",
    "huggingface_hub",
    "idefics.compat",
    "idefics.quant.bnb",
    "requests",
    "rich",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torchao",
    "torchvision",
    "transformers",
)
ALL_NAMES = {command.name for command in main.COMMANDS}
ASK_ARGUMENTS = ["ask", str(pictures()[0]), "What is it?", "--model", "demo", "--max-new-tokens", "1"]


def imported_modules(code, *arguments):
    """The names of the modules that a new interpreter has imported after running `code`."""
    code = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def test_importing_the_package_imports_nothing_but_the_standard_library():
    foreign = {
        name
        for name in imported_modules("import idefics") - imported_modules("import importlib, typing")
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "idefics"}
    }
    assert not foreign


@pytest.mark.parametrize("quantize", [[], ["--quantize", "int8"]], ids=["whole", "int8"])
def test_an_answer_imports_only_what_it_uses(quantize):
    code = "from idefics.cli.main import run; assert run(sys.argv[1:]) == 0"
    imported = imported_modules(code, *ASK_ARGUMENTS, *quantize)
    assert "torch" in imported
    assert not imported & set(MODULES_NOT_IMPORTED)


def test_the_first_answers_import_nothing_that_loading_has_not():
    code = (
        "import idefics; vlm = idefics.load('demo'); before = set(sys.modules)\n"
        "assert vlm.ask(sys.argv[1], 'What is it?') and vlm.caption(sys.argv[1], temperature=1)\n"
        "assert vlm.classify(sys.argv[1], ['a', 'b']) and vlm.chat([idefics.user('Hello')])\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}", ASK_ARGUMENTS[1]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {name for name in done.stdout.split() if name.partition(".")[0] != "encodings"}


def test_an_interrupt_while_modules_are_imported_is_no_traceback():
    code = (
        "import importlib.abc, sys\n"
        "class Interrupt(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'idefics.cli.chat':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from idefics.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


EXIT_SCRIPT = """
import atexit, os, sys
from idefics.__main__ import main

os._exit = lambda code, end=os._exit: (os.write(1, b"no teardown"), end(code))
sys.argv[1:] = ["models", *sys.argv[1:]]
try:
    main()
finally:
    atexit.register(print, "handler", end=" ")
"""


@pytest.mark.parametrize(("flags", "code"), [([], 0), (["--unknown"], 2)])
def test_a_process_ends_with_its_handlers_and_its_exit_code_and_without_teardown(flags, code):
    done = subprocess.run([sys.executable, "-c", EXIT_SCRIPT, *flags], capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout.endswith("handler no teardown")


def test_a_process_that_fails_unexpectedly_is_torn_down():
    code = f"import idefics.cli.main\nidefics.cli.main.run = None\n{EXIT_SCRIPT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "handler "
    assert done.stderr.endswith("TypeError: 'NoneType' object is not callable\n")


@pytest.mark.parametrize("is_enabled", [True, False])
def test_collection_of_garbage_is_paused_and_then_as_before(is_enabled):
    code = (
        "import gc; from idefics.cli.process import paused_garbage_collection\n"
        f"{'gc.enable' if is_enabled else 'gc.disable'}()\n"
        "runs = []; gc.callbacks.append(lambda *_: runs.append(1))\n"
        "with paused_garbage_collection(): kept = [[] for _ in range(100_000)]\n"
        "print(len(runs), gc.isenabled(), gc.get_freeze_count() > 100_000)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"0 {is_enabled} True\n"


@pytest.mark.parametrize(("name", "built"), [("ask", {"ask"}), ("", ALL_NAMES), ("--version", ALL_NAMES)])
def test_the_parser_has_the_command_that_is_typed_or_all(name, built):
    assert set(main._root_command(name).commands) == built


def test_the_installed_command_is_the_one_that_an_interrupt_ends():
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"idefics": "idefics.__main__:main"}
