"""The report's figures, drawn by matplotlib: inline SVG that takes the page's text colour, or a PNG for a README."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from solon.evaluation import COLUMNS, Score, ordered_models

Drawing = Any
"""A matplotlib Figure or Axes, whose types are only partly known."""

COLOURS: Mapping[str, str] = {"base": "#8b93a1", "helpful": "#d4603a", "sl-cai": "#c9962b", "rl-cai": "#1f9488"}
"""Of the models, in every figure and on the page."""
_OTHERS = ("#6b7fd7", "#b05fa8", "#5b8c3e", "#9a6b4b")


class Palette(NamedTuple):
    """The colours of a drawing that are not a model's."""

    ink: str
    faint: str


SCREEN = Palette("#010203", "#010204")
"""Stand-ins, in a drawing for the page, for its colours of text and of grid lines."""
_PAPER = Palette("#1c2430", "#d9dee5")
RATES = ("harmful_compliance", "explained_refusal", "evasiveness", "right_help", "over_refusal")
_CURVES: Sequence[tuple[str, tuple[str, ...]]] = (
    ("preference score", ("score", "rewards/preference/mean", "reward")),
    ("held-out answers: harmless, share", ("held_out/harmlessness",)),
    ("held-out answers: helpful, share", ("held_out/helpfulness",)),
    ("held-out answers: better than SL-CAI's, by the judge", ("held_out/judge_win",)),
    ("held-out answers: better than SL-CAI's, by the preference model", ("held_out/pm_win",)),
    ("KL from SL-CAI, nats", ("sequence_kl", "kl", "objective/kl")),
    ("KL from SL-CAI, nats per token", ("token_kl",)),
    ("entropy of the policy, nats per token", ("entropy",)),
    ("answer length, tokens", ("completions/mean_length", "mean_length", "length")),
    ("truncated answers, share", ("truncated",)),
    ("refusals, share", ("refusals",)),
    ("boilerplate: share with the commonest phrase", ("boilerplate",)),
    ("distinct words, share", ("distinct_1",)),
    ("distinct pairs of words, share", ("distinct_2",)),
)
"""Heading, and the names under which the trainers log the value, the best first."""


def colour_of(model: str, *, models: Sequence[str]) -> str:
    """The colour of a model; one that is not of the method takes the next free one."""
    others = [name for name in models if name not in COLOURS]
    return COLOURS.get(model) or _OTHERS[others.index(model) % len(_OTHERS)]


def rates_svg(scores: Sequence[Score]) -> str | None:
    """Bars with 95 % intervals of the oracle's shares, by metric and model; None without any."""
    figure = _rates(scores, palette=SCREEN)
    return None if figure is None else svg_of(figure, salt="rates")


def figure_png(scores: Sequence[Score], path: str | Path) -> Path:
    """Draw the same bars into a PNG on white, for a README. Raises ValueError if there is no share among the scores."""
    figure = _rates(scores, palette=_PAPER)
    if figure is None:
        raise ValueError("no shares among the scores: nothing to draw")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return path


def elo_svg(scores: Sequence[Score]) -> str | None:
    """Helpfulness against harmlessness Elo with 95 % intervals, as figure 2 of the paper; None without both."""
    found = {(row["model"], row["metric"]): row for row in scores}
    models = [
        name
        for name in ordered_models({row["model"] for row in scores})
        if (name, "elo_harmlessness") in found and (name, "elo_helpfulness") in found
    ]
    if not models:
        return None
    figure, (axes,) = new_figure(1, height=3.9)
    for name in models:
        x, y = found[name, "elo_helpfulness"], found[name, "elo_harmlessness"]
        colour = colour_of(name, models=models)
        axes.errorbar(
            x["value"],
            y["value"],
            xerr=[[x["value"] - x["low"]], [x["high"] - x["value"]]],
            yerr=[[y["value"] - y["low"]], [y["high"] - y["value"]]],
            fmt="o",
            color=colour,
            markersize=8,
            elinewidth=1.4,
            capsize=3,
        )
        axes.annotate(
            name,
            (x["value"], y["value"]),
            xytext=(9, 7),
            textcoords="offset points",
            color=SCREEN.ink,
            fontweight="bold",
        )
    axes.set_xlabel("helpfulness, Elo")
    axes.set_ylabel("harmlessness, Elo")
    axes.margins(0.25)
    axes.grid(color=SCREEN.faint, linewidth=0.8)
    return svg_of(figure, salt="elo")


