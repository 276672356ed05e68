"""Settings and keywords of transformers' `generate`, each against transformers on tiny models; or refused by name."""

import json

import pytest
import torch

from compat import models_tiny
from compat.models_tiny import CONFIG_BY_FAMILY
from idefics import compat
from idefics.compat.generation_arguments import IGNORED_GENERATE_KWARGS, NEUTRAL_GENERATE_KWARGS
from idefics.compat.generation_callbacks import StopStringCriteria
from idefics.errors import BadSetting
from idefics.generation_fields import OUTPUT_FIELDS, SEARCH_FIELDS

SCENES = ("1tttt", "t1t1ttt")
STOPS = [7, 20]
GREEDY_SETTINGS = {
    "renormalize": {"renormalize_logits": True, "num_beams": 2, "repetition_penalty": 1.4},
    "suppress": {"suppress_tokens": list(range(10, 30)), "begin_suppress_tokens": list(range(30, 48))},
    "bias": {"sequence_bias": [[[5], 3.0], [[5, 9], 20.0], [[9, 5], -20.0]]},
    "bias of a dict": {"sequence_bias": {(11,): 4.0, (11, 12): 20.0}},
    "forced end": {"forced_eos_token_id": 7, "max_new_tokens": 5},
    "decay": {"exponential_decay_length_penalty": (2, 1.5)},
    "prompt's ngrams": {"encoder_no_repeat_ngram_size": 1},
    "prompt's pairs": {"encoder_no_repeat_ngram_size": 2, "num_beams": 2},
    "prompt's penalty": {"encoder_repetition_penalty": 1.7},
    "guidance": {"guidance_scale": 1.8},
    "no guidance": {"guidance_scale": 1.0},
    "tensors": {"eos_token_id": torch.tensor([20, 3]), "pad_token_id": torch.tensor(0)},
    "tensor": {"eos_token_id": torch.tensor(7)},
    "caches": {"cache_implementation": "dynamic", "disable_compile": True, "max_cache_len": None},
    "lookup": {"num_assistant_tokens": 3, "assistant_model": None, "synced_gpus": False},
}
SAMPLING_SETTINGS = {
    "epsilon": {"epsilon_cutoff": 0.02},
    "eta": {"eta_cutoff": 0.02},
    "top h": {"top_h": 0.4},
    "both": {"epsilon_cutoff": 0.01, "min_p": 0.05, "renormalize_logits": True},
    "beams": {"eta_cutoff": 0.01, "num_beams": 2},
}


@pytest.fixture(scope="module", params=["idefics", "idefics3"])
def reference_and_model(request, tmp_path_factory):
    torch.manual_seed(6)  # with which each setting changes the answer
    return models_tiny.make_reference_and_model(
        tmp_path_factory.mktemp(request.param), CONFIG_BY_FAMILY[request.param]
    )


def generate_with_seed(model, inputs, **arguments):
    torch.manual_seed(5)
    given = {"max_new_tokens": 9, "pad_token_id": 0, "eos_token_id": STOPS, "use_cache": True, **arguments}
    return model.generate(**inputs, **given)


def compare_with_reference(pair, *scenes, **arguments):
    inputs = models_tiny.make_batch(pair[1], *scenes)
    theirs, ours = (
        generate_with_seed(model, inputs, **arguments)[:, inputs["input_ids"].shape[1] :] for model in pair
    )
    stops = torch.as_tensor(arguments.get("eos_token_id", STOPS)).flatten().tolist()
    cut = [
        [row[: next((i + 1 for i, id in enumerate(row) if id in stops), None)] for row in rows.tolist()]
        for rows in (theirs, ours)
    ]
    assert cut[1] == cut[0]
    return cut[1]


@pytest.mark.parametrize("settings", GREEDY_SETTINGS.values(), ids=GREEDY_SETTINGS)
def test_settings_that_are_the_references(reference_and_model, settings):
    if settings.get("guidance_scale", 1) != 1 and reference_and_model[1].config.model_type == "idefics":
        pytest.skip("transformers 5.23 needs a picture in every prompt of Idefics, in that without one too")
    compare_with_reference(reference_and_model, SCENES[0], **settings)


