"""Loading with files of encoded pictures: what their key depends on, when they are used, and a second process."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import idefics
from idefics import Message, Picture, models, user
from idefics.config import QuantizationConfig, VisionConfig
from idefics.demo import pictures
from idefics.engine import prefill
from idefics.engine.native import native_model
from idefics.errors import BadSetting
from idefics.generation import cache_files
from idefics.generation.cache_files import (
    compute_model_key,
    count_tower_multiplications,
    feature_cache_folder,
    open_feature_cache,
)
from idefics.generation.load_settings import ComputePlan, LoadSettings
from idefics.native import library
from idefics.nn.attention_backends import sdpa_attention
from idefics.quant.autotune import KernelChoice

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="features are not stored on Windows")

DEMO_FOLDER = Path(idefics.__file__).parent / "demo" / "idefics3"
CPU = torch.device("cpu")
PLAN = ComputePlan(torch.float32, "file", KernelChoice(), sdpa_attention)
INT8 = QuantizationConfig(kind="int8")


@pytest.fixture
def user_cache(tmp_path, monkeypatch):
    """An empty cache folder of the user, in which features of small models are stored too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(cache_files, "MIN_TOWER_MULTIPLICATIONS", 0)
    return tmp_path / "user"


@pytest.fixture
def checkpoint(tmp_path):
    return models.read_checkpoint(shutil.copytree(DEMO_FOLDER, tmp_path / "checkpoint"))


def test_the_folder_is_in_the_cache_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert feature_cache_folder() == tmp_path / "idefics" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert feature_cache_folder() == tmp_path / "me" / ".cache" / "idefics" / "features"


CHANGED_SETTINGS = {
    "dtype": {"plan": replace(PLAN, dtype=torch.bfloat16)},
    "storage": {"plan": replace(PLAN, storage=torch.float16)},
    "onednn": {"plan": replace(PLAN, kernel_choice=KernelChoice(onednn=True))},
    "integers": {"plan": replace(PLAN, kernel_choice=KernelChoice(integers=True))},
    "bfloat16": {"plan": replace(PLAN, kernel_choice=KernelChoice(bfloat16=True))},
    "torch's products": {"plan": replace(PLAN, kernel_choice=None)},
    "quantization": {"quantization": INT8},
    "kind": {"quantization": QuantizationConfig(kind="int4")},
    "skipped layers": {"quantization": replace(INT8, skip=("lm_head",))},
    "compute dtype": {"quantization": replace(INT8, compute_dtype="float16")},
    "attention": {"settings": LoadSettings(attn_implementation="eager")},
    "reference": {"settings": LoadSettings(kernels="reference")},
}


def make_key(checkpoint, plan=PLAN, quantization=None, settings=LoadSettings()):  # noqa: B008  # immutable
    return compute_model_key(checkpoint, plan, quantization, settings)


def test_each_setting_that_changes_numbers_changes_the_key(checkpoint):
    keys = {make_key(checkpoint)} | {make_key(checkpoint, **change) for change in CHANGED_SETTINGS.values()}
    keys.add(make_key(replace(checkpoint, quantization=INT8)))
    vision = replace(checkpoint.config.vision, norm_epsilon=1e-3)
    keys.add(make_key(replace(checkpoint, config=replace(checkpoint.config, vision=vision))))
    assert len(keys) == 1 + len(CHANGED_SETTINGS) + 2


def test_settings_that_change_no_number_share_a_key(checkpoint):
    others = LoadSettings(kernels="autotune", kv_cache="1GB", batch_rows=3, remote_images="off", offline=True)
    assert make_key(checkpoint, settings=others) == make_key(checkpoint)


def edit_in_place(file):
    """Changes one byte of the last weight, and restores the time of the last change."""
    status = file.stat()
    with file.open("r+b") as content:
        content.seek(-1, os.SEEK_END)
        (last,) = content.read(1)
        content.seek(-1, os.SEEK_END)
        content.write(bytes([last ^ 1]))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_copy(file):
    """Puts another file with the same content, size and time in its place."""
    shutil.copy2(file, file.with_name("copy"))
    file.with_name("copy").replace(file)


