"""The line charts of a training's report: losses, right answers, gradients and learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from idefics.batch.report_charts import nice_step
from idefics.train.logs import TrainingHistory

Point = tuple[float, float]  # step, value

MAX_POINTS = 400  # of a line
SMOOTHED_SHARE = 1 / 50  # of all steps: the width of the moving average
MIN_SMOOTHED_STEPS = 20


@dataclass(frozen=True, slots=True)
class AxisTick:
    """A label of an axis.

    Attributes:
        label: the value, for people.
        percent: where it stands: from the left, or from the top.
    """

    label: str
    percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartLine:
    """One line of a chart.

    Attributes:
        name: of the values; "" for one that the legend leaves out.
        style: "main", "faint" or "second".
        points: "x,y x,y ..." in percent of the chart, from the top left.
        last: its last value, for people.
    """

    name: str
    style: Literal["main", "faint", "second"]
    points: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """A chart of lines over the steps.

    Attributes:
        title: what is shown.
        lines: at least one.
        x_ticks, y_ticks: the labels of the axes.
    """

    title: str
    lines: list[ChartLine]
    x_ticks: list[AxisTick]
    y_ticks: list[AxisTick]


def training_charts(history: TrainingHistory) -> list[LineChart]:
    """The charts that have something to show."""
    steps, validations = history.steps, history.validations
    losses = [(float(one.step), one.loss) for one in steps]
    smoothed = smooth(losses)
    loss_lines: list[tuple[str, Literal["main", "faint", "second"], Sequence[Point]]] = [
        ("", "faint", losses if smoothed else []),
        ("training", "main", smoothed or losses),
        ("validation", "second", [(one.step, one.loss) for one in validations]),
    ]
    charts = [
        _line_chart("Loss (nats a learned token)", loss_lines),
        _line_chart(
            "Right, in % of the validation rows",
            [
                ("whole answers", "main", [(one.step, 100 * one.row_accuracy) for one in validations]),
                ("tokens", "second", [(one.step, 100 * one.token_accuracy) for one in validations]),
            ],
            most=100.0,
        ),
        _line_chart("Norm of the gradient", [("", "main", [(one.step, one.gradient_norm) for one in steps])]),
        _line_chart("Learning rate", [("", "main", [(one.step, one.learning_rate) for one in steps])]),
    ]
    return [chart for chart in charts if chart is not None]


def smooth(points: Sequence[Point]) -> list[Point]:
    """The mean of each point and of those before it within 1/50 of all steps; nothing if there are few points."""
    if len(points) < MIN_SMOOTHED_STEPS:
        return []
    width = max(5, round(len(points) * SMOOTHED_SHARE))
    smoothed = []
    for index, (step, _) in enumerate(points):
        window = points[max(0, index + 1 - width) : index + 1]
        smoothed.append((step, sum(value for _, value in window) / len(window)))
    return smoothed


def thin_out(points: Sequence[Point]) -> list[Point]:
    """At most 400 points: means of neighbours. Points that are no finite number are left out."""
    finite = [point for point in points if math.isfinite(point[1])]
    size = math.ceil(len(finite) / MAX_POINTS) or 1
    groups = (finite[start : start + size] for start in range(0, len(finite), size))
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _line_chart(
    title: str,
    lines: Sequence[tuple[str, Literal["main", "faint", "second"], Sequence[Point]]],
    most: float | None = None,
) -> LineChart | None:
    """A chart from 0 to its highest value, or to `most`; None if no line has a point."""
    thinned = [(name, style, thin_out(points)) for name, style, points in lines]
    points = [point for _, _, line in thinned for point in line]
    if not points:
        return None
    last_step = max(step for step, _ in points) or 1.0
    step = nice_step((most or max(value for _, value in points)) / 4, at_least=1e-12)
    top = step * math.ceil((most or max(value for _, value in points)) / step - 1e-9) or step
    x_step = nice_step(last_step / 5, at_least=1)
    return LineChart(
        title=title,
        lines=[
            ChartLine(
                name=name,
                style=style,
                points=" ".join(f"{100 * x / last_step:.2f},{100 - 100 * y / top:.2f}" for x, y in line),
                last=f"{line[-1][1]:.3g}",
            )
            for name, style, line in thinned
            if line
        ],
        x_ticks=[
            AxisTick(f"{value * x_step:,.0f}", 100 * value * x_step / last_step)
            for value in range(int(last_step / x_step + 1e-9) + 1)
        ],
        y_ticks=[
            AxisTick(f"{value * step:g}", 100 - 100 * value * step / top)
            for value in range(round(top / step) + 1)
        ],
    )