@pytest.mark.parametrize(
    "settings", [GREEDY_SETTINGS["bias"], GREEDY_SETTINGS["decay"], GREEDY_SETTINGS["guidance"]]
)
def test_settings_change_answers(reference_and_model, settings):
    inputs = models_tiny.make_batch(reference_and_model[1], SCENES[0])
    assert (
        generate_with_seed(reference_and_model[1], inputs, **settings).tolist()
        != generate_with_seed(reference_and_model[1], inputs).tolist()
    )


@pytest.mark.parametrize("settings", SAMPLING_SETTINGS.values(), ids=SAMPLING_SETTINGS)
def test_drawn_as_the_reference_draws(reference_and_model, settings):
    compare_with_reference(reference_and_model, SCENES[1], do_sample=True, temperature=1.2, **settings)


def test_a_prompt_of_one_id(reference_and_model):
    ids = {"input_ids": torch.tensor([[4]]), "attention_mask": torch.ones(1, 1, dtype=torch.long)}
    nothing = {}
    if reference_and_model[1].config.model_type == "idefics":  # 5.23 cannot do without a picture there
        nothing = {"pixel_values": torch.zeros(1, 1, 3, 32, 32), "image_attention_mask": torch.zeros(1, 1, 1)}
    for settings in (
        {"forced_bos_token_id": 9},
        {"forced_bos_token_id": 9, "begin_suppress_tokens": [5, 6, 10]},
    ):
        theirs, ours = (generate_with_seed(model, ids | nothing, **settings) for model in reference_and_model)
        assert ours.tolist() == theirs.tolist()
        assert ours[0, 1] == 9


def test_allowed_prefixes(reference_and_model):
    inputs = models_tiny.make_batch(reference_and_model[1], *SCENES)
    seen = []

    def allowed(row, so_far):
        seen.append((row, tuple(so_far.shape)))
        return [8, 9, 10, 11] if row else range(12, 20)

    for beams in (1, 2):
        theirs, ours = (
            generate_with_seed(model, inputs, prefix_allowed_tokens_fn=allowed, num_beams=beams)
            for model in reference_and_model
        )
        assert ours.tolist() == theirs.tolist()
    answers = ours[:, inputs["input_ids"].shape[1] :]
    assert set(answers[0].tolist()) <= set(range(12, 20))
    assert set(answers[1].tolist()) <= {8, 9, 10, 11}
    with pytest.raises(BadSetting, match="allows no id in prompt 0"):
        generate_with_seed(reference_and_model[1], inputs, prefix_allowed_tokens_fn=lambda row, so_far: [])


def test_guidance_by_another_prompt(reference_and_model):
    other = torch.tensor([[6, 13, 14]])
    if reference_and_model[1].config.model_type == "idefics":
        inputs = models_tiny.make_batch(reference_and_model[1], SCENES[0])
        alone = generate_with_seed(
            reference_and_model[1], inputs, guidance_scale=1.5, negative_prompt_ids=other
        )
        assert alone.shape[1] > inputs["input_ids"].shape[1]  # 5.23 needs a picture in every prompt
    else:
        compare_with_reference(reference_and_model, SCENES[0], guidance_scale=1.5, negative_prompt_ids=other)
        mask = torch.tensor([[0, 1, 1]])
        compare_with_reference(
            reference_and_model,
            SCENES[0],
            guidance_scale=1.5,
            negative_prompt_ids=other,
            negative_prompt_attention_mask=mask,
        )


