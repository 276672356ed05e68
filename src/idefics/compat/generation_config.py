"""`GenerationConfig`: the settings of `generate`, named as in generation_config.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from idefics.compat.generation_config_values import validate_field
from idefics.compat.pretrained import (
    GENERATION_CONFIG_FILES,
    PretrainedMixin,
    config_to_dict,
    read_json_object,
    to_json,
    write_json,
)
from idefics.errors import BadSetting, UnknownArgument
from idefics.generation_fields import FIELDS_WITHOUT_EFFECT, NEUTRAL_VALUE_BY_FIELD, changes_no_answer

GENERATION_CONFIG_FILE = "generation_config.json"


class GenerationConfig(PretrainedMixin):
    """The settings of `generate`. A setting that is not set, or set to None, has the default of the class.

    Attributes:
        max_length: the largest number of ids, those of the prompt included. Where neither this nor `max_new_tokens` is
            set, 20 ids are generated.
        max_new_tokens: the largest number of generated ids; has priority over `max_length`.
        min_length: `eos_token_id` is not chosen before so many ids, those of the prompt included.
        min_new_tokens: `eos_token_id` is not chosen before so many generated ids.
        max_time: seconds after which no further id is generated.
        stop_strings: texts that end an answer, and are part of it; they need `generate(tokenizer=)`.
        do_sample: sample the next id instead of taking the most likely one. The settings from `temperature` to
            `eta_cutoff` have an effect only then.
        temperature: logits are divided by it.
        top_k: keep the k most likely ids; 0 keeps all.
        top_p: keep the smallest set of most likely ids whose probability reaches p (arXiv 1904.09751).
        min_p: drop ids less likely than min_p times the most likely one (arXiv 2407.01082).
        top_h: keep the most likely of 100 ids while the sum of -p log p stays below this part of their entropy
            (arXiv 2509.02510).
        typical_p: keep the most typical ids until their probability reaches p (arXiv 2202.00666).
        epsilon_cutoff: drop ids of a probability below this (arXiv 2210.15191); `eta_cutoff` lowers that bound where
            the entropy is high.
        repetition_penalty: divides positive and multiplies negative scores of ids that occurred before, in the prompt
            or the answer (CTRL, arXiv 1909.05858).
        encoder_repetition_penalty: multiplies and divides, for ids of the prompt alone.
        no_repeat_ngram_size: no sequence of so many ids occurs twice, the prompt included; 0: no such limit.
        encoder_no_repeat_ngram_size: no sequence of so many ids of the prompt occurs in the answer; 0: no such limit.
        bad_words_ids: sequences of ids that are never generated.
        sequence_bias: [[ids, number], ...]: the number is added to the score of the last id after the others.
        suppress_tokens, begin_suppress_tokens: ids that are never generated, or not as the first.
        forced_bos_token_id: the id after a prompt of one id; `forced_eos_token_id`: the last id at `max_length`.
        exponential_decay_length_penalty: (start, factor): after `start` generated ids, the scores of the stop ids grow
            by `factor` with each further id.
        guidance_scale: classifier-free guidance: scores are moved away from those without the prompt, or after
            `generate(negative_prompt_ids=)`, by this factor (arXiv 2306.17806); 1: none.
        renormalize_logits: normalise the processed scores to log-probabilities.
        num_beams: beams of a beam search; 1: no beam search.
        num_return_sequences: answers to each prompt: the best beams, or as many samples.
        length_penalty: the score of a beam is the sum of its log-probabilities / length ** length_penalty.
        early_stopping: a beam search ends, with True, when `num_beams` have ended; with False, when the best running
            beam is not better than those; with "never", when it cannot become better.
        eos_token_id: the id, or the ids, that end an answer.
        pad_token_id: pads answers that are shorter than others; None: the first `eos_token_id`.
        bos_token_id: the prompt where none is given.
        use_cache: keep keys and values; otherwise all ids are read again for each new one.
        return_dict_in_generate: return an object with `sequences` and what the `output_` settings ask for.
        output_scores: return `scores`, by which ids were chosen; of a beam search also `sequences_scores`.
        output_logits: return `logits`, those of the model.
        output_attentions, output_hidden_states: return `attentions` and `hidden_states` of every step.
    """

    max_length: int = 20
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    max_time: float | None = None
    stop_strings: list[str] | None = None
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
    sequence_bias: list[list[Any]] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    exponential_decay_length_penalty: list[float] | None = None
    guidance_scale: float = 1.0
    renormalize_logits: bool = False
    num_beams: int = 1
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    use_cache: bool = True
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False
    output_attentions: bool = False
    output_hidden_states: bool = False

    file_selection = GENERATION_CONFIG_FILES

    # Read by transformers' Seq2SeqTrainer to fill in defaults, which the class has already.
    _from_model_config = False

    @staticmethod
    def _get_default_generation_params() -> dict[str, Any]:
        """An empty dict, for callers of transformers' method: settings have no defaults but those of this class."""
        return {}

    def __init__(self, **settings: Any) -> None:
        self.update(**settings)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):  # set by transformers' own code, such as `_from_model_config`
            vars(self)[name] = value
        elif name not in ACCEPTED_FIELD_NAMES:
            raise UnknownArgument("GenerationConfig", [name], FIELD_NAMES)
        elif value is None:
            vars(self).pop(name, None)
        elif name in FIELD_NAMES:
            vars(self)[name] = validate_field(name, GenerationConfig.__annotations__[name], value)
        elif not changes_no_answer(name, value):
            raise BadSetting(f"{name} is {value!r}, and `generate` does not support it: leave it out")
        else:
            vars(self)[name] = value

    def __getattr__(self, name: str) -> None:
        if name not in ACCEPTED_FIELD_NAMES:
            raise AttributeError(f"GenerationConfig has no {name!r}")

    def update(self, defaults_only: bool = False, **settings: Any) -> None:
        """Sets several settings; with `defaults_only` only those that are not set.

        Raises:
            UnknownArgument, BadSetting: no such setting, or a value out of its range.
        """
        for name, value in settings.items():
            if not (defaults_only and self.is_field_set(name)):
                setattr(self, name, value)

    def with_overrides(self, **settings: Any) -> Self:
        """A copy with other settings; None turns a setting off, even where the checkpoint sets it."""
        copy = type(self)(**self.explicit_settings())
        copy.update(**settings)
        disabled_names = [
            name for name, value in settings.items() if value is None and name in DISABLED_VALUES
        ]
        vars(copy).update({name: DISABLED_VALUES[name] for name in disabled_names})
        return copy

    def is_field_set(self, name: str) -> bool:
        """Whether a setting was set, be it to its default."""
        return name in vars(self)

    @property
    def stop_ids(self) -> list[int]:
        """The ids of `eos_token_id` as a list; empty where it is not set."""
        if self.eos_token_id is None:
            return []
        return [self.eos_token_id] if isinstance(self.eos_token_id, int) else self.eos_token_id

    @property
    def effective_pad_token_id(self) -> int | None:
        """The id that pads ended answers: `pad_token_id`, else the first stop id, else None."""
        return self.stop_ids[0] if self.pad_token_id is None and self.stop_ids else self.pad_token_id

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], **others: Any) -> Self:
        """The settings in the content of a generation_config.json; `others` have priority.

        Fields that change no answer (`generation_fields`) are left out.

        Raises:
            BadSetting: a field that changes answers is not supported, or a value is out of its range.
        """
        supported_settings = {
            name: value
            for name, value in settings.items()
            if name in FIELD_NAMES or not changes_no_answer(name, value)
        }
        return cls(**supported_settings | others)

    @classmethod
    def from_any(cls, config: object) -> Self:
        """Settings of this class or of transformers, or the content of a generation_config.json, as this class.

        Raises:
            BadSetting: it is none of these, or has an unsupported setting.
        """
        if isinstance(config, cls):
            return config
        content = config_to_dict(config)
        if content is None:
            raise BadSetting(f"generation_config is of type {type(config).__name__}; give a GenerationConfig")
        settings = dict(content)
        if (
            str(settings.get("transformers_version", "")).startswith("4.")
            and settings.get("max_length") == 20
        ):
            del settings["max_length"]  # transformers 4 writes defaults as if they were set
        return cls.from_dict(settings)

    @classmethod
    def from_model_config(cls, model_config: object) -> Self:
        """A `GenerationConfig` with the special ids that the config of a model, or its text_config, names.

        Args:
            model_config: a config of this package or of transformers, or the content of a config.json.

        Raises:
            BadSetting: it is none of these.
        """
        config = config_to_dict(model_config)
        if config is None:
            raise BadSetting(
                f"model_config is of type {type(model_config).__name__}; give the config of a model"
            )
        text = config.get("text_config") or {}
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return cls(
            **{name: config[name] if config.get(name) is not None else text.get(name) for name in names}
        )

    @classmethod
    def _from_folder(cls, folder: Path, **settings: Any) -> Self:
        """Reads generation_config.json of a folder; `settings` take the place of those in the file."""
        return cls.from_dict(read_json_object(folder / GENERATION_CONFIG_FILE), **settings)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes the settings that are set to generation_config.json in a folder, which is created if needed."""
        write_json(Path(save_directory) / GENERATION_CONFIG_FILE, self.explicit_settings())

    def to_json_string(self) -> str:
        """The settings that are set, as JSON."""
        return to_json(self.explicit_settings())

    def to_dict(self) -> dict[str, Any]:
        """All settings by name; None where one is not set."""
        return dict.fromkeys(FIELD_NAMES) | self.explicit_settings()

    def explicit_settings(self) -> dict[str, Any]:
        """The settings that are set, by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.explicit_settings() == other.explicit_settings()

    __hash__ = None  # type: ignore[assignment]  # it is mutable

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in self.explicit_settings().items())})"


FIELD_NAMES = tuple(GenerationConfig.__annotations__)
# Also fields of transformers that are accepted at neutral values.
ACCEPTED_FIELD_NAMES = frozenset((*FIELD_NAMES, *NEUTRAL_VALUE_BY_FIELD, *FIELDS_WITHOUT_EFFECT))
# The value at which a setting has no effect: its default, except that `top_k` is 0; `max_length` has none.
DISABLED_VALUES = {name: vars(GenerationConfig)[name] for name in FIELD_NAMES} | {"top_k": 0}
del DISABLED_VALUES["max_length"]
