"""Everything that one experiment measures with one seed."""

from __future__ import annotations

from collections.abc import Sequence

from solon.reproduce.arms import ArmContext
from solon.reproduce.description import Experiment, Judges, Policies, Revised
from solon.reproduce.judging import judges, preference_models
from solon.reproduce.points import Found, Point
from solon.reproduce.policies import policies
from solon.reproduce.revisions import revised


async def measure(experiment: Experiment, *, at: ArmContext) -> Found:
    """Make the arms that the experiment needs, and measure what it says, for one seed."""
    points: list[Point] = []
    predictions: dict[str, Sequence[float]] = {}
    for one in experiment.measures:
        if isinstance(one, Policies):
            points += await policies(one, at=at)
        elif isinstance(one, Revised):
            points += await revised(one, at=at)
        elif isinstance(one, Judges):
            found = await judges(one, at=at)
            points += found.points
            predictions |= found.predictions
        else:
            points += await preference_models(one, at=at)
    return Found(points=points, predictions=predictions)