def test_guidance_of_beams_is_that_of_each_answer(reference_and_model):
    """Rows change places in a beam search: with as many beams as answers the best is scored by its own ids."""
    inputs = models_tiny.make_batch(reference_and_model[1], SCENES[0])
    out = generate_with_seed(
        reference_and_model[1],
        inputs,
        guidance_scale=1.5,
        num_beams=3,
        return_dict_in_generate=True,
        output_scores=True,
    )
    start = inputs["input_ids"].shape[1]
    total, ids = 0.0, out.sequences[:1]
    for step in range(start, ids.shape[1]):
        with torch.no_grad():
            there = (
                reference_and_model[1](**append_ids(reference_and_model[1], inputs, ids[:, :step]))
                .logits[:, -1]
                .log_softmax(-1)
            )
            other = reference_and_model[1](ids[:, start - 1 : step]).logits[:, -1].log_softmax(-1)
        total += float((1.5 * (there - other) + other)[0, ids[0, step]])
    # the length of a beam counts what was generated
    assert abs(total / (ids.shape[1] - start) - float(out.sequences_scores[0])) < 1e-3


def append_ids(model, inputs, ids):
    more = ids.shape[1] - inputs["input_ids"].shape[1]
    out = {**inputs, "input_ids": ids}
    for name in ("attention_mask", "image_attention_mask"):
        if name in inputs:
            out[name] = torch.cat((inputs[name], inputs[name][:, -1:].repeat_interleave(more, 1)), 1)
    return out


def test_a_row_in_a_batch_is_the_row_alone(reference_and_model):
    settings = {"encoder_repetition_penalty": 2.0, "encoder_no_repeat_ngram_size": 2, "guidance_scale": 1.4}
    together = generate_with_seed(
        reference_and_model[1], models_tiny.make_batch(reference_and_model[1], "1t", "t1t1tttttt"), **settings
    )
    alone = generate_with_seed(
        reference_and_model[1], models_tiny.make_batch(reference_and_model[1], "1t"), **settings
    )
    answer = alone[0].tolist()[models_tiny.make_batch(reference_and_model[1], "1t")["input_ids"].shape[1] :]
    start = models_tiny.make_batch(reference_and_model[1], "1t", "t1t1tttttt")["input_ids"].shape[1]
    assert together[0].tolist()[start:][: len(answer)] == answer


def test_a_batch_for_training_may_be_given_whole(reference_and_model):
    inputs = models_tiny.make_batch(reference_and_model[1], *SCENES)
    plain = generate_with_seed(reference_and_model[1], inputs)
    labels = inputs["input_ids"].clone()
    assert torch.equal(
        generate_with_seed(reference_and_model[1], {**inputs, "labels": labels, "num_items_in_batch": 3}),
        plain,
    )


@pytest.mark.parametrize(
    "settings",
    [
        dict.fromkeys(IGNORED_GENERATE_KWARGS, 1),
        {"synced_gpus": False, "custom_generate": None, "return_dict": True, "logits_to_keep": 1},
    ],
)
def test_what_asks_for_nothing(reference_and_model, settings):
    inputs = models_tiny.make_batch(reference_and_model[1], *SCENES)
    assert torch.equal(
        generate_with_seed(reference_and_model[1], inputs, **settings),
        generate_with_seed(reference_and_model[1], inputs),
    )


@pytest.mark.parametrize("name", NEUTRAL_GENERATE_KWARGS)
def test_what_is_not_here_is_refused(reference_and_model, name):
    with pytest.raises(BadSetting, match=f"{name} is 'other'; .*leave it out"):
        generate_with_seed(
            reference_and_model[1], models_tiny.make_batch(reference_and_model[1], "t"), **{name: "other"}
        )


@pytest.mark.parametrize(
    "name", sorted({*SEARCH_FIELDS, *OUTPUT_FIELDS} - set(compat.GenerationConfig.__annotations__))
)
def test_settings_that_are_not_here(reference_and_model, name):
    for value in (None, [], {**SEARCH_FIELDS, **OUTPUT_FIELDS}[name]):
        config = compat.GenerationConfig(**{name: value})
        assert torch.equal(
            generate_with_seed(
                reference_and_model[1],
                models_tiny.make_batch(reference_and_model[1], "t"),
                generation_config=config,
                **{name: value},
            ),
            generate_with_seed(reference_and_model[1], models_tiny.make_batch(reference_and_model[1], "t")),
        )
    with pytest.raises(BadSetting, match=f"{name} is 'x', and `generate` does not support it"):
        generate_with_seed(
            reference_and_model[1], models_tiny.make_batch(reference_and_model[1], "t"), **{name: "x"}
        )
    with pytest.raises(BadSetting, match=name):
        compat.GenerationConfig.from_dict({name: "x"})


