"""How words are chosen: the sliders, and what they mean as keywords of a call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from idefics.config import Sampling
from idefics.processing.checkpoint_settings import read_json_object

DETAILS = [("as closely as the model can", "high"), ("as a whole only", "low"), ("by their own size", "auto")]
STRATEGIES = [("Greedy", "greedy"), ("Beam search", "beams"), ("Sampling", "sampling")]
PARAMETERS_BY_STRATEGY = {  # what a strategy can be told
    "greedy": (),
    "beams": ("num_beams",),
    "sampling": ("temperature", "top_p", "top_k", "min_p", "seed"),
}
STRATEGY_INITIAL_VALUES = {
    "temperature": 0.8,
    "top_p": 0.95,
    "num_beams": 4,
}  # where a strategy starts once it is picked
INTEGER_PARAMETERS = ("max_new_tokens", "num_beams", "top_k", "seed")
MAX_SLIDER_TOKENS = 1024  # that a slider offers


class GenerationControls:
    """A group of components.

    Args:
        default_max_new_tokens: tokens of an answer, unless somebody says otherwise.
        initial_values: settings to begin with where they are not the usual ones.
        has_strategies: whether one of greedy, beams and sampling is picked first, and brings the sliders that fit it.

    Attributes:
        inputs: all of them, for handlers; `to_generation_kwargs` takes their values in this order.
    """

    def __init__(
        self,
        tab_name: str,
        default_max_new_tokens: int,
        initial_values: Mapping[str, Any] | None = None,
        *,
        has_strategies: bool = False,
    ) -> None:
        self.default_max_new_tokens = default_max_new_tokens
        initial_values = {
            "max_new_tokens": default_max_new_tokens,
            **(STRATEGY_INITIAL_VALUES if has_strategies else {}),
            **(initial_values or {}),
        }
        visible_names = PARAMETERS_BY_STRATEGY["sampling"] if not has_strategies else ()
        self.component_by_name: dict[str, Any] = {}

        def add_slider(name: str, low: float, high: float, step: float, label: str, info: str) -> None:
            initial_value = initial_values.get(name, getattr(DEFAULT_SAMPLING, name))
            self.component_by_name[name] = gr.Slider(
                low,
                high,
                initial_value,
                step=step,
                label=label,
                info=info,
                visible=name in visible_names or name not in STRATEGY_PARAMETERS,
                elem_id=f"{tab_name}-{name.replace('_', '-')}",
            )

        if has_strategies:
            self.component_by_name["strategy"] = gr.Radio(
                STRATEGIES, value="greedy", label="Strategy", elem_id=f"{tab_name}-strategy"
            )
        add_slider(
            "max_new_tokens",
            1,
            max(MAX_SLIDER_TOKENS, default_max_new_tokens),
            1,
            "Tokens, at most",
            "a word has one or a few",
        )
        if has_strategies:
            add_slider(
                "num_beams",
                2,
                16,
                1,
                "Beams",
                "so many texts are followed at once, and the likeliest is kept",
            )
        add_slider(
            "temperature", 0, 2, 0.05, "Temperature", "0 always takes the likeliest word; more is livelier"
        )
        add_slider("top_p", 0, 1, 0.01, "Top p", "choose among the likeliest that sum up to p")
        add_slider("top_k", 0, 200, 1, "Top k", "choose among the k likeliest; 0 means all")
        add_slider("min_p", 0, 1, 0.01, "Min p", "drop what is less likely than p times the likeliest")
        self.component_by_name["seed"] = gr.Number(
            None,
            label="Seed",
            info="any whole number makes the draw repeatable",
            precision=0,
            minimum=0,
            visible="seed" in visible_names,
            elem_id=f"{tab_name}-seed",
        )
        add_slider("repetition_penalty", 0.5, 2, 0.05, "Repetition penalty", "above 1 discourages repeating")
        self.component_by_name["detail"] = gr.Radio(
            DETAILS, value="high", label="Pictures are looked at", elem_id=f"{tab_name}-detail"
        )
        self.inputs = list(self.component_by_name.values())
        if has_strategies:
            self._connect_strategy()

    @property
    def detail_control(self) -> Any:
        """How closely pictures are looked at."""
        return self.component_by_name["detail"]

    @property
    def change_events(self) -> list[Any]:
        """The events of somebody moving one."""
        return [one.change for one in self.inputs]

    def to_generation_kwargs(self, *values: Any) -> dict[str, Any]:
        """The keywords that a call needs to be given."""
        return changed_generation_kwargs(
            dict(zip(self.component_by_name, values, strict=True)), self.default_max_new_tokens
        )

    def _connect_strategy(self) -> None:
        """Shows the sliders that fit the strategy."""
        strategy_components = [self.component_by_name[name] for name in STRATEGY_PARAMETERS]

        def update_visibility(strategy: str) -> list[Any]:
            return [
                gr.update(visible=name in PARAMETERS_BY_STRATEGY[strategy]) for name in STRATEGY_PARAMETERS
            ]

        self.component_by_name["strategy"].change(
            update_visibility,
            self.component_by_name["strategy"],
            strategy_components,
            api_visibility="private",
            show_progress="hidden",
        )


def suggested_sampling(folder: Path) -> dict[str, Any]:
    """Where sampling begins by a checkpoint's generation_config.json; nothing, where it wants to be greedy."""
    generation_config = read_json_object(folder / "generation_config.json")
    if not generation_config.get("do_sample"):
        return {}
    return {
        name: generation_config[name]
        for name in ("temperature", "top_p", "top_k")
        if generation_config.get(name) is not None
    }


DEFAULT_SAMPLING = Sampling()
STRATEGY_PARAMETERS = (*PARAMETERS_BY_STRATEGY["beams"], *PARAMETERS_BY_STRATEGY["sampling"])


def changed_generation_kwargs(values: Mapping[str, Any], default_max_new_tokens: int) -> dict[str, Any]:
    """What of some settings has to be said to a call whose answers have `default_max_new_tokens` tokens: nothing that it does anyway.

    Whole numbers are whole: a slider may send 64.0 for 64.
    """
    values = dict(values)
    strategy = values.pop("strategy", None) or ("sampling" if values.get("temperature") else "greedy")
    inapplicable_names = set(STRATEGY_PARAMETERS) - set(PARAMETERS_BY_STRATEGY[strategy])
    default_values = {
        name: getattr(DEFAULT_SAMPLING, name) for name in (*STRATEGY_PARAMETERS, "repetition_penalty")
    }
    default_values |= {"max_new_tokens": default_max_new_tokens, "detail": "high"}
    return {
        name: int(value) if name in INTEGER_PARAMETERS else value
        for name, value in values.items()
        if name not in inapplicable_names and value is not None and value != default_values[name]
    }
