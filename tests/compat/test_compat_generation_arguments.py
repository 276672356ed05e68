"""The arguments of `generate`: where settings come from, what is refused, and how the model is called."""

import time

import pytest
import torch

from compat.generation_fakes import VOCAB_SIZE, TableModel, make_chain_table
from idefics.compat.generation_callbacks import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)
from idefics.compat.generation_config import FIELD_NAMES, GenerationConfig
from idefics.compat.logits_process import LogitsProcessor, LogitsProcessorList
from idefics.errors import BadPrompt, BadSetting, UnknownArgument

ONE = torch.tensor([[4]])


def make_counting_model(**settings):
    """4 is followed by 5, 5 by 6, and so on to the last id, which goes on for ever."""
    return TableModel(make_chain_table(*range(4, VOCAB_SIZE)), **settings)


def generate_answer(model, ids=ONE, **settings):
    return model.generate(ids, **settings)[0, ids.shape[1] :].tolist()


class TestLengths:
    def test_twenty_ids_unless_told(self):
        assert len(generate_answer(make_counting_model())) == 20
        assert len(generate_answer(make_counting_model(), torch.tensor([[4] * 30]))) == 20

    def test_max_length_counts_the_prompt(self):
        assert generate_answer(make_counting_model(), torch.tensor([[9, 4]]), max_length=5) == [5, 6, 7]
        assert generate_answer(make_counting_model(max_length=5), torch.tensor([[9, 4]])) == [5, 6, 7]

    def test_max_new_tokens_wins(self):
        assert generate_answer(make_counting_model(max_new_tokens=2), max_length=9) == [5, 6]

    def test_a_length_of_none_is_not_set(self):
        assert len(generate_answer(make_counting_model(max_new_tokens=2), max_new_tokens=None)) == 20
        assert len(generate_answer(make_counting_model(), max_length=None)) == 20

    def test_a_prompt_that_leaves_no_new_tokens(self):
        with pytest.raises(BadSetting, match="max_length is 2, and the prompt has 2 ids"):
            make_counting_model().generate(torch.tensor([[9, 4]]), max_length=2)

    def test_time(self):
        class Slow(TableModel):
            def forward(self, *args, **kwargs):
                time.sleep(0.05)
                return super().forward(*args, **kwargs)

            __call__ = forward

        assert len(generate_answer(Slow(make_chain_table(4)), max_time=0.12, max_new_tokens=99)) < 20


class TestPrecedence:
    def test_keywords_then_settings_then_the_models(self):
        model = make_counting_model(max_new_tokens=3, eos_token_id=6)
        assert generate_answer(model) == [5, 6]
        assert generate_answer(model, generation_config=GenerationConfig(eos_token_id=5)) == [5]
        assert generate_answer(model, generation_config=GenerationConfig(eos_token_id=5), eos_token_id=7) == [
            5,
            6,
            7,
        ]

    def test_none_switches_off_what_the_model_has(self):
        assert generate_answer(make_counting_model(max_new_tokens=3, eos_token_id=6), eos_token_id=None) == [
            5,
            6,
            7,
        ]
        assert generate_answer(
            make_counting_model(max_new_tokens=1, bad_words_ids=[[5]]), bad_words_ids=None
        ) == [5]

    def test_none_in_settings_leaves_the_models(self):
        settings = GenerationConfig(eos_token_id=None)
        assert generate_answer(
            make_counting_model(max_new_tokens=3, eos_token_id=6), generation_config=settings
        ) == [5, 6]

    def test_top_k_has_a_default_and_none_switches_it_off(self):
        model = TableModel(
            torch.zeros(60, 60), max_new_tokens=40, return_dict_in_generate=True, output_scores=True
        )
        for settings, kept in [({}, 60), ({"top_k": 7}, 60), ({"top_k": None}, 60)]:
            out = model.generate(ONE, do_sample=True, **settings)  # ties are all kept
            assert out.scores[0].isfinite().sum() == kept
        ramp = TableModel(
            torch.arange(60.0).repeat(60, 1) / 9, return_dict_in_generate=True, output_scores=True
        )
        for settings, kept in [({}, 50), ({"top_k": 7}, 7), ({"top_k": None}, 60), ({"top_k": 0}, 60)]:
            assert ramp.generate(ONE, do_sample=True, **settings).scores[0].isfinite().sum() == kept

    def test_the_callers_settings_are_left_as_they_were(self):
        model, settings = make_counting_model(max_new_tokens=3), GenerationConfig(max_new_tokens=2)
        model.generate(ONE, generation_config=settings, max_new_tokens=1, top_k=None)
        assert settings == GenerationConfig(max_new_tokens=2)
        assert model.generation_config == GenerationConfig(max_new_tokens=3)