def test_every_field_of_transformers_is_known():
    transformers = pytest.importorskip("transformers")
    fields = [name for name in vars(transformers.GenerationConfig()) if not name.startswith("_")]
    compat.GenerationConfig(**dict.fromkeys(fields))
    for name in fields:
        assert getattr(compat.GenerationConfig(), name, "nothing") != "nothing"


def test_settings_of_transformers_own_class(reference_and_model):
    transformers = pytest.importorskip("transformers")
    inputs = models_tiny.make_batch(reference_and_model[1], *SCENES)
    config = transformers.GenerationConfig(
        max_new_tokens=4, suppress_tokens=[5, 9], num_beams=2, eos_token_id=7
    )
    theirs, ours = (
        model.generate(**inputs, generation_config=config, pad_token_id=0) for model in reference_and_model
    )
    assert ours.tolist() == theirs.tolist()
    assert compat.GenerationConfig.from_any(config) == compat.GenerationConfig.from_any(config.to_dict())
    with pytest.raises(BadSetting, match="watermarking_config"):
        compat.GenerationConfig.from_any({"watermarking_config": {"bias": 2.0}})
    old = {"max_length": 20, "temperature": 1.0, "transformers_version": "4.47.0"}
    assert not compat.GenerationConfig.from_any(old).is_field_set("max_length")
    assert compat.GenerationConfig.from_any({**old, "transformers_version": "5.1.0"}).is_field_set(
        "max_length"
    )


def test_the_models_own_settings_can_be_ignored(reference_and_model):
    inputs = models_tiny.make_batch(reference_and_model[1], "1t")
    own = compat.GenerationConfig(suppress_tokens=list(range(4, 40)))
    model = reference_and_model[1]
    before, model.generation_config = model.generation_config, own
    try:
        settings = compat.GenerationConfig(max_new_tokens=5)
        kept = model.generate(**inputs, generation_config=settings)
        left = model.generate(**inputs, generation_config=settings, use_model_defaults=False)
    finally:
        model.generation_config = before
    assert not set(kept[0, inputs["input_ids"].shape[1] :].tolist()) & set(range(4, 40))
    assert left.tolist() == model.generate(**inputs, max_new_tokens=5, eos_token_id=None).tolist()


def test_a_file_with_fields_of_transformers_5(tmp_path):
    models_tiny.make_our_model("smolvlm").save_pretrained(tmp_path)
    settings = {
        "renormalize_logits": True,
        "suppress_tokens": [5],
        "stop_strings": ["x"],
        "num_assistant_tokens": 9,
    }
    (tmp_path / "generation_config.json").write_text(
        json.dumps({**settings, "transformers_version": "5.23.0"})
    )
    model = compat.AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert model.generation_config.suppress_tokens == [5]
    assert model.generation_config.stop_strings == ["x"]
    with pytest.raises(BadSetting, match=r"stop_strings is \['x'\].*tokenizer=processor.tokenizer"):
        model.generate(torch.tensor([[4, 5]]))