@pytest.mark.parametrize(
    "change", [edit_in_place, replace_by_copy, lambda file: file.write_bytes(file.read_bytes() + b"x")]
)
def test_an_edited_or_replaced_file_changes_the_key(checkpoint, change):
    before = make_key(checkpoint)
    assert make_key(checkpoint) == before
    change(checkpoint.folder / "model.safetensors")
    assert make_key(checkpoint) != before


def test_kernels_code_and_processor_change_the_key(checkpoint, monkeypatch, tmp_path):
    keys = [make_key(checkpoint)]
    monkeypatch.setattr(library, "LIBRARY_PATH", tmp_path / "other.so")
    keys.append(make_key(checkpoint))
    library.LIBRARY_PATH.write_bytes(b"kernels")
    keys.append(make_key(checkpoint))
    monkeypatch.setattr(cache_files, "processor_key", lambda: "another processor")
    keys.append(make_key(checkpoint))
    monkeypatch.setattr(cache_files, "KEY_CODE", ("nn",))
    keys.append(make_key(checkpoint))
    assert len(set(keys)) == len(keys)


def test_the_code_that_computes_keys_and_values_is_part_of_the_key():
    files = set(cache_files._key_code_files())
    assert {Path(module.__file__) for module in (prefill, native_model)} <= files


def test_small_parts_of_large_weights_are_read(checkpoint, monkeypatch):
    """The key is ready before a model of gigabytes could be read."""
    with (checkpoint.folder / "model.safetensors").open("ab") as file:
        file.truncate(10**12)  # a sparse file
    make_key(checkpoint)


@pytest.mark.parametrize(
    ("feature_cache", "variable", "expected"),
    [
        (None, None, True),
        (None, "", True),
        (None, "1", True),
        (None, "off", False),
        (None, "0", False),
        (None, "False", False),
        (False, "1", False),
        (True, "0", True),
    ],
)
def test_the_flag_and_the_environment(user_cache, checkpoint, monkeypatch, feature_cache, variable, expected):
    monkeypatch.delenv("IDEFICS_FEATURE_CACHE", raising=False)
    if variable is not None:
        monkeypatch.setenv("IDEFICS_FEATURE_CACHE", variable)
    settings = LoadSettings(feature_cache=feature_cache)
    assert (open_feature_cache(checkpoint, PLAN, CPU, None, settings) is not None) == expected


def test_values_that_mean_nothing_are_refused(monkeypatch):
    monkeypatch.setenv("IDEFICS_FEATURE_CACHE", "nope")
    with pytest.raises(BadSetting, match="IDEFICS_FEATURE_CACHE is 'nope'; give 1 or 0"):
        idefics.load("demo")
    with pytest.raises(BadSetting, match="feature_cache"):
        idefics.load("demo", feature_cache="yes")


def test_a_gpu_and_several_devices_use_no_files(user_cache, checkpoint):
    def opened(placement):
        return open_feature_cache(checkpoint, PLAN, placement, None, LoadSettings())

    assert opened(CPU) is not None
    assert opened(torch.device("cuda")) is None
    device_map = idefics.load("demo", device_map={"": "cpu"})
    assert device_map.engine.encoder_cache.feature_cache is None


