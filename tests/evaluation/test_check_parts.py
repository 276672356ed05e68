"""Each check finds what it is for, in a checkpoint or an installation in which just that is wrong."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluation.spoilt_checkpoints import DEMO_FOLDERS
from idefics.errors import BadSetting
from idefics.evaluate.check import (
    activation_checks,
    engine_checks,
    kernel_checks,
    processing_checks,
    record_checks,
    released_checks,
    weight_checks,
)
from idefics.evaluate.check.activation_checks import find_broken_patterns, measure_activations
from idefics.evaluate.check.check_run import CheckSettings, list_checks, make_subject, run_checks
from idefics.evaluate.check.checks import CheckSubject
from idefics.evaluate.check.logits_record import RECORDS_FOLDER, LogitsRecord, make_record
from idefics.evaluate.check.weight_statistics import hashed_signs
from idefics.generation.load_settings import LoadSettings
from idefics.models import family_for
from models import checkpoint_folders
from models.released import RELEASED_BY_NAME

CPU = LoadSettings(device="cpu", dtype="float32")
REFERENCE = replace(CPU, kernels="reference")


@pytest.fixture
def demo_copy(tmp_path):
    """A function (name) -> a copy of a demo checkpoint, and a function that edits its tensors."""

    def make(name, edit=None):
        folder = shutil.copytree(DEMO_FOLDERS[name], tmp_path / name)
        if edit is not None:
            weights = load_file(folder / "model.safetensors")
            edit(weights)
            save_file(weights, folder / "model.safetensors")
        return CheckSubject(str(folder), CPU)

    return make


@pytest.fixture(scope="module")
def demo():
    """The demo checkpoint, with torch's plain kernels, so that its Python code can be broken."""
    subject = CheckSubject("demo", REFERENCE)
    yield subject
    subject.close()


def details(check, subject):
    outcome = check(subject)
    assert outcome.status == "off"
    return outcome.details


def test_tensors_that_are_missing_unused_or_misshapen(demo_copy):
    def edit(weights):
        weights["surplus"] = weights.pop("model.text_model.norm.weight")
        weights["lm_head.weight"] = weights["lm_head.weight"][:-1].clone()
        weights["model.vision_model.embeddings.position_ids"] = torch.arange(3)

    outcome = weight_checks.check_tensors(demo_copy("demo", edit))
    assert set(outcome.details) == {
        "model.text_model.norm.weight is missing",
        "surplus is not used by the model",
        "lm_head.weight is (2003, 160), the model has (2004, 160)",
    }
    assert "1 not needed (model.vision_model.embeddings.position_ids)" in outcome.measured


def test_a_model_that_cannot_be_loaded(demo_copy):
    subject = demo_copy("demo", lambda weights: weights.pop("model.text_model.norm.weight") is None)
    results = {result.check.name: result.outcome for result in run_checks(subject, quick=True)}
    assert results["tensors"].status == results["cached logits"].status == "off"
    assert "model.text_model.norm.weight" in results["cached logits"].details[0]
    assert results["batch"].measured == "the model cannot be loaded"
    assert results["special tokens"].status == "ok"


@pytest.mark.parametrize("value", [0.0, 20.0])
def test_gates(demo_copy, value):
    def edit(weights):
        for name in weights:
            if ".alpha_" in name:
                weights[name] = torch.full_like(weights[name], value)

    found = details(weight_checks.check_gates, demo_copy("demo-idefics1", edit))
    assert len(found) == (1 if value == 0 else 8)


def test_norms_and_siblings(demo_copy):
    def edit(weights):
        weights["model.text_model.layers.2.input_layernorm.weight"] *= 1e-5
        weights["model.text_model.layers.3.mlp.up_proj.weight"] *= 5

    subject = demo_copy("demo", edit)
    [norm] = details(weight_checks.check_norms, subject)
    assert norm.startswith("model.text_model.layers.2.input_layernorm.weight has a root mean square of")
    found = details(weight_checks.check_siblings, subject)
    assert [line.partition(":")[0] for line in found] == [
        "model.text_model.layers.2.input_layernorm.weight",
        "model.text_model.layers.3.mlp.up_proj.weight",
    ]


