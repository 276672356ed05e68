"""The house: imports flow down, names are public on purpose, files stay small, nothing leaks upward."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

import idefics

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "idefics"

# Lowest first. A part imports from lower levels and from its own folder, never from its own level.
LEVELS = (
    ("errors",),
    ("formats", "sources", "host_memory", "lazy"),
    ("calls",),
    ("messages", "form", "config", "prompt", "catalog", "demo", "generation_fields"),
    ("options",),
    ("nn", "weights"),
    ("processing", "quant", "placement"),
    ("models", "engine"),
    ("pipeline",),
    ("tasks",),
    ("__init__",),
    ("server", "ui", "batch", "evaluate", "train", "compat"),
    ("cli",),  # it starts the other doors
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
DOORS = LEVEL["server"]

PUBLIC = [
    "__version__",
    "Alternative",
    "Answer",
    "assistant",
    "BadCall",
    "BadPicture",
    "BadPrompt",
    "BadRequest",
    "BadSetting",
    "BadVideo",
    "BrokenCheckpoint",
    "Delta",
    "EngineBusy",
    "EngineConfig",
    "Idefics",
    "IdeficsError",
    "ImageDetail",
    "load",
    "Message",
    "MissingExtra",
    "ModelClosed",
    "ModelError",
    "ModelNotFound",
    "Options",
    "OutOfMemory",
    "PartialPictureWarning",
    "Picture",
    "PromptTooLong",
    "QuantizationConfig",
    "RankedLabel",
    "Ranking",
    "read_shots",
    "RequestTimeout",
    "Sampling",
    "Shot",
    "Stream",
    "TextTooLong",
    "Timings",
    "UnknownArgument",
    "UnsupportedModel",
    "Usage",
    "user",
    "Video",
    "WeightsMismatch",
]

# What `idefics --help` reads, or may read: nothing of it may wait for torch.
QUICK = (
    "errors",
    "formats",
    "sources",
    "host_memory",
    "calls",
    "messages",
    "form",
    "config",
    "options",
    "prompt",
    "catalog",
    "demo",
    "tasks",
    "__init__",
    "cli",
    "__main__",
)
LATE = ("idefics.tasks.verbs", "idefics.tasks.pictured", "idefics.tasks.ranking")  # methods of a loaded model
EXTRA = ("server", "ui")  # doors whose modules need an extra,
NEEDED = ["idefics.server", "idefics.server.settings"]  # but for these, which the command line reads
HEAVY = ("torch", "numpy", "PIL", "safetensors", "tokenizers", "jinja2", "httpx", "huggingface_hub")
IMPORTED_AS = {"pillow": "PIL"}  # distributions whose module has another name

FILE_BUDGET, FUNCTION_BUDGET = 300, 60

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


MODULES = sources("src/idefics")


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def part_of(path):
    """The entry of `LEVELS` that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_name(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def where(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def imports_of(path):
    """Every import of a file, those inside functions included: (dotted name, node).

    A string that is the name of a module of the package counts: it is there to be imported late.
    """
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in MODULE_NAMES:
            yield node.value, node


MODULE_NAMES = {module_name(path) for path in MODULES} - {"idefics"}


def calls_of(path, name):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def test_every_part_has_a_level():
    assert {part_of(path) for path in MODULES} <= set(LEVEL), "give the new part a place in LEVELS"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_flow_down(path):
    here = part_of(path)
    wrong = []
    for name, node in imports_of(path):
        package, _, rest = name.partition(".")
        there = rest.split(".")[0]
        there = there if there in LEVEL else "__init__"  # `from idefics import load`
        if package == "idefics" and here != there and LEVEL[there] >= LEVEL[here]:
            wrong.append(f"{where(path, node)}: {here} may not import {there}")
    assert not wrong, "\n".join(wrong)


def test_imports_are_absolute():
    relative = [
        where(path, node)
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative


@cache
def dependencies():
    """The modules that an installation with all extras brings, by their names in import statements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (lines for extra, lines in project["optional-dependencies"].items() if extra != "dev")
    lines = [*project["dependencies"], *chain.from_iterable(extras)]
    names = (re.match(r"[\w-]+", requirement).group() for requirement in lines)
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def test_only_dependencies_are_imported():
    """Those of extras late: `test_every_module_imports_with_the_base_installation` holds it."""
    allowed = dependencies() | set(sys.stdlib_module_names) | {"idefics"}
    foreign = {
        f"{where(path, node)} imports {name}"
        for path in MODULES
        for name, node in imports_of(path)
        if name.split(".")[0] not in allowed
    }
    assert not foreign


def test_processing_knows_no_torch():
    assert not [
        where(path, node)
        for path in sources("src/idefics/processing")
        for name, node in imports_of(path)
        if name.split(".")[0] in ("torch", "safetensors")
    ]


def run_python(code, *arguments):
    """Runs code in a fresh interpreter and returns what it printed."""
    path = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})\n"
    command = [sys.executable, "-W", "error::DeprecationWarning:idefics", "-c", path + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_with_the_base_installation():
    """Modules of extras and of the test tools are hidden, as they are after `pip install idefics`.

    The doors that only an extra opens are left out; nobody imports them but functions that are about to open them.
    """
    hidden = (
        "accelerate av bitsandbytes fastapi gradio hypothesis llguidance multipart peft prometheus_client pyarrow "
        "pydantic pydantic_settings pytest ray sentencepiece starlette torchao torchvision transformers uvicorn"
    )
    code = f"""
import importlib

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden.split()!r}:
            raise ModuleNotFoundError(f"{{name}} is not in the base installation", name=name)

sys.meta_path.insert(0, Hide())
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name)
"""
    names = [module_name(path) for path in MODULES if part_of(path) not in EXTRA]
    names += NEEDED
    assert run_python(code, *names).split() == names


def test_the_quick_parts_import_nothing_heavy():
    names = [
        module_name(path) for path in MODULES if part_of(path) in QUICK and module_name(path) not in LATE
    ]
    code = f"""
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = [module for module in {HEAVY!r} if module in sys.modules]
    assert not heavy, f"import {{name}} brings {{heavy}}"
"""
    run_python(code, *names)


def test_public_names():
    assert idefics.__all__ == PUBLIC == sorted(PUBLIC, key=str.casefold)
    assert dir(idefics) == sorted(PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = idefics.nonsense


@pytest.mark.parametrize("name", PUBLIC[1:])
def test_public_names_are_explained(name):
    text = getattr(idefics, name).__doc__
    assert text, f"{name} has no docstring"
    assert not text.startswith(f"{name}("), f"{name} has only the docstring that dataclass writes"


def test_type_checkers_see_the_same_names():
    block = next(node for node in tree(PACKAGE / "__init__.py").body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == idefics._HOME


def test_the_version_is_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", idefics.__version__)


def length(node):
    return node.end_lineno - node.lineno + 1


@cache
def argued_for():
    """The exceptions that docs/design.md argues for: {"path" or "path::function": lines}."""
    table = (ROOT / "docs" / "design.md").read_text().split("## Budgets")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \| (\S.*) \|$", table, re.M)
    return {name: int(lines) for name, lines, _ in rows}


def sizes():
    for path in sources("src", "scripts", "bench"):
        name = str(path.relative_to(ROOT))
        yield name, len(path.read_text(encoding="utf-8").splitlines()), FILE_BUDGET
        for node in ast.walk(tree(path)):
            if isinstance(node, FUNCTIONS):
                yield f"{name}::{node.name}", length(node), FUNCTION_BUDGET


def test_budgets():
    over = [f"{name}: {n}" for name, n, most in sizes() if n >= argued_for().get(name, most)]
    assert not over, "split these, or argue for them in docs/design.md, Budgets:\n" + "\n".join(over)


def test_exceptions_to_the_budgets_are_needed():
    needed = {name for name, n, most in sizes() if n >= most}
    assert set(argued_for()) <= needed, "strike these from docs/design.md, Budgets"


def words_of(path):
    """Every name and string of a file's code; docstrings and comments may cite their sources."""
    documented = (ast.Module, ast.ClassDef, *FUNCTIONS)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree(path))
        if isinstance(node, documented) and ast.get_docstring(node)
    }
    for node in ast.walk(tree(path)):
        match node:
            case ast.Constant(value=str(word)) if id(node) not in docstrings:
                yield word, node
            case (
                ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word) | ast.keyword(arg=str(word))
            ):
                yield word, node


