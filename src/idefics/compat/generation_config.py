"""`GenerationConfig`: the settings of `generate`, as the guides and generation_config.json name them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Self

from idefics.errors import BadSetting, BrokenCheckpoint, UnknownArgument
from idefics.weights import find

FILE = "generation_config.json"

# In a file, these say where it comes from or how fast something shall be computed; answers do not depend on them.
BESIDE_THE_POINT = {
    "cache_config",
    "cache_implementation",
    "compile_config",
    "disable_compile",
    "transformers_version",
}

COUNTS = {  # whole numbers -> the least that makes sense
    "max_length": 1,
    "max_new_tokens": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "top_k": 0,
    "no_repeat_ngram_size": 0,
}
RANGES = {  # numbers -> from, to
    "temperature": (0.0, math.inf),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.01, 1.0),
    "repetition_penalty": (0.01, math.inf),
    "length_penalty": (-math.inf, math.inf),
    "max_time": (0.0, math.inf),
}
SWITCHES = {
    "do_sample",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "return_dict_in_generate",
}


class GenerationConfig:
    """How `generate` continues a prompt. What is not set, or set to None, has the default beside its name.

    Attributes:
        max_length: at most so many ids, the prompt's among them. Where neither this nor `max_new_tokens` is set,
            20 ids are generated.
        max_new_tokens: at most so many generated ids; wins over `max_length`.
        min_length: `eos_token_id` is not chosen before so many ids, the prompt's among them.
        min_new_tokens: the same, of generated ids.
        max_time: seconds after which no further id is generated.
        do_sample: draw the next id instead of taking the most likely one. The settings from `temperature` to
            `typical_p` act only then.
        temperature: logits are divided by it.
        top_k: keep the k most likely ids; 0 keeps all.
        top_p: keep the smallest set of most likely ids whose probability reaches p (arXiv 1904.09751).
        min_p: drop ids less likely than min_p times the most likely one (arXiv 2407.01082).
        typical_p: keep the most typical ids until their probability reaches p (arXiv 2202.00666).
        repetition_penalty: divides positive and multiplies negative scores of ids already there, the prompt's
            among them (CTRL, arXiv 1909.05858).
        no_repeat_ngram_size: no sequence of so many ids comes twice, the prompt's among them; 0 allows all.
        bad_words_ids: sequences of ids that are never generated whole; an empty one forbids nothing.
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
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: list[list[int]] | None = None
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

    def __init__(self, **settings: Any) -> None:
        self.update(**settings)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in NAMES:
            raise UnknownArgument("GenerationConfig", [name], NAMES)
        if value is None:
            vars(self).pop(name, None)
        else:
            vars(self)[name] = _checked(name, value)

    def update(self, **settings: Any) -> None:
        """Sets several settings. Raises UnknownArgument, BadSetting."""
        for name, value in settings.items():
            setattr(self, name, value)

    def switch(self, **settings: Any) -> Self:
        """A copy with other settings, in which None switches off even what a checkpoint has set."""
        copy = type(self)(**vars(self))
        copy.update(**settings)
        off = [name for name, value in settings.items() if value is None and name != "max_length"]
        vars(copy).update({name: SWITCHED_OFF[name] for name in off})
        return copy

    def is_set(self, name: str) -> bool:
        """Whether a setting was given a value, its default or another."""
        return name in vars(self)

    @property
    def stop_ids(self) -> list[int]:
        """`eos_token_id` as a list."""
        if self.eos_token_id is None:
            return []
        return [self.eos_token_id] if isinstance(self.eos_token_id, int) else self.eos_token_id

    @property
    def padding(self) -> int | None:
        """What stands after an answer that has ended; None where no id is known to be of no meaning."""
        return self.stop_ids[0] if self.pad_token_id is None and self.stop_ids else self.pad_token_id

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any], **others: Any) -> Self:
        """From what a generation_config.json holds. What it does not set, or sets to None, has its default."""
        kept = {
            name: value
            for name, value in settings.items()
            # The file of another library may name more than there is here: switched off, it says nothing.
            if name in NAMES or (value and not name.startswith("_") and name not in BESIDE_THE_POINT)
        }
        return cls(**kept | others)

    @classmethod
    def from_model_config(cls, config: Mapping[str, Any]) -> Self:
        """The special ids that a config.json names, its text part's where it has none itself."""
        text = config.get("text_config") or {}
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        return cls(
            **{name: config[name] if config.get(name) is not None else text.get(name) for name in names}
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **others: Any) -> Self:
        """From the generation_config.json of a folder, hub id or short name; `others` win over the file.

        Raises:
            ModelNotFound: no such model.
            BrokenCheckpoint: it has no such file, or one that cannot be read.
        """
        folder = Path(pretrained_model_name_or_path)
        if not (folder / FILE).is_file():
            folder = find(pretrained_model_name_or_path)
        path = folder / FILE
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BrokenCheckpoint(f"{folder} has no {FILE}: write one with save_pretrained") from None
        except (OSError, ValueError) as error:
            raise BrokenCheckpoint(f"{path} cannot be read as JSON ({type(error).__name__})") from None
        if not isinstance(settings, dict):
            raise BrokenCheckpoint(f"{path} is not a JSON object")
        return cls.from_dict(settings, **others)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes what is set to the generation_config.json of a folder, which is made if need be."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(json.dumps(vars(self), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Every setting by name; None where it is not set."""
        return {name: vars(self).get(name) for name in NAMES}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]  # what is equal now may not be later

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


NAMES = tuple(GenerationConfig.__annotations__)
SWITCHED_OFF = {name: vars(GenerationConfig)[name] for name in NAMES} | {
    "top_k": 0
}  # defaults change nothing


def _checked(name: str, value: Any) -> Any:
    """The value as the settings keep it. Raises BadSetting."""
    if name in COUNTS:
        return _whole(name, value, COUNTS[name])
    if name in RANGES:
        return _number(name, value, *RANGES[name])
    if name in SWITCHES and not isinstance(value, bool):
        raise BadSetting(f"{name} is {value!r}; give True or False")
    if name == "early_stopping" and not isinstance(value, bool) and value != "never":
        raise BadSetting(f'early_stopping is {value!r}; give True, False or "never"')
    if name == "bad_words_ids":
        return _words(value)
    if name == "eos_token_id" and isinstance(value, list | tuple):
        return [_whole(name, id) for id in value]
    if name.endswith("_token_id"):
        return _whole(name, value)
    return value


def _whole(name: str, value: Any, low: float = -math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < low:
        raise BadSetting(
            f"{name} is {value!r}; give a whole number{f' from {low}' if low > -math.inf else ''}"
        )
    return int(value)


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) <= high:
        limits = f" from {low:g}" * (low > -math.inf) + f" to {high:g}" * (high < math.inf)
        raise BadSetting(f"{name} is {value!r}; give a number{limits}")
    return float(value)


def _words(words: Any) -> list[list[int]]:
    if not isinstance(words, list | tuple) or not all(isinstance(word, list | tuple) for word in words):
        raise BadSetting(f"bad_words_ids is {words!r}; give a list of lists of ids, such as [[5], [7, 8]]")
    return [[_whole("an id of bad_words_ids", id, 0) for id in word] for word in words]