def test_patterns_of_siblings():
    """A pattern is broken by as much as half of the siblings' median below 0; three siblings at least."""
    layers = {"a": 0.2, "b": 0.3, "c": 0.2, "d": -0.1}
    assert find_broken_patterns({"n": layers}, 0.1) == (1, ["d"])
    assert find_broken_patterns({"n": {**layers, "d": -0.09}}, 0.1) == (1, [])
    assert find_broken_patterns({"n": {**layers, "d": 0.2}}, 0.1) == (4, [])
    assert find_broken_patterns({"n": {**layers, "d": 0.2}}, 0.21) == (0, [])
    del layers["a"]
    assert find_broken_patterns({"n": layers}, 0.1) == (0, [])


def test_small_layers_are_not_judged(demo, monkeypatch):
    """Theirs would be patterns by chance. The demo's MLPs have 448 units, its square projections 160 outputs."""
    monkeypatch.setattr(activation_checks, "MIN_OUTPUTS", 161)
    scores = measure_activations(demo)
    assert (sum(map(len, scores.gates.values())), len(scores.alignments)) == (5, 0)
    monkeypatch.setattr(activation_checks, "MIN_OUTPUTS", 160)
    assert sum(map(len, measure_activations(demo).alignments.values())) == 27


def splitmix_sign(number, seed):
    """The sign of a number by SplitMix64, in Python's integers."""
    mask = 2**64 - 1
    state = (number + (seed << 40)) * 0x9E3779B97F4A7C15 & mask
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
    state = (state ^ state >> 27) * 0x94D049BB133111EB & mask
    return 1 - 2 * (state >> 63)


def test_signs_are_the_same_on_every_machine():
    assert hashed_signs(3, 5, seed=1).flatten().tolist() == [splitmix_sign(n, 1) for n in range(20, 32)]
    assert abs(hashed_signs(10_000, 0, seed=2).mean(0)).max() < 0.03


def test_a_decode_step_whose_rotary_positions_are_off_by_one(demo, monkeypatch):
    model = demo.vlm.engine.model
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda x, positions, attn: forward(x, positions + (len(x) == 1), attn)
    )
    assert "log-probabilities differ" in details(engine_checks.check_decode, demo)[0]


def test_a_cache_that_loses_its_first_page(demo, monkeypatch):
    copied = demo.vlm.engine.score
    monkeypatch.setattr(
        demo.vlm.engine,
        "score",
        lambda prompt, continuations: copied(replace(prompt, ids=(5, *prompt.ids[1:])), continuations),
    )
    assert len(details(engine_checks.check_cached, demo)) == 3


def test_a_batch_that_mixes_rows(demo, monkeypatch):
    generate = engine_checks._generate

    def mixed(vlm, prompts):
        handles = generate(vlm, prompts)
        return handles[::-1]

    monkeypatch.setattr(engine_checks, "_generate", mixed)
    assert details(engine_checks.check_batch, demo)


def test_kernels_that_compute_something_else(demo, monkeypatch):
    resize = kernel_checks.resize
    monkeypatch.setattr(kernel_checks, "resize", lambda *args: resize(*args) ^ 1)
    monkeypatch.setattr(kernel_checks, "w8a8_matmul", lambda x, levels, *_: x.new_ones(len(x), len(levels)))
    found = details(kernel_checks.check_kernels, demo)
    assert [line.partition(":")[0] for line in found] == ["int8 products", "resizing"]


def test_reference_kernels_that_differ(monkeypatch):
    subject = CheckSubject("demo", CPU)
    logits = {name: value + torch.randn_like(value) for name, value in subject.fixed_logits.items()}
    monkeypatch.setitem(subject.__dict__, "fixed_logits", logits)
    assert len(details(engine_checks.check_reference_kernels, subject)) == 2
    assert len(details(kernel_checks.check_int8_agreement, subject)) == 1
    assert subject._vlm is None  # one copy in memory at a time
    subject.close()


