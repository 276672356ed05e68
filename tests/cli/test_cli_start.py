"""What a start must not wait for: modules that are never imported, or only once they are needed."""

import subprocess
import sys

import pytest

from idefics.demo import pictures

# What no answer about a picture in a file needs. torch._dynamo is its compiler, which takes seconds.
UNUSED = (
    "accelerate",
    "av",
    "bitsandbytes",
    "httpx",
    "huggingface_hub",
    "idefics.compat",
    "idefics.quant.blocks",
    "requests",
    "rich",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torchao",
    "torchvision",
    "transformers",
)
ASK = ["ask", str(pictures()[0]), "What is it?", "--model", "demo", "--max-new-tokens", "1"]


def modules_after(code, *arguments):
    """The modules that a fresh interpreter has imported after some code."""
    code = f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return set(done.stderr.split())


def test_importing_the_package_imports_nothing_but_the_standard_library():
    foreign = {
        name
        for name in modules_after("import idefics") - modules_after("import importlib, typing")
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "idefics"}
    }
    assert not foreign


@pytest.mark.parametrize("quantize", [[], ["--quantize", "int8"]], ids=["whole", "int8"])
def test_an_answer_imports_only_what_it_uses(quantize):
    code = "from idefics.cli.main import run; assert run(sys.argv[1:]) == 0"
    imported = modules_after(code, *ASK, *quantize)
    assert "torch" in imported
    assert not imported & set(UNUSED)
