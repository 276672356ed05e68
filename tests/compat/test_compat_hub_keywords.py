"""Arguments of `from_pretrained` of processors and tokenizers that choose files, or have no effect."""

import os
import shutil
import subprocess
import sys

import pytest

from compat.processors_tiny import make_idefics3_processor
from idefics.compat.image_processing_inline import Idefics3ImageProcessor
from idefics.compat.keyword_arguments import IGNORED_PROCESSOR_KWARGS
from idefics.compat.pretrained import MODEL_FILES, PROCESSOR_FILES, resolve_folder_and_settings
from idefics.compat.processing_auto import AutoProcessor, AutoTokenizer
from idefics.compat.processing_inline import Idefics3Processor
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.errors import BadSetting, ModelNotFound
from weights.fake_hub import run_fake_hub

CALLS = (AutoProcessor, AutoTokenizer, Idefics3Processor, Idefics3ImageProcessor, PreTrainedTokenizer)
each_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)


@pytest.fixture(scope="module")
def saved_processor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    make_idefics3_processor().save_pretrained(folder)
    return folder


def comparable_content(made):
    """What was read, as far as two can be compared."""
    if isinstance(made, PreTrainedTokenizer):
        return made.get_vocab(), made.special_tokens_map, made.chat_template
    if isinstance(made, Idefics3ImageProcessor):
        return made.to_dict()
    return (
        comparable_content(made.tokenizer),
        comparable_content(made.image_processor),
        made.image_seq_len,
        made.chat_template,
    )


@each_call
def test_keywords_that_change_nothing_change_nothing(saved_processor, call):
    keywords = dict.fromkeys(IGNORED_PROCESSOR_KWARGS, True)
    where = {
        "revision": "main",
        "cache_dir": "/nowhere",
        "token": True,
        "use_auth_token": None,
        "subfolder": "",
    }
    made = call.from_pretrained(saved_processor, **keywords, **where, local_files_only=False)
    assert comparable_content(made) == comparable_content(call.from_pretrained(saved_processor))


@each_call
def test_a_subfolder_is_where_the_files_are(saved_processor, tmp_path, call):
    shutil.copytree(saved_processor, tmp_path / "processor")
    made = call.from_pretrained(tmp_path, subfolder="processor")
    assert comparable_content(made) == comparable_content(call.from_pretrained(saved_processor))
    with pytest.raises(ModelNotFound, match="other"):
        call.from_pretrained(tmp_path, subfolder="other")


def test_what_a_folder_cannot_have_is_refused(saved_processor):
    with pytest.raises(BadSetting, match=r"'v2'.*only the hub has revisions"):
        AutoProcessor.from_pretrained(saved_processor, revision="v2")
    with pytest.raises(BadSetting, match="acme/whole is not a folder"):
        AutoProcessor.from_pretrained("acme/whole", subfolder="processor")


def test_other_keywords_are_left():
    folder, rest = resolve_folder_and_settings("Any", "demo", {"size": 3, "use_fast": 1}, PROCESSOR_FILES)
    assert (folder / "config.json").is_file()
    assert rest == {"size": 3}
    _, rest = resolve_folder_and_settings("Any", "demo", {"use_fast": 1}, MODEL_FILES)
    assert rest == {"use_fast": 1}, "a model has no such keyword"


HUB_SCRIPT = """
import sys
from pathlib import Path
from idefics.compat.pretrained import CONFIG_FILES, resolve_folder_and_settings
from idefics.errors import ModelNotFound
cache = Path(sys.argv[1])

def folder(**keywords):
    return resolve_folder_and_settings("Any", "acme/gated", keywords, CONFIG_FILES)[0]

here = folder(token="hf_secret", cache_dir=cache / "here")
assert (cache / "here") in here.parents and (here / "config.json").is_file(), here
assert folder(cache_dir=cache / "here") == here, "what is in the cache is not asked for again"
assert folder(use_auth_token="hf_secret", cache_dir=str(cache / "old")) != here
try:
    folder(cache_dir=cache / "empty")
except ModelNotFound as error:
    print(error)
"""


def test_a_token_and_a_cache_are_used(tmp_path):
    files = dict.fromkeys(("tokenizer.json", "preprocessor_config.json"), b"{}")
    files |= {"config.json": b'{"model_type": "idefics3"}', "model.safetensors": b"w"}
    with run_fake_hub({"acme/gated": files}, token="hf_secret") as (address, _):
        here = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", HUB_SCRIPT, tmp_path],
            env={"PATH": os.environ["PATH"]} | here,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "neither a folder nor a model on the hub" in done.stdout
