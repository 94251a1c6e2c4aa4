"""solon's evaluations as tasks of Inspect (https://inspect.aisi.org.uk), and its engines as Inspect's models.

inspect eval solon/harm --model solon/sandbox:helpful
inspect view

Needs `pip install 'solon[inspect]'`. Inspect finds this module by the entry point `inspect_ai` of the package; nothing
else of solon imports it.
"""

from __future__ import annotations

from solon.inspect.models import InspectEngine, SolonModel, engine_of, solon
from solon.inspect.scoring import averages, by_category, chance, gold, oracle, preferred, right_option, shares, verdict
from solon.inspect.tasks import choose, compare, harm, head_to_head, multiple_choice, over_refusal, pairwise

__all__ = [
    "InspectEngine",
    "SolonModel",
    "averages",
    "by_category",
    "chance",
    "choose",
    "compare",
    "engine_of",
    "gold",
    "harm",
    "head_to_head",
    "multiple_choice",
    "oracle",
    "over_refusal",
    "pairwise",
    "preferred",
    "right_option",
    "shares",
    "solon",
    "verdict",
]
