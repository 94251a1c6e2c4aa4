"""The report: one page that opens from disk, made of a run's files alone.

    write_report("runs/sandbox")        # -> runs/sandbox/report/index.html, and cards of models and data beside it

The page holds everything it shows: no request leaves it. Texts of models and data are hostile: they reach the page only
through jinja2's escaping, or as JSON that a script puts in as text, and a Content-Security-Policy lets no other script
run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

from solon.errors import InputError
from solon.evaluation import CLEAR
from solon.report.browser import ROWS_SHOWN, VERDICT_WORDS, page_json, tone
from solon.report.cards import write_cards
from solon.report.figures import colour_of, curves_svg, elo_svg, figure_png, rates_svg, reliability_svg
from solon.report.read import Run, duration, read_run
from solon.report.template import asset, fill_page
from solon.stats import Interval

__all__ = ["figure_png", "read_run", "render_page", "write_cards", "write_report"]


def write_report(run: str | Path) -> Path:
    """Write `run`/report/index.html, and the cards beside it (`write_cards`); returns the page's path.

    Raises InputError if `run` holds no stage of a run.
    """
    run = Path(run)
    found = read_run(run)
    if not found.stages:
        raise InputError("no stage has left anything here", path=run, remedy="give the folder of a run, runs/NAME")
    page = run / "report" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render_page(found), encoding="utf-8", errors="backslashreplace")
    write_cards(run)
    return page


_TOLD: Mapping[str, str] = {
    "changed": "how many of the revisions under it changed the answer",
    "mended": "how many of the judged revisions, under whichever principle, clearly mend it, and how many break it",
    "decided": "how decided the judge of the comparisons is under it, from 0 to 1",
    "preferred": "how probably the trained model's answer keeps it better than the first model's",
}
"""The figures of a PrincipleStory, in words."""


def _percent(one: Interval) -> str:
    return f"{100 * one.value:.0f} % ({100 * one.low:.0f} to {100 * one.high:.0f})"


def _share(one: Interval) -> str:
    return f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})"


def render_page(run: Run) -> str:
    """The HTML of a run's report."""
    from markupsafe import Markup

    script = asset(__name__, "page.js")
    models = [row.model for row in run.table.rows]
    figures = [
        (
            "What the models do",
            "Shares by the oracle, else the judge; bars are 95 % intervals.",
            rates_svg(run.scores),
        ),
        ("Helpful and harmless", "Elo by the judge, one model being 0; bars are 95 % intervals.", elo_svg(run.scores)),
        (
            "The preference model",
            "Held-out comparisons: predicted against labelled; bars are 95 % intervals.",
            reliability_svg(run.bins, scaled=run.scaled_bins),
        ),
        ("Reinforcement", "The policy's own samples, by step.", curves_svg(run.curves)),
    ]
    return fill_page(
        __name__,
        run=run,
        figures=[(title, note, Markup(svg)) for title, note, svg in figures if svg],
        colours={model: colour_of(model, models=models) for model in models},
        words=VERDICT_WORDS,
        duration=duration,
        percent=_percent,
        clear=CLEAR,
        told=[text for name, text in _TOLD.items() if any(getattr(one, name) for one in run.principles.values())],
        share=_share,
        tone=tone,
        rows_shown=ROWS_SHOWN,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(page_json(run.parts)),
    )