def test_tokens_that_are_nearly_equally_likely_may_change_places():
    """At the second of two positions the likeliest token changes, by 0.08 nats."""
    prompts = {"a": SimpleNamespace(ids=(0, 1, 1), image_token_positions=())}
    one = {"a": torch.tensor([[0.0, 1.0], [0.04, 0.0], [0.0, 0.0]])}
    other = {"a": torch.tensor([[0.0, 1.0], [0.0, 0.08], [0.0, 0.0]])}
    assert engine_checks.compare_logits(one, other, prompts)[1] == 0.5
    assert engine_checks.compare_logits(one, other, prompts, 0.07)[1] == 0.5
    assert engine_checks.compare_logits(one, other, prompts, 0.09)[1] == 1.0


def test_a_layer_that_int4_cannot_hold(demo_copy):
    def edit(weights):
        weights["model.text_model.layers.0.mlp.up_proj.weight"][:, ::8] *= 100

    [line] = details(kernel_checks.check_layer_errors, demo_copy("demo", edit))
    assert line.startswith("model.text_model.layers.0.mlp.up_proj: int4 changes its weights by")


def test_a_tokenizer_that_loses_characters(demo, monkeypatch):
    monkeypatch.setattr(demo.processor.tokenizer, "decode", lambda ids, hidden_ids: "?")
    assert len(details(processing_checks.check_round_trips, demo)) == len(processing_checks.ROUND_TRIPS)


def test_idefics2_base_has_no_row_for_the_end_of_a_turn(tmp_path):
    folder = checkpoint_folders.write_hub_layout(tmp_path / "base", RELEASED_BY_NAME["idefics2-8b-base"])
    outcome = processing_checks.check_special_tokens(CheckSubject(str(folder), CPU))
    assert outcome.status == "ok"
    assert outcome.measured.endswith("without a row in the embedding: <end_of_utterance>")


def test_a_stop_id_without_a_row(demo_copy):
    subject = demo_copy("demo")
    (subject.folder / "generation_config.json").write_text('{"eos_token_id": 2004}')
    assert details(processing_checks.check_special_tokens, subject) == (
        "the stop id 2004 has no row in the embedding of 2004 rows",
    )


@pytest.mark.parametrize(
    ("template", "status"),
    [
        (
            "{% for m in messages %}{% for p in m.content %}{{ p.text or '<image>' }}{% endfor %}{% endfor %}",
            "skipped",
        ),
        (
            "{% for m in messages %}{% for p in m.content %}{{ '' if p.text else '<image>' }}{% endfor %}{% endfor %}",
            "off",
        ),
        ("no picture", "off"),
    ],
)
def test_templates(demo_copy, template, status):
    """One of its own, one that loses all texts, one that loses the picture."""
    subject = demo_copy("demo")
    (subject.folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert processing_checks.check_template(subject).status == status


@pytest.mark.parametrize("name", RELEASED_BY_NAME)
def test_released_settings_and_picture_hashes(tmp_path, monkeypatch, name):
    """Those of every row of the catalogue at its real size: facts, render and frames are known."""
    released = RELEASED_BY_NAME[name]
    (tmp_path / "config.json").write_text(json.dumps(released.config))
    (tmp_path / "generation_config.json").write_text(json.dumps(released.generation_config))
    subject = CheckSubject(str(tmp_path), CPU)
    assert released_checks.check_released(subject).status == "ok"
    config = family_for(released.config["model_type"]).read_image_config(
        subject.checkpoint.config, released.preprocessor
    )
    monkeypatch.setitem(subject.__dict__, "processor", SimpleNamespace(image_config=config))
    assert processing_checks.check_frames(subject).status == "ok"


def test_a_wrong_rotary_base_of_a_released_checkpoint(tmp_path):
    config = json.loads(json.dumps(RELEASED_BY_NAME["smolvlm-500m"].config))
    config["text_config"]["rope_theta"] = 10000.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 49279}')
    assert details(released_checks.check_released, CheckSubject(str(tmp_path), CPU)) == (
        "rotary base: 10000.0, released with 100000.0",
    )