class TestEnds:
    def test_rows_that_end_early_are_padded(self):
        ids = torch.tensor([[4], [9]])
        out = make_counting_model().generate(ids, eos_token_id=[10, 8], pad_token_id=2, max_new_tokens=9)
        assert out.tolist() == [[4, 5, 6, 7, 8], [9, 10, 2, 2, 2]]

    def test_the_first_stop_id_pads_where_none_is_set(self):
        out = make_counting_model().generate(torch.tensor([[4], [9]]), eos_token_id=[10, 6], max_new_tokens=9)
        assert out.tolist() == [[4, 5, 6], [9, 10, 10]]

    def test_an_empty_list_of_stop_ids_ends_nothing(self):
        assert generate_answer(make_counting_model(max_new_tokens=3, eos_token_id=5), eos_token_id=[]) == [
            5,
            6,
            7,
        ]

    def test_criteria_of_the_callers(self):
        class Until(StoppingCriteria):
            def __call__(self, input_ids, scores):
                assert scores is None
                return input_ids[:, -1] >= 7

        for criteria in ([Until()], StoppingCriteriaList([Until()])):
            out = make_counting_model().generate(
                torch.tensor([[4], [6]]), stopping_criteria=criteria, pad_token_id=0
            )
            assert out.tolist() == [[4, 5, 6, 7], [6, 7, 0, 0]]
        assert generate_answer(
            make_counting_model(), stopping_criteria=[lambda ids, scores: ids.shape[1] > 3]
        ) == [5, 6, 7]

    def test_criteria_see_scores_that_are_asked_for(self):
        seen = []
        make_counting_model().generate(
            ONE,
            max_new_tokens=3,
            return_dict_in_generate=True,
            output_scores=True,
            stopping_criteria=[lambda ids, scores: bool(seen.append(len(scores)))],
        )
        assert seen == [1, 2, 3]

    def test_criteria_end_beams(self):
        until = lambda ids, scores: (ids[:, 1:] == 7).any(1)  # noqa: E731
        out = make_counting_model().generate(
            ONE, num_beams=2, max_new_tokens=9, stopping_criteria=[until], pad_token_id=0
        )
        assert out.tolist() == [[4, 5, 6, 7]]

    def test_the_criteria_that_settings_make(self):
        ids = torch.tensor([[4, 5], [6, 7]])
        assert EosTokenCriteria(5)(ids, None).tolist() == [True, False]
        assert EosTokenCriteria([5, 7])(ids, None).tolist() == [True, True]
        assert MaxLengthCriteria(2)(ids, None) and not MaxLengthCriteria(3)(ids, None)
        assert MaxTimeCriteria(1.0, initial_timestamp=0.0)(ids, None) and not MaxTimeCriteria(60.0)(ids, None)


class TestScores:
    def test_processors_of_the_callers_come_before_draws(self):
        class Only(LogitsProcessor):
            def __call__(self, input_ids, scores):
                assert input_ids.shape[1] == 1
                assert scores.isfinite().all()
                return torch.full_like(scores, -100.0).index_fill(1, torch.tensor([11]), 0.0)

        for processors in ([Only()], LogitsProcessorList([Only()])):
            for settings in ({}, {"do_sample": True, "top_k": 1}, {"num_beams": 2}):
                assert generate_answer(
                    make_counting_model(), max_new_tokens=1, logits_processor=processors, **settings
                ) == [11]

    def test_nothing_banned_is_chosen_in_any_search(self):
        for settings in ({}, {"do_sample": True, "temperature": 9.0}, {"num_beams": 3}):
            given = generate_answer(
                make_counting_model(), bad_words_ids=[[7], [5, 6]], max_new_tokens=15, **settings
            )
            assert 7 not in given
            assert (5, 6) not in zip([4, *given], given, strict=False)

    def test_a_stop_id_is_never_a_bad_word(self):
        assert generate_answer(make_counting_model(), bad_words_ids=[[5], [6]], eos_token_id=5) == [5]

    def test_a_returned_object_is_a_tuple_and_a_dict_too(self):
        out = make_counting_model().generate(
            ONE, max_new_tokens=2, return_dict_in_generate=True, output_logits=True
        )
        assert out["sequences"] is out.sequences is out[0]
        assert out.scores is None
        assert len(out.logits) == 2

    def test_outputs_want_an_object_to_be_in(self):
        assert isinstance(
            make_counting_model().generate(ONE, output_scores=True, output_logits=True), torch.Tensor
        )


