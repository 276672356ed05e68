"""Keywords of model cards for `from_pretrained` of processors and tokenizers: which files are read, or nothing."""

import os
import shutil
import subprocess
import sys

import pytest

from compat.processors_tiny import idefics3
from idefics.compat.auto import AutoProcessor, AutoTokenizer
from idefics.compat.folders import IGNORED, IGNORED_BY_PROCESSORS, folder_and_rest
from idefics.compat.image_processing_in_text import Idefics3ImageProcessor
from idefics.compat.processing_in_text import Idefics3Processor
from idefics.compat.tokenization import PreTrainedTokenizer
from idefics.errors import BadSetting, ModelNotFound
from weights.fake_hub import fake_hub

CALLS = (AutoProcessor, AutoTokenizer, Idefics3Processor, Idefics3ImageProcessor, PreTrainedTokenizer)
each_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    idefics3().save_pretrained(folder)
    return folder


def content(made):
    """What was read, as far as two can be compared."""
    if isinstance(made, PreTrainedTokenizer):
        return made.get_vocab(), made.special_tokens_map, made.chat_template
    if isinstance(made, Idefics3ImageProcessor):
        return made.to_dict()
    return content(made.tokenizer), content(made.image_processor), made.image_seq_len, made.chat_template


@each_call
def test_keywords_that_change_nothing_change_nothing(saved, call):
    keywords = dict.fromkeys(IGNORED_BY_PROCESSORS, True)
    where = {
        "revision": "main",
        "cache_dir": "/nowhere",
        "token": True,
        "use_auth_token": None,
        "subfolder": "",
    }
    made = call.from_pretrained(saved, **keywords, **where, local_files_only=False)
    assert content(made) == content(call.from_pretrained(saved))


@each_call
def test_a_subfolder_is_where_the_files_are(saved, tmp_path, call):
    shutil.copytree(saved, tmp_path / "processor")
    made = call.from_pretrained(tmp_path, subfolder="processor")
    assert content(made) == content(call.from_pretrained(saved))
    with pytest.raises(ModelNotFound, match="other"):
        call.from_pretrained(tmp_path, subfolder="other")


def test_what_a_folder_cannot_have_is_refused(saved):
    with pytest.raises(BadSetting, match=r"'v2'.*only the hub has revisions"):
        AutoProcessor.from_pretrained(saved, revision="v2")
    with pytest.raises(BadSetting, match="acme/whole is not a folder"):
        AutoProcessor.from_pretrained("acme/whole", subfolder="processor")


def test_other_keywords_are_left():
    folder, rest = folder_and_rest(
        "demo", {"size": 3, "use_fast": 1}, ignored=IGNORED_BY_PROCESSORS, needs="files"
    )
    assert (folder / "config.json").is_file()
    assert rest == {"size": 3}
    _, rest = folder_and_rest("demo", {"use_fast": 1}, ignored=IGNORED, needs="weights")
    assert rest == {"use_fast": 1}, "a model has no such keyword"


FROM_THE_HUB = """
import sys
from pathlib import Path
from idefics.compat.folders import IGNORED, folder_and_rest
from idefics.errors import ModelNotFound
cache = Path(sys.argv[1])

def folder(**keywords):
    return folder_and_rest("acme/gated", keywords, ignored=IGNORED, needs="config")[0]

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
    with fake_hub({"acme/gated": files}, token="hf_secret") as (address, _):
        here = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", FROM_THE_HUB, tmp_path],
            env={"PATH": os.environ["PATH"]} | here,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "neither a folder nor a model on the hub" in done.stdout
