"""The controls under "Advanced", and their values as keywords of a call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from idefics.config import Sampling
from idefics.processing.checkpoint_settings import read_json_object

DETAILS = [("high", "high"), ("low: one tile", "low"), ("auto: by the picture's size", "auto")]
STRATEGIES = [("Greedy", "greedy"), ("Beam search", "beams"), ("Sampling", "sampling")]
PARAMETERS_BY_STRATEGY = {  # the controls that belong to each strategy
    "greedy": (),
    "beams": ("num_beams",),
    "sampling": ("temperature", "top_p", "top_k", "min_p", "seed"),
}
# The values of a strategy's controls when it is chosen.
STRATEGY_INITIAL_VALUES = {"temperature": 0.8, "top_p": 0.95, "num_beams": 4}
INTEGER_PARAMETERS = ("max_new_tokens", "num_beams", "top_k", "seed")
MAX_SLIDER_TOKENS = 1024  # the upper end of the slider of `max_new_tokens`


class GenerationControls:
    """The controls of generation, built inside the current Gradio block.

    Args:
        tab_name: the tab, in element ids.
        default_max_new_tokens: the initial value of `max_new_tokens`.
        initial_values: keywords whose initial values differ from the package's defaults.
        has_strategies: whether a strategy (greedy, beam search, sampling) is chosen first and only its controls are
            shown; False: the controls of sampling are shown.

    Attributes:
        component_by_name: keyword -> component.
        inputs: all components, for handlers; `to_generation_kwargs` takes their values in this order.
    """

    def __init__(
        self,
        tab_name: str,
        default_max_new_tokens: int,
        initial_values: Mapping[str, Any] | None = None,
        *,
        has_strategies: bool = False,
    ) -> None:
        self.tab_name, self.default_max_new_tokens = tab_name, default_max_new_tokens
        self.component_by_name: dict[str, Any] = {}
        self._initial_values = {
            "max_new_tokens": default_max_new_tokens,
            **(STRATEGY_INITIAL_VALUES if has_strategies else {}),
            **(initial_values or {}),
        }
        self._visible_names = () if has_strategies else PARAMETERS_BY_STRATEGY["sampling"]
        if has_strategies:
            self.component_by_name["strategy"] = gr.Radio(
                STRATEGIES, value="greedy", label="Strategy", elem_id=f"{tab_name}-strategy"
            )
        max_tokens = max(MAX_SLIDER_TOKENS, default_max_new_tokens)
        self._add_slider(
            "max_new_tokens", 1, max_tokens, 1, "Max new tokens", "the longest answer, in tokens"
        )
        if has_strategies:
            self._add_slider("num_beams", 2, 16, 1, "Beams", "texts that are searched at the same time")
        self._add_sampling_controls()
        info = "above 1 discourages repetition"
        self._add_slider("repetition_penalty", 0.5, 2, 0.05, "Repetition penalty", info)
        self.component_by_name["detail"] = gr.Radio(
            DETAILS, value="high", label="Image detail", elem_id=f"{tab_name}-detail"
        )
        self.inputs = list(self.component_by_name.values())
        if has_strategies:
            self._connect_strategy()

    def _add_sampling_controls(self) -> None:
        """Adds the controls of sampling: temperature, top p, top k, min p and seed."""
        info = "0 always takes the most likely token; higher values vary more"
        self._add_slider("temperature", 0, 2, 0.05, "Temperature", info)
        info = "sample from the most likely tokens whose probabilities add up to p"
        self._add_slider("top_p", 0, 1, 0.01, "Top p", info)
        info = "sample from the k most likely tokens; 0 means all"
        self._add_slider("top_k", 0, 200, 1, "Top k", info)
        info = "drop tokens less likely than p times the most likely"
        self._add_slider("min_p", 0, 1, 0.01, "Min p", info)
        self.component_by_name["seed"] = gr.Number(
            None,
            label="Seed",
            info="the same whole number gives the same answer",
            precision=0,
            minimum=0,
            visible="seed" in self._visible_names,
            elem_id=f"{self.tab_name}-seed",
        )

    def _add_slider(self, name: str, low: float, high: float, step: float, label: str, info: str) -> None:
        """Adds the slider of one keyword from `low` to `high`."""
        self.component_by_name[name] = gr.Slider(
            low,
            high,
            self._initial_values.get(name, getattr(DEFAULT_SAMPLING, name)),
            step=step,
            label=label,
            info=info,
            visible=name in self._visible_names or name not in STRATEGY_PARAMETERS,
            elem_id=f"{self.tab_name}-{name.replace('_', '-')}",
        )

    @property
    def detail_control(self) -> Any:
        """The component that chooses the image detail: "high", "low" or "auto"."""
        return self.component_by_name["detail"]

    @property
    def change_events(self) -> list[Any]:
        """The change events of all components, for "Show code"."""
        return [one.change for one in self.inputs]

    def to_generation_kwargs(self, *values: Any) -> dict[str, Any]:
        """The keywords of a call for the values of `inputs`; values equal to the defaults are left out."""
        return non_default_generation_kwargs(
            dict(zip(self.component_by_name, values, strict=True)), self.default_max_new_tokens
        )

    def _connect_strategy(self) -> None:
        """Shows the controls of the chosen strategy and hides the others."""
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


def read_checkpoint_sampling(folder: Path) -> dict[str, Any]:
    """The sampling settings of a checkpoint's `generation_config.json`; empty if it does not set `do_sample`."""
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


def non_default_generation_kwargs(values: Mapping[str, Any], default_max_new_tokens: int) -> dict[str, Any]:
    """The keywords whose values differ from the defaults of a call.

    Args:
        values: keyword -> value of its control; a slider may send 64.0 for 64. "strategy" decides which apply.
        default_max_new_tokens: the default of `max_new_tokens`.
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
