"""Fields of generation_config.json have the effect that they have in transformers, or are refused by name."""

import json

import pytest
import torch

import idefics
from idefics.errors import BadSetting, BrokenCheckpoint, UnsupportedModel
from idefics.generation.loading import LoadedModel
from idefics.generation_fields import FIELDS_WITHOUT_EFFECT, OUTPUT_FIELDS, SEARCH_FIELDS
from idefics.processing.checkpoint_generation_config import PARSER_BY_FIELD, CheckpointGenerationConfig
from models import doctags, tiny

MAX_NEW_TOKENS = 16
TEXTS = ["User: What is on the table? A red ball.", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    return tiny.write_complete_checkpoint(tmp_path_factory.mktemp("rules"), tiny.IDEFICS3)


@pytest.fixture(scope="module")
def vlm(folder):
    return idefics.load(folder)


@pytest.fixture(scope="module")
def reference(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.Idefics3ForConditionalGeneration.from_pretrained(folder).eval()


def with_generation_config(vlm, **fields):
    """The same model, as if its file had these fields."""
    vocabulary = vlm.engine.model.layout.vocab_size
    config = CheckpointGenerationConfig.from_dict(fields, vocabulary)
    return idefics.Idefics(LoadedModel(vlm.processor, vlm.engine, vlm.loaded_model.stop_ids, config))


def answer_ids(vlm, prompt, **options):
    stream = vlm.submit(prompt, max_new_tokens=MAX_NEW_TOKENS, **options)
    list(stream)
    return stream.answer


def reference_ids(reference, vlm, prompt, fields, **options):
    """The ids that transformers generates, without the stop id at the end."""
    from transformers import GenerationConfig

    words = [[id] for id in sorted(vlm.processor.image_placeholder_ids)] + (fields.get("bad_words_ids") or [])
    config = GenerationConfig(
        **{**fields, "bad_words_ids": words},
        eos_token_id=sorted(vlm.loaded_model.stop_ids),
        pad_token_id=0,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        **options,
    )
    ids = torch.tensor([prompt.ids])
    with torch.inference_mode():
        out = reference.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    reference_answer = out[0, len(prompt) :].tolist()
    return tuple(
        reference_answer[: len(reference_answer) - (reference_answer[-1] in vlm.loaded_model.stop_ids)]
    )


def fields_that_change(free, stop):
    """Settings that change an answer which began with the ids `free`."""
    return {
        "suppress_tokens": {"suppress_tokens": list(free[:2])},
        "begin_suppress_tokens": {"begin_suppress_tokens": [free[0]]},
        "a word of one id": {"bad_words_ids": [[free[1]]]},
        "a word of two ids": {"bad_words_ids": [list(free[1:3]), list(free[3:6])]},
        "a stop id alone is no bad word": {"bad_words_ids": [[stop], [free[0]]]},
        "repetition_penalty": {"repetition_penalty": 1.9},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
        "two in a row": {"no_repeat_ngram_size": 2, "repetition_penalty": 0.4},
        "forced_eos_token_id": {"forced_eos_token_id": stop},
        "forced list": {"forced_eos_token_id": [free[3], stop]},
        "forced_bos_token_id": {"forced_bos_token_id": free[4]},
        "all": {
            "begin_suppress_tokens": [free[0]],
            "no_repeat_ngram_size": 2,
            "repetition_penalty": 1.3,
            "bad_words_ids": [list(free[2:4])],
            "forced_eos_token_id": stop,
            "renormalize_logits": True,
            "temperature": 0.3,
            "top_p": 0.5,
        },
    }


NAMES = list(fields_that_change(range(10), 9))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_transformers(vlm, reference, text, name):
    prompt = vlm.prompt([text])
    free = answer_ids(vlm, prompt).tokens
    assert free == reference_ids(reference, vlm, prompt, {})
    fields = fields_that_change(free, min(vlm.loaded_model.stop_ids))[name]
    got = answer_ids(with_generation_config(vlm, **fields), prompt).tokens
    search = {field: value for field, value in fields.items() if field not in SEARCH_FIELDS}
    assert got == reference_ids(reference, vlm, prompt, search)
    if name != "forced_bos_token_id" or len(prompt) == 1:
        assert got != free


@pytest.mark.parametrize("beams", [2, 4])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", NAMES)
def test_beams_are_those_of_transformers(vlm, reference, text, name, beams):
    prompt = vlm.prompt([text])
    free = answer_ids(vlm, prompt, num_beams=beams).tokens
    assert free == reference_ids(reference, vlm, prompt, {}, num_beams=beams)
    fields = fields_that_change(answer_ids(vlm, prompt).tokens, min(vlm.loaded_model.stop_ids))[name]
    search = {field: value for field, value in fields.items() if field not in SEARCH_FIELDS}
    got = answer_ids(with_generation_config(vlm, **fields), prompt, num_beams=beams).tokens
    assert got == reference_ids(reference, vlm, prompt, search, num_beams=beams)


@pytest.mark.parametrize("penalty", [1.0, 1.7])
@pytest.mark.parametrize("text", TEXTS)
def test_beams_are_renormalized_as_in_transformers(vlm, reference, text, penalty):
    prompt = vlm.prompt([text])
    fields = {"renormalize_logits": True, "repetition_penalty": penalty, "no_repeat_ngram_size": 2}
    got = answer_ids(with_generation_config(vlm, **fields), prompt, num_beams=3, logprobs=True)
    assert got.tokens == reference_ids(reference, vlm, prompt, fields, num_beams=3)
    assert len(got.logprobs) == len(got.tokens)


@pytest.mark.parametrize("beams", [1, 3])
def test_after_a_forced_first_id_others_are_suppressed(vlm, reference, beams):
    prompt = vlm.prompt(["a"])
    assert len(prompt) == 1
    first = answer_ids(vlm, prompt).tokens[4]
    forced = {"forced_bos_token_id": first}
    _, second, *_ = answer_ids(with_generation_config(vlm, **forced), prompt, num_beams=beams).tokens
    fields = forced | {"begin_suppress_tokens": [second]}
    got = answer_ids(with_generation_config(vlm, **fields), prompt, num_beams=beams).tokens
    assert got == reference_ids(reference, vlm, prompt, fields, num_beams=beams)
    assert got[0] == first and got[1] != second


def with_early_stop_id(vlm, prompt, after):
    """The same model, whose stop id is the answer's id after so many."""
    stop = answer_ids(vlm, prompt).tokens[after]
    return idefics.Idefics(LoadedModel(vlm.processor, vlm.engine, frozenset({stop})))


@pytest.mark.parametrize(
    "fields", [{"min_new_tokens": 6}, {"min_length": 20}, {"min_new_tokens": 3, "min_length": 400}]
)
def test_answers_have_their_minimum_length(vlm, reference, fields):
    prompt = vlm.prompt([TEXTS[0]])
    short = with_early_stop_id(vlm, prompt, after=2)
    free = answer_ids(short, prompt).tokens
    assert len(free) <= 2
    got = answer_ids(with_generation_config(short, **fields), prompt).tokens
    assert got == reference_ids(reference, short, prompt, fields)
    beams = answer_ids(with_generation_config(short, **fields), prompt, num_beams=3).tokens
    assert beams == reference_ids(reference, short, prompt, fields, num_beams=3)
    assert len(beams) >= fields.get("min_new_tokens", max(0, fields.get("min_length", 0) - len(prompt)))
    least = fields.get("min_new_tokens", max(0, fields.get("min_length", 0) - len(prompt)))
    assert len(got) >= least > len(free)


def test_stop_strings_of_the_file_end_answers_as_the_callers_do(tmp_path):
    vlm = idefics.load(doctags.write_checkpoint(tmp_path / "a", stop_strings=["<fcel>b"]))
    assert vlm.generate(["x"]).text == doctags.PAGE_TEXT.partition("<fcel>b")[0]
    assert vlm.generate(["x"], stop="<otsl>").text == doctags.PAGE_TEXT.partition("<otsl>")[0]


def test_options_of_the_call_override_the_file(vlm):
    prompt, ruler = vlm.prompt([TEXTS[0]]), with_generation_config(vlm, repetition_penalty=1.9)
    assert answer_ids(ruler, prompt).tokens != answer_ids(vlm, prompt).tokens
    assert answer_ids(ruler, prompt, repetition_penalty=1.0).tokens == answer_ids(vlm, prompt).tokens


def test_answers_are_greedy_unless_asked_whatever_the_file_says(tmp_path):
    sampling = {
        "do_sample": True,
        "temperature": 1.9,
        "top_k": 3,
        "top_p": 0.2,
        "min_p": 0.1,
        "typical_p": 0.3,
        "num_beams": 4,
        "length_penalty": -3.0,
        "max_new_tokens": 2,
        "max_length": 3,
        "num_return_sequences": 2,
    }
    vlm = idefics.load(doctags.write_checkpoint(tmp_path / "a", **sampling))
    assert vlm.generate(["x"]).text == doctags.PAGE_TEXT
    assert vlm.loaded_model.generation_config == CheckpointGenerationConfig()


@pytest.mark.parametrize("call", ["ask", "chat", "generate"])
def test_load_reads_the_file_for_every_call(tmp_path, call):
    library = doctags.make_tokenizer()
    vlm = idefics.load(
        doctags.write_checkpoint(tmp_path / "a", suppress_tokens=[library.token_to_id("<doctag>")])
    )
    answer = {
        "ask": lambda: vlm.ask(doctags_picture(), "x", max_new_tokens=4),
        "chat": lambda: vlm.chat([idefics.user("x")], max_new_tokens=4),
        "generate": lambda: vlm.generate(["x"], max_new_tokens=4),
    }[call]()
    assert "<doctag>" not in answer.text


def doctags_picture():
    import PIL.Image

    return PIL.Image.new("RGB", (40, 40), "red")


SUPPORTED = {"eos_token_id", *PARSER_BY_FIELD}
EXAMPLES = {
    "sequence_bias": [[[1, 2], 0.5]],
    "exponential_decay_length_penalty": [5, 1.5],
    "encoder_repetition_penalty": 1.2,
    "encoder_no_repeat_ngram_size": 2,
    "token_healing": True,
    "guidance_scale": 3.0,
    "watermarking_config": {"bias": 2.5},
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "constraints": [1],
    "force_words_ids": [[1]],
}


def test_every_field_that_changes_answers_is_honoured_or_refused():
    assert SUPPORTED | EXAMPLES.keys() == OUTPUT_FIELDS.keys()
    assert not SUPPORTED & EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_unsupported_fields_are_refused_by_name(tmp_path, name):
    folder = doctags.write_checkpoint(tmp_path / "a", **{name: EXAMPLES[name]})
    with pytest.raises(UnsupportedModel, match=f"generation_config.json sets {name} to") as error:
        idefics.load(folder)
    assert "\n" not in str(error.value)
    neutral = json.loads((folder / "generation_config.json").read_text())
    neutral |= {name: OUTPUT_FIELDS[name]}
    (folder / "generation_config.json").write_text(json.dumps(neutral))
    assert idefics.load(folder).generate(["x"]).text == doctags.PAGE_TEXT


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"suppress_tokens": "a"}, "suppress_tokens"),
        ({"suppress_tokens": [1.5]}, "suppress_tokens"),
        ({"bad_words_ids": [1, 2]}, "bad_words_ids"),
        ({"repetition_penalty": "high"}, "repetition_penalty"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size"),
        ({"stop_strings": [1]}, "stop_strings"),
        ({"renormalize_logits": "yes"}, "renormalize_logits"),
        ({"forced_eos_token_id": 10**6}, "but the model has 50 ids"),
    ],
)
def test_a_malformed_field_is_named(fields, says):
    with pytest.raises(BrokenCheckpoint, match=says):
        CheckpointGenerationConfig.from_dict(fields, 50)