def curves_svg(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """Score, KL, length and what else is watched, by the step of reinforcement learning; None for nothing logged."""
    series: list[tuple[str, list[float], list[float]]] = []
    for title, names in _CURVES:
        for name in names:
            points = [(row["step"], row[name]) for row in metrics if _is_number(row.get(name)) and "step" in row]
            if len(points) > 1:
                series.append((title, [float(x) for x, _ in points], [float(y) for _, y in points]))
                break
    if not series:
        return None
    figure, every = new_figure(len(series), height=0.4 + 1.35 * len(series))
    for axes, (title, steps, values) in zip(every, series, strict=True):
        axes.plot(steps, values, color=COLOURS["rl-cai"], linewidth=1.8)
        axes.set_title(title, loc="left", fontsize=10, color=SCREEN.ink)
        if min(values) == max(values) == 0:
            axes.set_ylim(-0.1, 1)
        axes.grid(color=SCREEN.faint, linewidth=0.8)
        axes.locator_params(axis="y", nbins=4)
        axes.locator_params(axis="x", nbins=6)
    every[-1].set_xlabel("step")
    return svg_of(figure, salt="curves")


def reliability_svg(bins: Sequence[Mapping[str, Any]], *, scaled: Sequence[Mapping[str, Any]] = ()) -> str | None:
    """Predicted against labelled probability, with intervals, as figure 9 of the paper; None without bins.

    `scaled` are the bins after the probabilities were scaled by a temperature; they are drawn beside the others.
    """
    if not bins:
        return None
    figure, (axes,) = new_figure(1, height=3.9)
    axes.plot([0, 1], [0, 1], color=SCREEN.faint, linewidth=1.4)
    for own, name, style in ((bins, "as trained", "o-"), (scaled, "scaled by the temperature", "s--")):
        if own:
            _draw_bins(axes, own, name=name, style=style)
    if scaled:
        axes.legend(frameon=False, labelcolor=SCREEN.ink, fontsize=10, loc="upper left")
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("labelled probability")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(color=SCREEN.faint, linewidth=0.6)
    return svg_of(figure, salt="reliability")


def _draw_bins(axes: Drawing, bins: Sequence[Mapping[str, Any]], *, name: str, style: str) -> None:
    x, y = [one["confidence"] for one in bins], [one["outcome"]["value"] for one in bins]
    low = [one["outcome"]["value"] - one["outcome"]["low"] for one in bins]
    high = [one["outcome"]["high"] - one["outcome"]["value"] for one in bins]
    colour = COLOURS["rl-cai" if style == "o-" else "helpful"]
    axes.errorbar(x, y, yerr=[low, high], fmt=style, color=colour, markersize=6, capsize=3, linewidth=1.4, label=name)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rates(scores: Sequence[Score], *, palette: Palette) -> Drawing | None:
    found = {(row["model"], row["metric"]): row for row in scores if row["metric"] in RATES}
    models = ordered_models({model for model, _ in found})
    groups = [(COLUMNS[name], [m for m in models if (m, name) in found], name) for name in RATES]
    groups = [group for group in groups if group[1]]
    if not groups:
        return None
    lines = sum(len(measured) + 1.8 for _, measured, _ in groups)
    figure, (axes,) = new_figure(1, height=0.75 + 0.2 * lines, palette=palette)
    at = 0.0
    for heading, measured, name in groups:
        axes.text(0, at + 0.4, heading, color=palette.ink, fontsize=10, ha="left", va="center")
        at += 1.3
        for model in measured:
            value, low, high = (100 * found[model, name][part] for part in ("value", "low", "high"))
            axes.barh(at, value, height=0.8, color=colour_of(model, models=models))
            limits = [[value - low], [high - value]]
            axes.errorbar(value, at, xerr=limits, fmt="none", ecolor=palette.ink, elinewidth=1.1, capsize=2)
            at += 1
        at += 0.5
    axes.set_yticks([])
    axes.set_ylim(at - 0.4, -0.2)
    axes.set_xlim(0, 105)
    axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    axes.grid(axis="x", color=palette.faint, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    _name_models(figure, models=models, palette=palette)
    return figure


def _name_models(figure: Drawing, *, models: Sequence[str], palette: Palette) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        handles=[Patch(color=colour_of(name, models=models), label=name) for name in models],
        loc="outside upper left",
        ncols=min(4, len(models)),
        frameon=False,
        labelcolor=palette.ink,
        fontsize=10,
        handlelength=1.0,
        columnspacing=1.2,
    )


def new_figure(panels: int, *, height: float, palette: Palette = SCREEN) -> tuple[Drawing, list[Drawing]]:
    """A figure 5.4 inches wide with `panels` axes below each other, in the stand-in colours."""
    from matplotlib.figure import Figure

    figure: Drawing = Figure(figsize=(5.4, height), layout="constrained")
    every = [figure.add_subplot(panels, 1, i + 1) for i in range(panels)]
    for axes in every:
        axes.set_axisbelow(True)
        axes.set_facecolor("none")
        axes.tick_params(colors=palette.ink, labelsize=9.5, length=0)
        axes.xaxis.label.set_color(palette.ink)
        axes.yaxis.label.set_color(palette.ink)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_edgecolor(palette.faint)
    return figure, every


def svg_of(figure: Drawing, *, salt: str) -> str:
    """The drawing as an SVG element: text stays text, and the stand-ins become the page's colours."""
    import matplotlib.style  # its context manager is fully typed, rc_context's is not

    about = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.style.context({"svg.fonttype": "none", "svg.hashsalt": salt, "text.parse_math": False}):
        buffer = StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=about)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(SCREEN.ink, "var(--ink)").replace(SCREEN.faint, "var(--line)")
    svg = re.sub(r"font: (\S+ )?([\d.]+)px [^;\"]*", r"font: \1\2px var(--font)", svg)
    return re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
