"""The loop of `solon reproduce`: every experiment, seed by seed, each kept when it is done; then the page.

    await reproduce(chosen(["frontier"], experiments=read_experiments()), seeds=[0, 1, 2], out=Path("runs/reproduce"))

OUT/seed-0/results/NAME.json has what was measured with one seed and what decides it: an experiment whose description,
arms and models are as they were is not run again. OUT/reproduce.json and OUT/index.html are made of all results that
the seeds have.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from solon.artifact import Progress, RunFolder, read_json, silent, write_json
from solon.errors import InputError, StageChanged
from solon.reproduce.arms import ArmContext, ModelSize, inputs_of, sizes_of
from solon.reproduce.description import Arms, Experiment, fingerprint, read_arms, read_experiments
from solon.reproduce.measuring import measure
from solon.reproduce.page import Result, render
from solon.reproduce.points import Found, Point
from solon.reproduce.verdicts import judged, pooled
from solon.stats import Interval


async def reproduce(
    experiments: Sequence[Experiment],
    *,
    seeds: Sequence[int],
    out: Path,
    models: Sequence[Path] = (),
    quick: bool = False,
    progress: Progress = silent,
) -> list[Result]:
    """Run what is not there yet, write reproduce.json and index.html, and return what they show.

    `models` are folders of further sizes of the sandbox's models. Raises InputError where a stage of an arm has been
    made with other settings, and where another process works on the same seed.
    """
    arms, sizes = read_arms(), sizes_of(models)
    for seed in seeds:
        at = ArmContext(out=out, arms=arms, seed=seed, sizes=sizes, quick=quick, progress=progress)
        with RunFolder(at.folder).held():
            for one in experiments:
                file = _file(out, seed, one)
                if _read(file, _wanted(one, arms=arms, sizes=sizes, quick=quick)) is None:
                    began_s = time.monotonic()
                    found = await _measured(one, at=at)
                    seconds = time.monotonic() - began_s
                    write_json(file, written_by(found, wanted=one, sizes=sizes, quick=quick, seconds=seconds))
    return write_results(out, seeds=seeds, arms=arms, sizes=sizes, quick=quick)


async def _measured(experiment: Experiment, *, at: ArmContext) -> Found:
    try:
        return await measure(experiment, at=at)
    except StageChanged as error:
        # Its last line names an option that this command does not have.
        what = str(error).rpartition("\n")[0]
        raise InputError(what, remedy="delete that folder, or choose another --out") from error


def write_results(
    out: Path, *, seeds: Sequence[int], arms: Arms, sizes: Sequence[ModelSize], quick: bool
) -> list[Result]:
    """reproduce.json and index.html, from the results of all experiments that every one of the seeds has."""
    experiments = read_experiments()
    names = {name: arm.about for name, arm in arms.arms.items()}
    results: list[Result] = []
    for one in experiments.values():
        wanted = _wanted(one, arms=arms, sizes=sizes, quick=quick)
        read = [_read(_file(out, seed, one), wanted) for seed in seeds]
        kept = [row for row in read if row is not None]
        if not kept or len(kept) < len(read):
            continue
        found = [_found(row) for row in kept]
        points = pooled(found)
        results.append(
            Result(
                experiment=one,
                seeds=seeds,
                points=points,
                predictions={
                    name: [p for seed in found for p in seed.predictions.get(name, ())]
                    for name in dict.fromkeys(name for seed in found for name in seed.predictions)
                },
                statements=[judged(expected, points=points, names={**names, **one.names}) for expected in one.expected],
                seconds=sum(row["seconds"] for row in kept),
            )
        )
    write_json(
        out / "reproduce.json", {"seeds": list(seeds), "quick": quick, "experiments": list(map(_plain, results))}
    )
    facts = {
        "seeds": ", ".join(map(str, seeds)),
        "models": ", ".join(f"{one.name} ({one.millions:g} M)" for one in sizes),
        "recipe": arms.recipe,
        **({"settings": "quick: its numbers mean nothing"} if quick else {}),
    }
    done = {one.experiment.name for one in results}
    missing = [one for name, one in experiments.items() if name not in done]
    page = render(results, names=names, facts=facts, missing=missing)
    (out / "index.html").write_text(page, encoding="utf-8", errors="backslashreplace")
    return results


def _wanted(experiment: Experiment, *, arms: Arms, sizes: Sequence[ModelSize], quick: bool) -> str:
    """What decides an experiment's figures, as a hash."""
    least = [*arms.quick, arms.quick_samples] if quick else []
    used = sizes if any(one.kind != "preference-models" and one.sizes for one in experiment.measures) else sizes[-1:]
    return fingerprint(experiment, arms=arms, about=[inputs_of(used), least])


def _file(out: Path, seed: int, experiment: Experiment) -> Path:
    return out / f"seed-{seed}" / "results" / f"{experiment.name}.json"


def _read(file: Path, wanted: str) -> dict[str, Any] | None:
    """What the file holds; None where it is not there, or was made from something else."""
    found = read_json(file) if file.is_file() else None
    return found if found is not None and found["fingerprint"] == wanted else None


def written_by(
    found: Found, *, wanted: Experiment, sizes: Sequence[ModelSize], quick: bool, seconds: float
) -> dict[str, Any]:
    """What a file of results holds: an experiment's points with one seed, and what decides them."""
    return {
        "fingerprint": _wanted(wanted, arms=read_arms(), sizes=sizes, quick=quick),
        "seconds": round(seconds, 1),
        "points": [asdict(one) for one in found.points],
        "predictions": {name: list(p) for name, p in found.predictions.items()},
    }


def _found(row: dict[str, Any]) -> Found:
    points = [
        Point(metric=one["metric"], series=one["series"], x=one["x"], interval=Interval(**one["interval"]))
        for one in row["points"]
    ]
    return Found(points=points, predictions=row["predictions"])


def _plain(result: Result) -> dict[str, Any]:
    about = {"name": result.experiment.name, "paper": result.experiment.paper, "title": result.experiment.title}
    return {
        **about,
        "seconds": round(result.seconds, 1),
        "statements": [asdict(one) for one in result.statements],
        "points": [{**place._asdict(), **asdict(interval)} for place, interval in result.points.items()],
    }
