"""How words are chosen: the sliders, and what they mean as keywords of a call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from idefics.config import Sampling
from idefics.processing.settings import json_object

DETAILS = [("as closely as the model can", "high"), ("as a whole only", "low"), ("by their own size", "auto")]
STRATEGIES = [("Greedy", "greedy"), ("Beam search", "beams"), ("Sampling", "sampling")]
OBEYS = {  # what a strategy can be told
    "greedy": (),
    "beams": ("num_beams",),
    "sampling": ("temperature", "top_p", "top_k", "min_p", "seed"),
}
LIVELY = {"temperature": 0.8, "top_p": 0.95, "num_beams": 4}  # where a strategy starts once it is picked
WHOLE = ("max_new_tokens", "num_beams", "top_k", "seed")
MOST_TOKENS = 1024  # that a slider offers


class Sliders:
    """A group of components.

    Args:
        most: tokens of an answer, unless somebody says otherwise.
        start: settings to begin with where they are not the usual ones.
        strategies: whether one of greedy, beams and sampling is picked first, and brings the sliders that fit it.

    Attributes:
        inputs: all of them, for handlers; `options` takes their values in this order.
    """

    def __init__(
        self, place: str, most: int, start: Mapping[str, Any] | None = None, *, strategies: bool = False
    ) -> None:
        self.most = most
        start = {"max_new_tokens": most, **(LIVELY if strategies else {}), **(start or {})}
        shown = OBEYS["sampling"] if not strategies else ()
        self.by_name: dict[str, Any] = {}

        def slider(name: str, low: float, high: float, step: float, label: str, info: str) -> None:
            usual = start.get(name, getattr(DEFAULT, name))
            self.by_name[name] = gr.Slider(
                low,
                high,
                usual,
                step=step,
                label=label,
                info=info,
                visible=name in shown or name not in OF_ONE_STRATEGY,
                elem_id=f"{place}-{name.replace('_', '-')}",
            )

        if strategies:
            self.by_name["strategy"] = gr.Radio(
                STRATEGIES, value="greedy", label="Strategy", elem_id=f"{place}-strategy"
            )
        slider("max_new_tokens", 1, max(MOST_TOKENS, most), 1, "Tokens, at most", "a word has one or a few")
        if strategies:
            slider(
                "num_beams",
                2,
                16,
                1,
                "Beams",
                "so many texts are followed at once, and the likeliest is kept",
            )
        slider(
            "temperature", 0, 2, 0.05, "Temperature", "0 always takes the likeliest word; more is livelier"
        )
        slider("top_p", 0, 1, 0.01, "Top p", "choose among the likeliest that sum up to p")
        slider("top_k", 0, 200, 1, "Top k", "choose among the k likeliest; 0 means all")
        slider("min_p", 0, 1, 0.01, "Min p", "drop what is less likely than p times the likeliest")
        self.by_name["seed"] = gr.Number(
            None,
            label="Seed",
            info="any whole number makes the draw repeatable",
            precision=0,
            minimum=0,
            visible="seed" in shown,
            elem_id=f"{place}-seed",
        )
        slider("repetition_penalty", 0.5, 2, 0.05, "Repetition penalty", "above 1 discourages repeating")
        self.by_name["detail"] = gr.Radio(
            DETAILS, value="high", label="Pictures are looked at", elem_id=f"{place}-detail"
        )
        self.inputs = list(self.by_name.values())
        if strategies:
            self._follow()

    @property
    def detail(self) -> Any:
        """How closely pictures are looked at."""
        return self.by_name["detail"]

    @property
    def changes(self) -> list[Any]:
        """The events of somebody moving one."""
        return [one.change for one in self.inputs]

    def options(self, *values: Any) -> dict[str, Any]:
        """The keywords that a call needs to be given."""
        return keywords(dict(zip(self.by_name, values, strict=True)), self.most)

    def _follow(self) -> None:
        """Shows the sliders that fit the strategy."""
        own = [self.by_name[name] for name in OF_ONE_STRATEGY]

        def fit(strategy: str) -> list[Any]:
            return [gr.update(visible=name in OBEYS[strategy]) for name in OF_ONE_STRATEGY]

        self.by_name["strategy"].change(
            fit, self.by_name["strategy"], own, api_visibility="private", show_progress="hidden"
        )


def suggested(folder: Path) -> dict[str, Any]:
    """Where sampling begins by a checkpoint's generation_config.json; nothing, where it wants to be greedy."""
    said = json_object(folder / "generation_config.json")
    if not said.get("do_sample"):
        return {}
    return {name: said[name] for name in ("temperature", "top_p", "top_k") if said.get(name) is not None}


DEFAULT = Sampling()
OF_ONE_STRATEGY = (*OBEYS["beams"], *OBEYS["sampling"])


def keywords(given: Mapping[str, Any], most: int) -> dict[str, Any]:
    """What of some settings has to be said to a call whose answers have `most` tokens: nothing that it does anyway.

    Whole numbers are whole: a slider may send 64.0 for 64.
    """
    given = dict(given)
    strategy = given.pop("strategy", None) or ("sampling" if given.get("temperature") else "greedy")
    others = set(OF_ONE_STRATEGY) - set(OBEYS[strategy])
    usual = {name: getattr(DEFAULT, name) for name in (*OF_ONE_STRATEGY, "repetition_penalty")}
    usual |= {"max_new_tokens": most, "detail": "high"}
    return {
        name: int(value) if name in WHOLE else value
        for name, value in given.items()
        if name not in others and value is not None and value != usual[name]
    }
