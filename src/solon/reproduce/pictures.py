"""The pictures of an experiment, in the look of the report's: inline SVG that takes the page's colours.

In a picture along x a series without x is a level: a dotted line with its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from solon.report.figures import SCREEN, Drawing, new_figure, reliability_svg, svg_of
from solon.reproduce.description import Picture
from solon.reproduce.judging import chosen_and_right
from solon.reproduce.points import Point
from solon.reproduce.policies import GREEDY
from solon.reproduce.verdicts import Place, along, named
from solon.stats import Interval, reliability

COLOURS = ("#1f9488", "#c9962b", "#d4603a", "#6b7fd7", "#b05fa8", "#5b8c3e", "#9a6b4b", "#8b93a1")
"""Of the series, in the order in which an experiment names them."""


def picture_svg(
    picture: Picture,
    *,
    points: Mapping[Place, Interval],
    predictions: Mapping[str, Sequence[float]],
    names: Mapping[str, str],
    salt: str,
) -> list[tuple[str, str]]:
    """The picture's title and drawing; of a reliability diagram one for each judge; [] where there is no point for it.

    `names` says what arms are called; `salt` makes the SVG's ids its own.
    """
    if picture.kind == "reliability":
        return _reliability(picture, predictions=predictions, names=names)
    if picture.kind == "path":
        drawing = _path(picture, points=points, names=names)
    elif picture.kind == "lines":
        drawing = _lines(picture, points=points, names=names)
    else:
        drawing = _bars(picture, points=points, names=names)
    return [] if drawing is None else [(picture.title, svg_of(drawing, salt=salt))]


def series_of(points: Mapping[Place, Interval], *, metric: str) -> list[str]:
    """The series that have the metric, in the order in which they were measured."""
    return list(dict.fromkeys(place.series for place in points if place.metric == metric))


def _style(series: str, every: Sequence[str]) -> tuple[str, str]:
    """Colour and line of a series; what was answered at temperature 0 has the colour of its arm, dashed."""
    bare = list(dict.fromkeys(one.removesuffix(GREEDY) for one in every))
    colour = COLOURS[bare.index(series.removesuffix(GREEDY)) % len(COLOURS)]
    return colour, "o--" if series.endswith(GREEDY) else "o-"


def _lines(picture: Picture, *, points: Mapping[Place, Interval], names: Mapping[str, str]) -> Drawing | None:
    every = series_of(points, metric=picture.y)
    if not every:
        return None
    figure, (axes,) = new_figure(1, height=3.9 + 0.22 * ((len(every) + 1) // 2))
    for series in every:
        own = along(points, metric=picture.y, series=series)
        colour, line = _style(series, every)
        if own[0].x is None:
            level = own[0].interval
            axes.axhspan(level.low, level.high, color=colour, alpha=0.15, linewidth=0)
            axes.axhline(level.value, color=colour, linewidth=1.4, linestyle=":", label=named(series, names=names))
            continue
        axes.errorbar(
            [one.x for one in own],
            [one.interval.value for one in own],
            yerr=_sides(own),
            fmt=line,
            color=colour,
            markersize=5,
            elinewidth=1.2,
            capsize=2.5,
            linewidth=1.6,
            label=named(series, names=names),
        )
    _finish(figure, axes, picture=picture)
    return figure


def _path(picture: Picture, *, points: Mapping[Place, Interval], names: Mapping[str, str]) -> Drawing | None:
    every = [one for one in series_of(points, metric=picture.y) if one in series_of(points, metric=picture.x)]
    if not every:
        return None
    figure, (axes,) = new_figure(1, height=4.4 + 0.22 * ((len(every) + 1) // 2))
    for series in every:
        up = {one.x: one for one in along(points, metric=picture.y, series=series)}
        own = [one for one in along(points, metric=picture.x, series=series) if one.x in up]
        colour, line = _style(series, every)
        axes.errorbar(
            [one.interval.value for one in own],
            [up[one.x].interval.value for one in own],
            xerr=_sides(own),
            yerr=_sides([up[one.x] for one in own]),
            fmt=line,
            color=colour,
            markersize=5,
            elinewidth=0.9,
            linewidth=1.6,
            label=named(series, names=names),
        )
        if own:
            end = (own[-1].interval.value, up[own[-1].x].interval.value)
            axes.plot(*end, "o", color=colour, markersize=9)
    _finish(figure, axes, picture=picture)
    return figure


def _bars(picture: Picture, *, points: Mapping[Place, Interval], names: Mapping[str, str]) -> Drawing | None:
    every = series_of(points, metric=picture.y)
    if not every:
        return None
    figure, (axes,) = new_figure(1, height=0.9 + 0.52 * len(every))
    for place, series in enumerate(every):
        last = along(points, metric=picture.y, series=series)[-1]
        axes.barh(place, last.interval.value, height=0.42, color=_style(series, every)[0])
        axes.errorbar(
            last.interval.value, place, xerr=_sides([last]), fmt="none", ecolor=SCREEN.ink, elinewidth=1.1, capsize=2.5
        )
        axes.text(
            0.0, place - 0.4, named(series, names=names), color=SCREEN.ink, fontsize=10, ha="left", va="center",
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    axes.set_yticks([])
    axes.set_ylim(len(every) - 0.6, -0.75)
    axes.set_xlabel(picture.x_label or picture.y_label)
    axes.grid(axis="x", color=SCREEN.faint, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    return figure


def _reliability(
    picture: Picture, *, predictions: Mapping[str, Sequence[float]], names: Mapping[str, str]
) -> list[tuple[str, str]]:
    drawn: list[tuple[str, str]] = []
    for series, p in predictions.items():
        rows_N2 = chosen_and_right(p)
        bins = [asdict(one) for one in reliability(rows_N2[:, 0], outcomes=rows_N2[:, 1]).bins]
        svg = reliability_svg(bins)
        if svg is not None:
            drawn.append((f"{picture.title}: {named(series, names=names)}", svg))
    return drawn


def _sides(points: Sequence[Point]) -> list[list[float]]:
    """Below and above, as matplotlib wants them: never below 0."""
    return [
        [max(0.0, one.interval.value - one.interval.low) for one in points],
        [max(0.0, one.interval.high - one.interval.value) for one in points],
    ]


def _finish(figure: Drawing, axes: Drawing, *, picture: Picture) -> None:
    axes.set_xlabel(picture.x_label)
    axes.set_ylabel(picture.y_label)
    axes.grid(color=SCREEN.faint, linewidth=0.8)
    axes.margins(0.08)
    figure.legend(
        loc="outside upper left", ncols=2, frameon=False, labelcolor=SCREEN.ink, fontsize=9.5, columnspacing=1.2
    )
