"""The paper's experiments run again in the sandbox, where an oracle knows what is right.

    results = await reproduce(chosen(["frontier"], experiments=read_experiments()), seeds=[0, 1, 2], out=Path("runs/r"))

Every experiment is a file in recipes/reproduce/: the arms that it trains (arms.yaml), what it measures on them, its
pictures, and the orderings that the paper lets one expect. What comes of it is a picture and, for every ordering,
whether it came out, did not, or cannot be told, with intervals over the seeds.

    description.py   what the files may say
    arms.py          training an arm; stages are shared with the method's own run
    policies.py, revisions.py, judging.py, measuring.py   points: numbers from an arm's files
    verdicts.py      seeds pooled, orderings judged
    pictures.py, page.py, loop.py

Only orderings are compared with the paper. What is not as in the paper stands in each file, under `differs`.
"""

from __future__ import annotations

from solon.reproduce.arms import ArmContext, ModelSize, make_arm, sizes_of
from solon.reproduce.description import Arms, Experiment, chosen, read_arms, read_experiments
from solon.reproduce.loop import reproduce
from solon.reproduce.measuring import measure
from solon.reproduce.page import Result
from solon.reproduce.points import Found, Point
from solon.reproduce.verdicts import Statement, Verdict, judged, pooled

__all__ = [
    "ArmContext",
    "Arms",
    "Experiment",
    "Found",
    "ModelSize",
    "Point",
    "Result",
    "Statement",
    "Verdict",
    "chosen",
    "judged",
    "make_arm",
    "measure",
    "pooled",
    "read_arms",
    "read_experiments",
    "reproduce",
    "sizes_of",
]