class TestPrompts:
    def test_names_of_the_prompt(self):
        for given in ({"inputs": ONE}, {"input_ids": ONE}):
            assert make_counting_model().generate(**given, max_new_tokens=1).tolist() == [[4, 5]]
        with pytest.raises(BadPrompt, match="two names"):
            make_counting_model().generate(ONE, input_ids=ONE)

    def test_a_beginning_from_nothing(self):
        assert make_counting_model(bos_token_id=4).generate(max_new_tokens=1).tolist() == [[4, 5]]
        with pytest.raises(BadPrompt, match="bos_token_id"):
            make_counting_model().generate()

    @pytest.mark.parametrize("ids", [[[4]], "text", torch.tensor([4]), torch.tensor([[4.0]])], ids=repr)
    def test_what_is_no_prompt(self, ids):
        with pytest.raises(BadPrompt, match="input_ids is a"):
            make_counting_model().generate(ids)

    def test_an_empty_prompt(self):
        with pytest.raises(BadPrompt, match=r"\(1, 0\)"):
            make_counting_model().generate(torch.empty(1, 0, dtype=torch.long))

    def test_padding_on_the_right(self):
        given = make_counting_model().generate(
            torch.tensor([[4, 0]]), attention_mask=torch.tensor([[1, 0]]), max_new_tokens=2
        )
        assert given.tolist() == [[4, 0, 5, 6]]

    def test_a_mask_is_made_from_the_padding_id(self):
        seen = []

        class Watching(TableModel):
            def forward(self, input_ids=None, attention_mask=None, **kwargs):
                seen.append(attention_mask.tolist())
                return super().forward(input_ids=input_ids, **kwargs)

            __call__ = forward

        ids = torch.tensor([[0, 4], [5, 4]])
        for settings, mask in [
            ({"pad_token_id": 0}, [[0, 1], [1, 1]]),
            ({"pad_token_id": 0, "eos_token_id": 0}, [[1, 1], [1, 1]]),
            ({}, [[1, 1], [1, 1]]),
        ]:
            Watching(make_chain_table(4)).generate(ids, max_new_tokens=1, **settings)
            assert seen.pop() == mask


class TestRefusals:
    @pytest.mark.parametrize("name", ["max_new_token", "temprature", "stop", "kwargs", "pixels"])
    def test_unknown_arguments(self, name):
        with pytest.raises(UnknownArgument, match=f"'{name}'") as caught:
            make_counting_model().generate(ONE, **{name: 1})
        assert isinstance(caught.value, TypeError)
        for known in ("attention_mask", "streamer", *FIELD_NAMES):
            assert known in str(caught.value)

    def test_none_asks_for_nothing(self):
        assert generate_answer(make_counting_model(), max_new_tokens=1, nonsense=None) == [5]

    def test_no_model_input_is_needed(self):
        assert generate_answer(make_counting_model(), attention_mask=None, max_new_tokens=1) == [5]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences is 3 and num_beams 2"),
            ({"num_return_sequences": 3}, "do_sample=True, or num_beams=3"),
            ({"do_sample": True, "temperature": 0}, "do_sample=False"),
            (
                {"bad_words_ids": [[1, VOCAB_SIZE]]},
                f"id {VOCAB_SIZE}; this model's ids are 0 to {VOCAB_SIZE - 1}",
            ),
            ({"bad_words_ids": [3]}, "list of lists"),
            ({"max_new_tokens": 0}, "whole number from 1"),
            ({"generation_config": 7}, "generation_config is of type int"),
        ],
    )
    def test_settings_that_cannot_be(self, settings, message):
        with pytest.raises(BadSetting, match=message):
            make_counting_model().generate(ONE, **settings)

    def test_what_says_nothing_to_a_greedy_search_is_no_mistake(self):
        settings = {"temperature": 0.0, "top_p": 0.5, "length_penalty": 2.0, "early_stopping": True}
        assert generate_answer(make_counting_model(), max_new_tokens=1, do_sample=False, **settings) == [5]


def test_the_base_classes_say_what_they_lack():
    for one in (LogitsProcessor(), StoppingCriteria()):
        with pytest.raises(NotImplementedError, match="__call__"):
            one(ONE, None)