def test_features_of_small_towers_are_not_stored(monkeypatch, tmp_path):
    """Encoding is quicker than reading a file there; every released checkpoint is stored."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with idefics.load("demo", device="cpu") as vlm:
        vlm.ask(pictures()[0], "What is it?")
        assert vlm.engine.encoder_cache.feature_cache is None
    assert list(tmp_path.iterdir()) == []
    smolvlm = VisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_layers=12,
        num_heads=12,
        image_size=512,
        patch_size=16,
        norm_epsilon=1e-6,
        activation="gelu_pytorch_tanh",
    )
    assert count_tower_multiplications(smolvlm) > 80 * cache_files.MIN_TOWER_MULTIPLICATIONS


@pytest.mark.parametrize("model", ["demo", "demo-idefics1"])
@pytest.mark.parametrize("load_options", [{}, {"quantize": "int8"}, {"kernels": "reference"}], ids=str)
def test_a_second_model_answers_equally_without_encoding(user_cache, model, load_options):
    answers, counts = [], []
    for _ in range(2):
        with idefics.load(model, device="cpu", **load_options) as vlm:
            answers.append(vlm.caption(pictures()[:2], logprobs=True, max_new_tokens=8))
            counts.append(vlm.engine.encoder_cache.num_encoded)
    assert counts == [2, 0]
    assert [one.text for one in answers[0]] == [one.text for one in answers[1]]
    assert [one.logprobs for one in answers[0]] == [one.logprobs for one in answers[1]]
    with idefics.load(model, device="cpu", **load_options, feature_cache=False) as vlm:
        assert (
            vlm.caption(pictures()[:2], logprobs=True, max_new_tokens=8)[0].logprobs == answers[0][0].logprobs
        )
        assert vlm.engine.encoder_cache.num_encoded == 2


@pytest.mark.parametrize(
    "load_options",
    [
        {},
        {"quantize": "int8"},
        {"quantize": "int4"},
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"kernels": "reference"},
    ],
    ids=str,
)
def test_a_second_model_reads_the_beginning_of_the_prompt(user_cache, load_options):
    """And its answers equal those of one that computes the whole prompt, to the last bit."""

    def ask(question, feature_cache):
        with idefics.load("demo", device="cpu", **load_options, feature_cache=feature_cache) as vlm:
            parts = ["Look at the picture. " * 9, Picture(pictures()[0]), question]
            answer = vlm.generate(parts, logprobs=True, max_new_tokens=8)
            vlm.loaded_model.store_prefix()
            return answer, vlm.engine.encoder_cache.num_encoded

    first, _ = ask("What is it?", True)
    second, num_encoded = ask("Which colours does it have?", True)
    alone, _ = ask("Which colours does it have?", False)
    assert (first.usage.cached_tokens, num_encoded, alone.usage.cached_tokens) == (0, 0, 0)
    assert 40 < second.usage.cached_tokens < second.usage.prompt_tokens
    assert (second.text, second.logprobs) == (alone.text, alone.logprobs)
    assert len(list((user_cache / "idefics" / "prefixes").iterdir())) == 1


def test_another_system_prompt_is_another_beginning(user_cache):
    counts = []
    for instruction in ("Answer in French.", "Answer in German.", "Answer in French."):
        with idefics.load("demo", device="cpu") as vlm:
            messages = [Message("system", (instruction,)), user(Picture(pictures()[0]), "What is it?")]
            answer = vlm.chat(messages)
            counts.append(answer.usage.cached_tokens > 0)
            vlm.loaded_model.store_prefix()
    assert counts == [False, False, True]


def test_without_files_of_pictures_there_are_none_of_prompts(user_cache):
    with idefics.load("demo", device="cpu", feature_cache=False) as vlm:
        vlm.ask(pictures()[0], "What is it?")
        vlm.loaded_model.store_prefix()
    assert not user_cache.exists()


SECOND_PROCESS = """
import json, sys
import idefics
from idefics.generation import cache_files
cache_files.MIN_TOWER_MULTIPLICATIONS = 0
with idefics.load("demo", device="cpu") as vlm:
    answer = vlm.ask(sys.argv[1], "What is it?", logprobs=True)
    print(json.dumps([vlm.engine.encoder_cache.num_encoded, answer.text, answer.logprobs]))
"""


def test_a_second_process_does_not_encode_the_picture(user_cache):
    command = [sys.executable, "-c", SECOND_PROCESS, str(pictures()[0])]
    lines = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    (first_count, *first), (second_count, *second) = map(json.loads, lines)
    assert (first_count, second_count) == (1, 0)
    assert first == second
    assert len(list((user_cache / "idefics" / "features").iterdir())) == 1
