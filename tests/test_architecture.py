"""The structure: imports flow down, names are unique and explained, files stay small, words are the field's own."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import idefics

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "idefics"

# Lowest first. A part imports from lower levels and from its own folder, never from its own level.
LEVELS = (
    ("errors",),
    ("formats", "media_sources", "host_memory", "lazy", "native"),
    ("validation",),
    ("messages", "structured", "config", "prompt", "catalog", "demo", "generation_fields"),
    ("options",),
    ("nn", "weights"),
    ("processing", "quant", "placement"),
    ("models", "engine"),
    ("generation",),
    ("explain",),
    ("tasks",),
    ("__init__",),
    ("batch",),
    ("server", "page", "evaluate", "compat"),
    ("train",),  # it reads the data of evaluation
    ("cli",),  # it starts the other frontends
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
FRONTEND_LEVEL = LEVEL["server"]

PUBLIC_NAMES = [
    "__version__",
    "AdapterMismatch",
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
    "ExplainedWord",
    "Explanation",
    "Idefics",
    "IdeficsError",
    "ImageDetail",
    "load",
    "MapResult",
    "MapResults",
    "Message",
    "MissingExtra",
    "ModelClosed",
    "ModelError",
    "ModelNotFound",
    "Options",
    "OutOfMemory",
    "OutputError",
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
LIGHTWEIGHT_MODULES = (
    "errors",
    "formats",
    "media_sources",
    "host_memory",
    "validation",
    "messages",
    "structured",
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
HEAVY_TASK_MODULES = (
    "idefics.tasks.explanation_call",
    "idefics.tasks.explanation_mixin",
    "idefics.tasks.idefics_model",
    "idefics.tasks.page_reading_mixin",
    "idefics.tasks.picture_arguments",
    "idefics.tasks.ranking",
    "idefics.tasks.row_mapping",
    "idefics.tasks.row_window",
    "idefics.tasks.task_call",
    "idefics.tasks.text_task_mixin",
)  # methods of a loaded model
MODULES_OF_EXTRAS = ("server", "page")  # frontends whose modules need an extra,
MODULES_ALLOWED_TO_MISS = [
    "idefics.server",
    "idefics.server.settings",
]  # but for these, which the command line reads
HEAVY_PACKAGES = ("torch", "numpy", "PIL", "safetensors", "tokenizers", "jinja2", "httpx", "huggingface_hub")
HOSTS = ("lmms_eval",)  # programs that import a module of the package as their plug
IMPORT_NAME_BY_PACKAGE = {"pillow": "PIL"}  # distributions whose module has another name

FILE_BUDGET, FUNCTION_BUDGET = 300, 60

FUNCTION_NODES = (ast.FunctionDef, ast.AsyncFunctionDef)


def python_files(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


MODULES = python_files("src/idefics")


@cache
def parse_file(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def package_part(path):
    """The entry of `LEVELS` that a file of the package belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_name(path):
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def location_of(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def find_imports(path):
    """Every import of a file, those inside functions included: (dotted name, node).

    A string that is the name of a module of the package counts: it is there to be imported late.
    """
    for node in ast.walk(parse_file(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in MODULE_NAMES:
            yield node.value, node


MODULE_NAMES = {module_name(path) for path in MODULES} - {"idefics"}


def find_calls(path, name):
    for node in ast.walk(parse_file(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def test_every_part_has_a_level():
    assert {package_part(path) for path in MODULES} <= set(LEVEL), "give the new part a place in LEVELS"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_flow_down(path):
    here = package_part(path)
    wrong = []
    for name, node in find_imports(path):
        package, _, rest = name.partition(".")
        there = rest.split(".")[0]
        there = there if there in LEVEL else "__init__"  # `from idefics import load`
        if package == "idefics" and here != there and LEVEL[there] >= LEVEL[here]:
            wrong.append(f"{location_of(path, node)}: {here} may not import {there}")
    assert not wrong, "\n".join(wrong)


def test_imports_are_absolute():
    relative = [
        location_of(path, node)
        for path in MODULES
        for node in ast.walk(parse_file(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative


@cache
def dependencies():
    """The modules that an installation with all extras brings, by their names in import statements."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (
        lines for extra, lines in project["optional-dependencies"].items() if extra not in ("dev", "site")
    )
    lines = [*project["dependencies"], *chain.from_iterable(extras)]
    names = (re.match(r"[\w-]+", requirement).group() for requirement in lines)
    return {IMPORT_NAME_BY_PACKAGE.get(name, name.replace("-", "_")) for name in names}


def test_only_dependencies_are_imported():
    """Those of extras late: `test_every_module_imports_with_the_base_installation` holds it."""
    allowed = dependencies() | set(sys.stdlib_module_names) | {"idefics", *HOSTS}
    foreign = {
        f"{location_of(path, node)} imports {name}"
        for path in MODULES
        for name, node in find_imports(path)
        if name.split(".")[0] not in allowed
    }
    assert not foreign


def test_processing_knows_no_torch():
    assert not [
        location_of(path, node)
        for path in python_files("src/idefics/processing")
        for name, node in find_imports(path)
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

    Frontends that need an extra are left out; only functions that are about to start one import them.
    """
    hidden = (
        "accelerate av bitsandbytes docling_core fastapi gradio hypothesis llguidance multipart peft prometheus_client "
        "pyarrow pydantic pypdfium2 pytest ray sentencepiece starlette torchao torchvision transformers uvicorn"
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
    names = [module_name(path) for path in MODULES if package_part(path) not in MODULES_OF_EXTRAS]
    names += MODULES_ALLOWED_TO_MISS
    assert run_python(code, *names).split() == names


def test_the_quick_parts_import_nothing_heavy():
    names = [
        module_name(path)
        for path in MODULES
        if package_part(path) in LIGHTWEIGHT_MODULES and module_name(path) not in HEAVY_TASK_MODULES
    ]
    code = f"""
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = [module for module in {HEAVY_PACKAGES!r} if module in sys.modules]
    assert not heavy, f"import {{name}} brings {{heavy}}"
"""
    run_python(code, *names)


def test_public_names():
    assert idefics.__all__ == PUBLIC_NAMES == sorted(PUBLIC_NAMES, key=str.casefold)
    assert dir(idefics) == sorted(PUBLIC_NAMES)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = idefics.nonsense


@pytest.mark.parametrize("name", PUBLIC_NAMES[1:])
def test_public_names_are_explained(name):
    text = getattr(idefics, name).__doc__
    assert text, f"{name} has no docstring"
    assert not text.startswith(f"{name}("), f"{name} has only the docstring that dataclass writes"


def test_type_checkers_see_the_same_names():
    block = next(node for node in parse_file(PACKAGE / "__init__.py").body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == idefics._MODULE_BY_NAME


def test_the_version_is_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", idefics.__version__)


def count_lines(node):
    return node.end_lineno - node.lineno + 1


@cache
def read_budget_exceptions():
    """The exceptions that docs/design.md argues for: {"path" or "path::function": lines}."""
    table = (ROOT / "docs" / "design.md").read_text().split("## Budgets")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (\d+) \| (\S.*) \|$", table, re.M)
    return {name: int(lines) for name, lines, _ in rows}


def measure_sizes():
    for path in python_files("src", "scripts", "demo-model", "bench"):
        name = str(path.relative_to(ROOT))
        yield name, len(path.read_text(encoding="utf-8").splitlines()), FILE_BUDGET
        for node in ast.walk(parse_file(path)):
            if isinstance(node, FUNCTION_NODES):
                yield f"{name}::{node.name}", count_lines(node), FUNCTION_BUDGET


def test_budgets():
    over = [
        f"{name}: {n}" for name, n, most in measure_sizes() if n >= read_budget_exceptions().get(name, most)
    ]
    assert not over, "split these, or argue for them in docs/design.md, Budgets:\n" + "\n".join(over)


def test_exceptions_to_the_budgets_are_needed():
    needed = {name for name, n, most in measure_sizes() if n >= most}
    assert set(read_budget_exceptions()) <= needed, "strike these from docs/design.md, Budgets"


def public_objects(path):
    """(qualified name, node) of a file: public functions, classes and their public methods."""
    parents = [("", parse_file(path))]
    while parents:
        prefix, parent = parents.pop()
        for node in parent.body:
            if not isinstance(node, (ast.ClassDef, *FUNCTION_NODES)) or node.name.startswith("_"):
                continue
            decorators = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
            if decorators & {"overload", "setter"}:
                continue
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                parents.append((f"{prefix}{node.name}.", node))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_public_objects_are_explained(path):
    assert ast.get_docstring(parse_file(path)), "the module has no docstring"
    missing = [
        f"{location_of(path, node)} {name}"
        for name, node in public_objects(path)
        if not ast.get_docstring(node)
    ]
    assert not missing, "without a docstring:\n" + "\n".join(missing)


SHARED_BASES = {"Protocol", "NamedTuple", "TypedDict", "Enum", "Exception", "Generic"}


def test_no_two_classes_share_a_name():
    """One of them may implement the other's protocol, and several may implement one.

    `batch.ray.Answer` is left out: people name it together with its module, in `map_batches`.
    """
    found = {}
    for path in set(MODULES) - {PACKAGE / "batch" / "ray.py"}:
        for node in parse_file(path).body:
            if isinstance(node, ast.ClassDef):
                bases = {re.split(r"[.\[]", ast.unparse(base))[-1] for base in node.bases} - SHARED_BASES
                found.setdefault(node.name, []).append((location_of(path, node), bases | {node.name}))
    shared = [
        f"{name}: {', '.join(location for location, _ in places)}"
        for name, places in found.items()
        if len(places) > 1 and not set.intersection(*(bases - {name} for _, bases in places))
    ]
    assert not shared, "\n".join(shared)


# A dialect that readers had to learn. Pictures may show a door or a house: names of bundled files may say so.
RETIRED_WORDS = re.compile(
    r"(?<![A-Za-z])(besides?|strangers?|doors?(?!\.png)|houses?|wish(?:es)?|asking|growing"
    r"|(?:an?|the|one|each|every)[ _]looks?)"
    r"(?![A-Za-z])",
    re.I,
)
PROSE = [
    *python_files("src", "scripts", "bench", "examples"),
    ROOT / "pyproject.toml",
    ROOT / "Makefile",
    *sorted((ROOT / "src").rglob("*.[ch]")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("*.md")),
]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_retired_words_do_not_come_back(path):
    text = re.sub(r"([a-z])([A-Z])", r"\1_\2", path.read_text(encoding="utf-8"))
    lines = text.splitlines()
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for number, line in enumerate(lines, 1)
        for match in RETIRED_WORDS.finditer(line)
    ]
    assert not found, "\n".join(found)


def names_and_strings(path):
    """Every name and string of a file's code; docstrings and comments may cite their sources."""
    documented = (ast.Module, ast.ClassDef, *FUNCTION_NODES)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(parse_file(path))
        if isinstance(node, documented) and ast.get_docstring(node)
    }
    for node in ast.walk(parse_file(path)):
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
        f"{location_of(path, node)}: {word}"
        for path in MODULES
        if package_part(path) in ("nn", "engine", "processing", "generation", "tasks", "cli")
        for word, node in names_and_strings(path)
        if family.search(word)
    ]
    assert not leaks, "\n".join(leaks)


def test_only_frontends_print():
    assert not [
        location_of(path, node)
        for path in MODULES
        if LEVEL[package_part(path)] < FRONTEND_LEVEL
        for node in find_calls(path, "print")
    ]


def test_nobody_asks_an_object_what_it_is():
    """`hasattr`, and `getattr` with a default, guess where a type should know."""
    guesses = [location_of(path, node) for path in MODULES for node in find_calls(path, "hasattr")]
    guesses += [
        location_of(path, node)
        for path in MODULES
        for node in find_calls(path, "getattr")
        if len(node.args) == 3
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


def test_make_has_its_targets():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.M))
    promised = {
        "help",
        "demo",
        "test",
        "test-all",
        "test-oldest",
        "test-ray",
        "coverage",
        "check",
        "docs",
        "wheel",
        "bench",
        "clean",
    }
    assert promised == targets == set(re.search(r"^\.PHONY: (.*)$", text, re.M).group(1).split())
    named = {
        target
        for path in [ROOT / ".ci" / "run", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
        for target in re.findall(r"\bmake ([a-z-]+)\b(?=[`\n ]*$|`)", path.read_text(), re.M)
    }
    assert named <= targets


def test_the_constraint_is_within_the_requirement():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = next(map(Requirement, (line for line in project["dependencies"] if line.startswith("torch"))))
    constraint = Requirement((ROOT / "constraints.txt").read_text().splitlines()[-1])
    newest = next(iter(constraint.specifier)).version
    assert constraint.name == "torch" and required.specifier.contains(newest)