def test_from_model_config_takes_configs():
    transformers = pytest.importorskip("transformers")
    model = models_tiny.make_our_model("idefics3", text_config={"eos_token_id": 9, "pad_token_id": 3})
    expected = compat.GenerationConfig.from_model_config(model.config.to_dict())
    assert compat.GenerationConfig.from_model_config(model.config) == expected
    theirs = transformers.Idefics3Config.from_dict(model.config.to_dict())
    assert compat.GenerationConfig.from_model_config(theirs).eos_token_id == expected.eos_token_id == 9
    with pytest.raises(BadSetting, match="model_config is of type str"):
        compat.GenerationConfig.from_model_config("idefics3")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_bias": [[5, 1.0]]}, "ids and a number for each"),
        ({"sequence_bias": [[[500], 1.0]]}, "id 500; this model's ids are 0 to"),
        ({"suppress_tokens": [500]}, "id 500; this model's ids are 0 to"),
        ({"suppress_tokens": 5}, "suppress_tokens is 5; give a list of ids"),
        ({"exponential_decay_length_penalty": 5}, "and a factor"),
        ({"exponential_decay_length_penalty": (1, 2.0), "eos_token_id": None}, "give eos_token_id"),
        ({"stop_strings": [""]}, "none of them empty"),
        ({"renormalize_logits": 1}, "True or False"),
        ({"top_h": 2.0, "do_sample": True}, "top_h is 2.0; give a number"),
    ],
)
def test_values_that_cannot_be(reference_and_model, settings, message):
    with pytest.raises(BadSetting, match=message):
        generate_with_seed(
            reference_and_model[1], models_tiny.make_batch(reference_and_model[1], "t"), **settings
        )


class TestStopStrings:
    @pytest.fixture
    def tokenizer(self):
        transformers = pytest.importorskip("transformers")
        tokenizers = pytest.importorskip("tokenizers")
        pieces = ["<s>", "</s>", "st", "op", "stop", "x", "y", "xs", "top!", "é", "<end>"]
        vocabulary = {
            piece: id for id, piece in enumerate([*pieces, *"abcdef", *(f"w{n}" for n in range(60))])
        }
        model = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
        model.decoder = tokenizers.decoders.Fuse()
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=model, bos_token="<s>", eos_token="</s>", additional_special_tokens=["<end>"]
        )

    @pytest.mark.parametrize(
        ("ids", "stops", "ends"),
        [
            ([5, 2, 3], ["stop"], True),
            ([5, 2, 3, 6], ["stop"], False),
            ([5, 4], ["stop"], True),
            ([7, 8], ["stop"], True),  # "xs" "top!": ends inside the last id
            ([2, 5, 3], ["stop"], False),
            ([4, 4], ["stopstop", "z"], True),
            ([5, 5, 5], ["xx"], True),  # the prompt ended with it, and so does the answer
            ([5, 9], ["é"], True),
            ([5, 10], ["<end>"], True),
            ([3], ["stop"], False),
        ],
    )
    def test_it_ends_where_the_reference_ends(self, tokenizer, ids, stops, ends):
        transformers = pytest.importorskip("transformers")
        rows = torch.tensor([ids])
        assert StopStringCriteria(tokenizer, stops)(rows, None).tolist() == [ends]
        theirs = transformers.StopStringCriteria(tokenizer=tokenizer, stop_strings=stops)
        assert theirs(rows, None).tolist() == [ends]

    def test_answers_end_as_the_references_do(self, reference_and_model, tokenizer):
        inputs = models_tiny.make_batch(reference_and_model[1], *SCENES)
        free = generate_with_seed(reference_and_model[1], inputs, eos_token_id=1)[
            0, inputs["input_ids"].shape[1] :
        ].tolist()
        stop = tokenizer.decode(free[3:5])
        theirs, ours = (  # without a stop id 5.23 leaves ended rows unpadded
            generate_with_seed(model, inputs, eos_token_id=1, stop_strings=stop, tokenizer=tokenizer)
            for model in reference_and_model
        )
        assert ours.tolist() == theirs.tolist()
        assert ours[0, inputs["input_ids"].shape[1] :].tolist()[:5] == free[:5]

    def test_halves_of_characters(self):
        class Bytes:
            def decode(self, ids, **options):
                return bytes(ids).decode(errors="replace")

        criteria = StopStringCriteria(Bytes(), "é!")
        text = "né!".encode()
        ends = [bool(criteria(torch.tensor([list(text[:n])]), None)) for n in range(1, len(text) + 1)]
        assert ends == [False, False, False, True]