def test_bans_of_ids_outside_the_vocabulary_are_ignored():
    rules = CheckpointGenerationConfig.from_dict(
        {"suppress_tokens": [7, 99], "bad_words_ids": [[99], [1, 99], [1, 2]]}, 50
    )
    assert rules == CheckpointGenerationConfig(suppress_tokens=frozenset({7}), bad_words_ids=((1, 2),))


def test_fields_without_effect_are_ignored():
    settings = dict.fromkeys(FIELDS_WITHOUT_EFFECT, True) | {
        "transformers_version": "5.0.0",
        "of_another_library": [1],
    }
    assert CheckpointGenerationConfig.from_dict(settings, 50) == CheckpointGenerationConfig()


def test_incompatible_options_are_refused(vlm):
    ruler = with_generation_config(vlm, no_repeat_ngram_size=2)
    with pytest.raises(
        BadSetting, match=r"choices is given, but generation_config.json .* no_repeat_ngram_size"
    ):
        ruler.generate(["a"], choices=["b", "c"])
    assert (
        with_generation_config(vlm, renormalize_logits=True).generate(["a"]).tokens
        == vlm.generate(["a"]).tokens
    )


def test_beams_and_constraints_apply_fields_that_hold_for_every_step(vlm, reference):
    prompt = vlm.prompt([TEXTS[0]])
    free = answer_ids(vlm, prompt, num_beams=2).tokens
    fields = {"suppress_tokens": [free[0]], "repetition_penalty": 1.3}
    got = answer_ids(with_generation_config(vlm, **fields), prompt, num_beams=2).tokens
    assert got == reference_ids(reference, vlm, prompt, fields, num_beams=2) != free
    spelled = [id for token, id in vlm.processor.tokenizer.get_vocab().items() if token.endswith("b")]
    ruler = with_generation_config(vlm, suppress_tokens=spelled)
    assert ruler.generate(["a"], choices=["b", "c"]).text == "c"
    with pytest.raises(BadSetting, match="no text of the given choices was found"):
        ruler.generate(["a"], choices=["b", "bb"])


def test_banned_words_combine_with_rules_of_each_step(vlm):
    ruler = with_generation_config(vlm, no_repeat_ngram_size=1)
    prompt = vlm.prompt([TEXTS[0]])
    free = answer_ids(ruler, prompt)
    word = vlm.processor.tokenizer.decode([free.tokens[1]])
    answer = answer_ids(ruler, prompt, banned=[word])
    assert word not in answer.text and answer.tokens != free.tokens
    assert len(set(answer.tokens)) == len(answer.tokens) and not set(answer.tokens) & set(prompt.ids)


def test_rules_that_leave_no_token_are_an_error(vlm):
    everything = list(range(vlm.engine.model.layout.vocab_size))
    with pytest.raises(BadSetting, match=r"no token may follow: generation_config\.json"):
        with_generation_config(vlm, begin_suppress_tokens=everything).generate(["a"])
    with pytest.raises(BadSetting, match=r"no token may follow: generation_config\.json"):
        with_generation_config(vlm, begin_suppress_tokens=everything).generate(["a"], num_beams=2)
