"""One page of all that was reproduced: for every experiment its pictures, and what was expected beside what came.

Text reaches the page through jinja2's escaping alone; no script runs and no request leaves it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from solon.report.read import duration
from solon.report.template import fill_page
from solon.reproduce.description import Experiment
from solon.reproduce.pictures import picture_svg
from solon.reproduce.verdicts import Place, Statement
from solon.stats import Interval

TONES = {"came out": "good", "did not come out": "bad", "cannot be told": "warn", "not measured": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """An experiment over several seeds."""

    experiment: Experiment
    seeds: Sequence[int]
    points: Mapping[Place, Interval]
    predictions: Mapping[str, Sequence[float]]
    statements: Sequence[Statement]
    seconds: float
    """That its measuring took, over the seeds, with the arms that were made for it; of a seed that was stopped on the
    way, the last part."""


def render(
    results: Sequence[Result], *, names: Mapping[str, str], facts: Mapping[str, str], missing: Sequence[Experiment]
) -> str:
    """The HTML. `names` says what arms are called, `missing` are experiments that have not been run."""
    from markupsafe import Markup

    pictures = {
        one.experiment.name: [
            (title, Markup(svg))
            for number, picture in enumerate(one.experiment.pictures)
            for title, svg in picture_svg(
                picture,
                points=one.points,
                predictions=one.predictions,
                names={**names, **one.experiment.names},
                salt=f"{one.experiment.name}-{number}",
            )
        ]
        for one in results
    }
    verdicts = Counter(statement.verdict for one in results for statement in one.statements)
    return fill_page(
        "solon.reproduce",
        results=results,
        pictures=pictures,
        names=names,
        facts=facts,
        missing=missing,
        tones=TONES,
        verdicts=[(verdict, verdicts[verdict]) for verdict in TONES if verdicts[verdict]],
        duration=duration,
    )