def test_frames_that_changed(demo, monkeypatch):
    changed = processing_checks.preprocess_image

    def shifted(image, config):
        picture = changed(image, config)
        return replace(picture, frames=tuple(np.roll(frame, 1, axis=2) for frame in picture.frames))

    monkeypatch.setattr(processing_checks, "preprocess_image", shifted)
    assert "the frames have the hash" in details(processing_checks.check_frames, demo)[0]


def test_plain_english_surprises_the_demo(demo, monkeypatch):
    """It knows its picture book alone: English surprises it more than half as much as random ids."""
    monkeypatch.setattr(activation_checks, "MIN_TRAINED_PARAMETERS", 0)
    assert "nats a token for plain English" in details(activation_checks.check_plain_text, demo)[0]


@pytest.mark.parametrize(("best", "status", "num_mistakes"), [("blue", "off", 9), (None, "ok", 0)])
@pytest.mark.parametrize("kind", ["chat", "base"])
def test_colors_of_drawn_pictures(kind, best, status, num_mistakes):
    """A model that calls everything blue, and one that sees the colours; asked in a turn or to continue a text."""
    seen = []

    def score(items, continuations, **options):
        assert ("answer_start" in options) == (kind == "chat")
        pixels = items[0].parts[0].source if kind == "chat" else items[0]
        [color] = [name for name, rgb in activation_checks.COLORS.items() if (pixels[48, 48] == rgb).all()]
        seen.append(color)
        return None, [[float(text == f" {best or color}")] for text in continuations]

    processor = SimpleNamespace(prompt_format=SimpleNamespace(kind=kind))
    subject = SimpleNamespace(num_parameters=10**9, vlm=SimpleNamespace(score=score), processor=processor)
    outcome = activation_checks.check_drawn_pictures(subject)
    assert (outcome.status, len(outcome.details)) == (status, num_mistakes)
    assert seen == [*activation_checks.COLORS] * 3


@pytest.mark.parametrize("name", DEMO_FOLDERS)
def test_the_packaged_records_are_those_of_the_demos(name):
    """After new weights: `idefics check NAME --dtype float32 --kernels reference --record FILE`."""
    subject = CheckSubject(name, REFERENCE)
    found, stored = make_record(subject), LogitsRecord.read(RECORDS_FOLDER / f"{name}.json")
    subject.close()
    assert found.config == stored.config
    assert found.weights.keys() == stored.weights.keys()
    assert found.processing == stored.processing
    for weight, facts in stored.weights.items():
        assert found.weights[weight]["digest"] == facts["digest"]
        assert found.weights[weight]["dtypes"] == facts["dtypes"] == ["BF16"]
        for number in ("rms", "projections"):
            assert found.weights[weight][number] == pytest.approx(facts[number], abs=1e-4)
    for prompt, facts in stored.prompts.items():
        assert found.prompts[prompt]["ids"] == facts["ids"]
        assert found.prompts[prompt]["logprobs"] == pytest.approx(facts["logprobs"], abs=1e-3)


@pytest.fixture
def demo_record():
    return LogitsRecord.read(RECORDS_FOLDER / "demo.json")


def test_small_changes_in_the_same_number_format(demo_copy, demo_record):
    """Two rows are exchanged, numbers have noise of 1 %: too small for projections."""

    up_proj = "model.text_model.layers.0.mlp.up_proj.weight"

    def edit(weights):
        weights["lm_head.weight"][[1000, 1001]] = weights["lm_head.weight"][[1001, 1000]]
        weight = weights[up_proj].float()
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        weights[up_proj] = (weight + 0.01 * weight.std() * noise).bfloat16()

    subject = demo_copy("demo", edit)
    subject.expected = demo_record
    assert details(record_checks.check_recorded_weights, subject) == tuple(
        f"{name} holds a few other numbers than in the record, or slightly different ones"
        for name in ("lm_head.weight", up_proj)
    )


