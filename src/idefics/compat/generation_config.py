"""`GenerationConfig`: the settings of `generate`, as the guides and generation_config.json name them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from idefics.compat.generation_config_values import validate_field
from idefics.compat.pretrained import GENERATION_CONFIG_FILES, PretrainedMixin
from idefics.compat.serialization import config_to_dict, read_json_object, to_json, write_json
from idefics.errors import BadSetting, UnknownArgument
from idefics.generation_fields import FIELDS_WITHOUT_EFFECT, NEUTRAL_VALUES_BY_FIELD, is_neutral

GENERATION_CONFIG_FILE = "generation_config.json"


class GenerationConfig(PretrainedMixin):
    """How `generate` continues a prompt. What is not set, or set to None, has the default beside its name.

    Attributes:
        max_length: at most so many ids, the prompt's among them. Where neither this nor `max_new_tokens` is set,
            20 ids are generated.
        max_new_tokens: at most so many generated ids; wins over `max_length`.
        min_length: `eos_token_id` is not chosen before so many ids, the prompt's among them.
        min_new_tokens: the same, of generated ids.
        max_time: seconds after which no further id is generated.
        stop_strings: texts that end an answer, which keeps them; they need `generate(tokenizer=)`.
        do_sample: draw the next id instead of taking the most likely one. The settings from `temperature` to
            `eta_cutoff` act only then.
        temperature: logits are divided by it.
        top_k: keep the k most likely ids; 0 keeps all.
        top_p: keep the smallest set of most likely ids whose probability reaches p (arXiv 1904.09751).
        min_p: drop ids less likely than min_p times the most likely one (arXiv 2407.01082).
        top_h: keep the most likely of 100 ids while the sum of -p log p stays below this part of their entropy
            (arXiv 2509.02510).
        typical_p: keep the most typical ids until their probability reaches p (arXiv 2202.00666).
        epsilon_cutoff: drop ids of a probability below this (arXiv 2210.15191); `eta_cutoff` lowers that bound where
            the entropy is high.
        repetition_penalty: divides positive and multiplies negative scores of ids already there, the prompt's
            among them (CTRL, arXiv 1909.05858).
        encoder_repetition_penalty: the opposite, for ids of the prompt alone.
        no_repeat_ngram_size: no sequence of so many ids comes twice, the prompt's among them; 0 allows all.
        bad_words_ids: sequences of ids that are never generated whole; an empty one forbids nothing.
        sequence_bias: [[ids, number], ...]: the number is added to the score of the last id after the others.
        suppress_tokens, begin_suppress_tokens: ids that are never generated, or not as the first.
        forced_bos_token_id: the id after a prompt of one id; `forced_eos_token_id` is the last within `max_length`.
        exponential_decay_length_penalty: (start, factor): after so many generated ids the stop ids' scores grow by
            that factor with each further one.
        guidance_scale: scores are drawn away from those without the prompt, or with `generate(negative_prompt_ids=)`,
            by this factor (arXiv 2306.17806); 1 is none.
        renormalize_logits: scores are log-probabilities again after all of this.
        num_beams: beams of a beam search; 1 is none.
        num_return_sequences: answers to each prompt: the best beams, or as many draws.
        length_penalty: beams compete by the sum of their log-probabilities / length ** length_penalty.
        early_stopping: a beam search is over, with True, as soon as `num_beams` have ended; with False, when the
            best that goes on is no better yet than those; with "never", when it can never be better.
        eos_token_id: the id, or each of the ids, that ends an answer.
        pad_token_id: stands after an answer that is shorter than others; None is the first `eos_token_id`.
        bos_token_id: the whole prompt where none is given.
        use_cache: keep the keys and values of what has been read, rather than read all of it for each id.
        return_dict_in_generate: return an object with `sequences` and what the `output_` settings ask for.
        output_scores: `scores`, what ids were chosen by; of beams `sequences_scores` too.
        output_logits: `logits`, as the model gave them.
        output_attentions, output_hidden_states: `attentions` and `hidden_states` of every step.
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

    # What transformers' Seq2SeqTrainer asks, which fills in defaults: here they are there already.
    _from_model_config = False

    @staticmethod
    def _get_default_generation_params() -> dict[str, Any]:
        return {}

    def __init__(self, **settings: Any) -> None:
        self.update(**settings)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):  # notes of transformers' own code, such as `_from_model_config`
            vars(self)[name] = value
        elif name not in ACCEPTED_FIELD_NAMES:
            raise UnknownArgument("GenerationConfig", [name], FIELD_NAMES)
        elif value is None:
            vars(self).pop(name, None)
        elif name in FIELD_NAMES:
            vars(self)[name] = validate_field(name, value)
        elif not is_neutral(name, value):
            raise BadSetting(f"{name} is {value!r}, and `generate` does not have it: leave it out")
        else:
            vars(self)[name] = value

    def __getattr__(self, name: str) -> None:
        if name not in ACCEPTED_FIELD_NAMES:
            raise AttributeError(f"GenerationConfig has no {name!r}")

    def update(self, defaults_only: bool = False, **settings: Any) -> None:
        """Sets several settings; with `defaults_only` those that are not set. Raises UnknownArgument, BadSetting."""
        for name, value in settings.items():
            if not (defaults_only and self.is_field_set(name)):
                setattr(self, name, value)

    def with_overrides(self, **settings: Any) -> Self:
        """A copy with other settings, in which None switches off even what a checkpoint has set."""
        copy = type(self)(**self.explicit_settings())
        copy.update(**settings)
        disabled_names = [
            name for name, value in settings.items() if value is None and name in DISABLED_VALUES
        ]
        vars(copy).update({name: DISABLED_VALUES[name] for name in disabled_names})
        return copy

    def is_field_set(self, name: str) -> bool:
        """Whether a setting was given a value, its default or another."""
        return name in vars(self)

    @property
    def stop_ids(self) -> list[int]:
        """`eos_token_id` as a list."""
        if self.eos_token_id is None:
            return []
        return [self.eos_token_id] if isinstance(self.eos_token_id, int) else self.eos_token_id

    @property
    def effective_pad_token_id(self) -> int | None:
        """What stands after an answer that has ended; None where no id is known to be of no meaning."""
        return self.stop_ids[0] if self.pad_token_id is None and self.stop_ids else self.pad_token_id

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], **others: Any) -> Self:
        """From what a generation_config.json holds. What it does not set, or sets to None, has its default.

        Names that change no answer are left out, as `generation_fields` has it.

        Raises:
            BadSetting: a name that changes answers in a way that `generate` does not have, or a value out of range.
        """
        supported_settings = {
            name: value
            for name, value in settings.items()
            if name in FIELD_NAMES or not is_neutral(name, value)
        }
        return cls(**supported_settings | others)

    @classmethod
    def from_any(cls, config: object) -> Self:
        """From settings of this class or of transformers, or from what a generation_config.json holds.

        Raises:
            BadSetting: it is none of these, or asks for what `generate` does not have.
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
            del settings["max_length"]  # it wrote its defaults as if they had been set
        return cls.from_dict(settings)

    @classmethod
    def from_model_config(cls, model_config: object) -> Self:
        """The special ids that a config names, its text part's where it has none itself.

        Args:
            model_config: a config of this package or of transformers, or the content of a config.json.
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
        return cls.from_dict(read_json_object(folder / GENERATION_CONFIG_FILE), **settings)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes what is set to the generation_config.json of a folder, which is made if need be."""
        write_json(Path(save_directory) / GENERATION_CONFIG_FILE, self.explicit_settings())

    def to_json_string(self) -> str:
        """What is set, as generation_config.json has it."""
        return to_json(self.explicit_settings())

    def to_dict(self) -> dict[str, Any]:
        """Every setting by name; None where it is not set."""
        return dict.fromkeys(FIELD_NAMES) | self.explicit_settings()

    def explicit_settings(self) -> dict[str, Any]:
        """What is set."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.explicit_settings() == other.explicit_settings()

    __hash__ = None  # type: ignore[assignment]  # what is equal now may not be later

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in self.explicit_settings().items())})"


FIELD_NAMES = tuple(GenerationConfig.__annotations__)
ACCEPTED_FIELD_NAMES = frozenset(
    {*FIELD_NAMES, *NEUTRAL_VALUES_BY_FIELD, *FIELDS_WITHOUT_EFFECT}
)  # those of transformers that are not here, too
DISABLED_VALUES = {name: vars(GenerationConfig)[name] for name in FIELD_NAMES} | {
    "top_k": 0
}  # defaults change nothing
del DISABLED_VALUES["max_length"]
