"""The constitution: the file of principles that drives everything.

    constitution = Constitution.load("harmless")               # a shipped one, or a path to your own .yaml or .json
    principle = constitution.draw("revision", seed=7)          # the same on every machine
    principle.critique, principle.revision

`principles` holds the types and the draw, `file` reads a file and says everything that is wrong with it, `published`
converts constitutions that others have published.
"""

from solon.constitution.principles import (
    ComparisonExemplar,
    Constitution,
    Exemplar,
    ExemplarKind,
    Exemplars,
    Kind,
    Principle,
    ReasoningExemplar,
    RevisionExemplar,
    shipped,
)
from solon.constitution.published import import_constitution

__all__ = [
    "ComparisonExemplar",
    "Constitution",
    "Exemplar",
    "ExemplarKind",
    "Exemplars",
    "Kind",
    "Principle",
    "ReasoningExemplar",
    "RevisionExemplar",
    "import_constitution",
    "shipped",
]