def test_weights_in_another_number_format(demo_copy, demo_record):
    def edit(weights):
        weights |= {name: weight.float() for name, weight in weights.items()}

    subject = demo_copy("demo", edit)
    subject.expected = demo_record
    outcome = record_checks.check_recorded_weights(subject)
    assert (outcome.status, outcome.measured[:28]) == ("ok", "118 weights, 0 with equal by")


def test_the_limit_of_recorded_logits_is_that_of_the_coarsest_rounding(demo, demo_record, monkeypatch):
    def limit(record, subject=demo):
        monkeypatch.setattr(subject, "expected", record)
        return record_checks.record_limit(subject)

    assert limit(demo_record) == 0.002
    assert limit(replace(demo_record, rounding="16 bits")) == 0.05
    assert limit(replace(demo_record, rounding="quantised")) == 0.5
    float32 = {name: {**facts, "dtypes": ["F32"]} for name, facts in demo_record.weights.items()}
    assert limit(replace(demo_record, weights=float32)) == 0.05
    with closing(CheckSubject("demo", replace(CPU, dtype="float16"))) as rounded:
        assert limit(demo_record, rounded) == 0.05
    assert limit(demo_record, CheckSubject("demo", replace(CPU, quantize="int8"))) == 0.5


def test_small_files_that_differ_from_the_record(demo_copy, demo_record):
    """Two tokens are exchanged, the template, a mean and a stop id edited."""
    subject = demo_copy("demo")
    subject.expected = demo_record

    def edit(name, change):
        path = subject.folder / name
        change(content := json.loads(path.read_text()))
        path.write_text(json.dumps(content))

    def exchange(tokenizer):
        vocabulary = tokenizer["model"]["vocab"]
        a, b = list(vocabulary)[1000:1002]
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]

    edit("tokenizer.json", exchange)
    edit("chat_template.json", lambda file: file.update(chat_template=file["chat_template"] + " "))
    edit("preprocessor_config.json", lambda config: config.update(image_mean=[0.5, 0.5, 0.4]))
    edit("generation_config.json", lambda config: config.update(eos_token_id=3))
    found = details(record_checks.check_recorded_config, subject)
    assert [line.partition(" is ")[0] for line in found] == [
        *("chat template", "frames of a picture", "ids that end an answer"),
        *("pictures.mean", "stop_ids", "vocabulary"),
    ]


def test_a_record_of_another_model(demo, demo_record, monkeypatch):
    """Without one of the prompts, and with an id that the model does not have."""
    [*prompts] = demo_record.prompts.items()
    prompts = {prompts[0][0]: {**prompts[0][1], "top": [[10**6, -1.0]]}, **dict(prompts[1:2])}
    monkeypatch.setattr(demo, "expected", replace(demo_record, prompts=prompts))
    assert details(record_checks.check_recorded_logits, demo) == (
        "text: the likeliest id 1000000 has log-probability -inf, recorded -1.000",
        "two pictures: the prompt is not in the record",
    )


def test_picture_settings_of_a_released_checkpoint_that_are_edited(demo, monkeypatch):
    config = replace(demo.processor.image_config, mean=(0.45, 0.5, 0.5))
    monkeypatch.setitem(demo.__dict__, "processor", SimpleNamespace(image_config=config))
    assert details(processing_checks.check_frames, demo) == (
        "preprocessor_config.json is not the released one",
    )
    monkeypatch.setitem(demo.__dict__, "entry", None)
    assert processing_checks.check_frames(demo).status == "skipped"


def test_files_that_are_no_records(tmp_path):
    path = tmp_path / "record.json"
    for content in ("", "[]", '{"record": 0}', '{"record": 1}'):
        path.write_text(content)
        with pytest.raises(BadSetting, match="is no record of this version"):
            make_subject("demo", CPU, CheckSettings(against=path))


def test_the_list_of_checks(demo):
    names = [check.name for check in list_checks(demo, quick=False)]
    assert len(set(names)) == len(names)
    quick = {check.name for check in list_checks(demo, quick=True)}
    assert set(names) - quick == {"reference kernels", "quantised layers", "int8 agreement"}