def test_families_do_not_leak_upward():
    """What one family wants is said in its file of models/; everyone else reads the record."""
    family = re.compile(r"idefics[ _-]?[123]|smolvlm|model_type", re.I)
    leaks = [
        f"{where(path, node)}: {word}"
        for path in MODULES
        if part_of(path) in ("nn", "engine", "processing", "pipeline", "tasks", "cli")
        for word, node in words_of(path)
        if family.search(word)
    ]
    assert not leaks, "\n".join(leaks)


def test_only_doors_print():
    assert not [
        where(path, node)
        for path in MODULES
        if LEVEL[part_of(path)] < DOORS
        for node in calls_of(path, "print")
    ]


def test_nobody_asks_an_object_what_it_is():
    """`hasattr`, and `getattr` with a default, guess where a type should know."""
    guesses = [where(path, node) for path in MODULES for node in calls_of(path, "hasattr")]
    guesses += [
        where(path, node) for path in MODULES for node in calls_of(path, "getattr") if len(node.args) == 3
    ]
    assert not guesses


def test_no_machine_paths_or_package_hosts_in_the_repository():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # Character classes keep this file from finding itself.
    word = re.compile(
        r"(?<![\w.~)}])/(ro[o]t|wor[k]|hom[e]|op[t]|User[s]|mn[t])/|pyp[i]\.org|pythonhoste[d]|index-ur[l]|find-link[s]"
        r"|whl/cp[u]"
    )
    found = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content:  # text
            found += [f"{name}: {match.group()}" for match in word.finditer(content.decode())]
    assert not found, "\n".join(found)


def test_the_architecture_lists_every_file():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([^`]+\.py)` \| \S", text, re.M))
    files = {str(path.relative_to(PACKAGE)) for path in MODULES}
    assert files == listed, f"add {sorted(files - listed)}, strike {sorted(listed - files)}"


def test_make_has_its_targets():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.M))
    promised = {"help", "demo", "test", "test-all", "check", "bench", "clean"}
    assert promised == targets == set(re.search(r"^\.PHONY: (.*)$", text, re.M).group(1).split())
    named = {
        target
        for path in [ROOT / ".ci" / "run", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
        for target in re.findall(r"\bmake ([a-z-]+)\b(?=[`\n ]*$|`)", path.read_text(), re.M)
    }
    assert named <= targets


def test_the_constraint_is_the_requirement():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    torch = next(line for line in project["dependencies"] if line.startswith("torch"))
    assert torch in (ROOT / "constraints.txt").read_text().splitlines()
