"""The report page, opened in a real browser where there is one."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from run_folder import make_run, make_scores
from solon.artifact import RunFolder, read_rows, write_rows
from solon.errors import InputError
from solon.report import figure_png, read_run, write_report
from solon.report.browser import page_json, tone
from solon.report.read import duration

HOSTILE = (
    "</script><script>window.hit=1</script><img src=x onerror=window.hit=2>\"'><svg onload=window.hit=3>{{7*7}}&amp;"
)
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "good"))


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "bad", prompts=4, hostile=HOSTILE))


def embedded(page: Path) -> list[dict[str, Any]]:
    html = page.read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_page_is_self_contained(page: Path) -> None:
    html = page.read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", html)
    assert not re.search(r"""url\((?!#)|@import|<link|<iframe""", html)
    assert "default-src 'none'" in html


def test_page_says_what_was_alarming_and_draws_what_was_watched(page: Path) -> None:
    html = page.read_text()
    assert "Step 12, length: twice as long." in html
    assert "boilerplate: share with the commonest phrase" in html
    assert "held-out answers: harmless, share" in html


def test_page_says_what_was_done(page: Path) -> None:
    html = page.read_text()
    run = read_run(page.parents[1])
    assert run.constitution is not None and run.constitution.fingerprint in html
    for text in ("sandbox:helpful", "small, version 3", "2.13.0", "97.0 %", "n = 240", "+143", "+119 to +167"):
        assert text in html, text
    assert "unscored: empty" in html
    assert "judge at the gate: failed, asked all the same; accuracy 0.52 (0.46 to 0.58), n = 100" in html
    assert "accuracy is 0.520; at least 0.85 is asked" in html and "verdicts unread" not in html
    assert html.count("<figure") == 4
    assert "against rl-cai" in html and "Harmlessness: how often the model of the row is the better one" in html
    assert [one.category for one in run.telling] == sorted({one.category for one in run.telling}, key=html.index)
    assert len({one.category for one in run.telling}) == 3
    assert all((one.before_verdict, one.after_verdict) == ("helps", "explains") for one in run.telling)


def test_every_row_is_in_the_browser(page: Path) -> None:
    parts = {part["key"]: part for part in embedded(page)}
    assert {key: (part["total"], len(part["items"])) for key, part in parts.items()} == {
        "revisions": (40, 40),
        "comparisons": (40, 40),
        "rollouts": (40, 40),
        "mending": (8, 8),
        "evaluation": (40, 40),
        "failures": (2, 2),
    }
    run = page.parents[1]
    for row, item in zip(read_rows(run / "01-revisions/revisions.jsonl"), parts["revisions"]["items"], strict=True):
        headings = [block["h"] for block in item["b"][len(row["prompt"]) :]]
        assert headings == ["First response", "Critique 1", "Revision 1", "Critique 2", "Revision 2"]
        assert [block["x"] for block in item["b"]][-1] == row["rounds"][1]["revision"]
        assert set(item["p"]) == {one["principle"] for one in row["rounds"]} and item["c"] == row["category"]
    for row, item in zip(
        read_rows(run / "03-comparisons/comparisons.jsonl"), parts["comparisons"]["items"], strict=True
    ):
        p, gap = row["probability"], row["order_gap"]
        orders = f"shown first: p = {p + gap / 2:.3f}; shown second: p = {p - gap / 2:.3f}"
        assert orders in item["b"][len(row["prompt"]) + 2]["x"]


def test_a_long_file_is_sampled_evenly_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "long", prompts=4)
    row, *_ = read_rows(run / "01-revisions/revisions.jsonl")
    write_rows(run / "01-revisions/revisions.jsonl", ({**row, "id": f"{i}"} for i in range(20_000)))
    # Of the processor: what else the machine does must not fail it.
    began = time.process_time()
    (part, *_) = embedded(write_report(run))
    assert time.process_time() - began < 20
    assert part["total"] == 20_000 and len(part["items"]) == 4000
    assert [item["id"] for item in part["items"][:3]] == ["0", "5", "10"]


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    stage = RunFolder(tmp_path / "run").stage("01-revisions")
    stage.begin(config={}, inputs={})
    html = write_report(tmp_path / "run").read_text()
    assert "running" in html and 'id="results"' not in html and "<figure" not in html
    with pytest.raises(InputError, match="no stage has left anything here"):
        write_report(tmp_path / "nothing")


def test_hostile_text_is_escaped_everywhere(hostile_page: Path) -> None:
    html = hostile_page.read_text()
    assert "<script>window" not in html and "<img" not in html and "<svg onload" not in html
    assert "{{7*7}}" in html
    assert html.count("<script") == 2 and html.count("</script>") == 2
    data = embedded(hostile_page)
    assert HOSTILE in data[0]["items"][0]["b"][0]["x"]


def test_data_survives_any_text() -> None:
    text = "</script><!-- & \u2028 \ud800 \U0001f600 \x00"
    part = read_part(text)
    packed = page_json([part])
    assert not set("<>&\u2028") & set(packed) and packed.isascii()
    assert json.loads(packed)[0]["items"][0]["t"] == text


def read_part(text: str) -> Any:
    from solon.report.browser import Part

    return Part(key="k", title="t", file="f", total=1, items=[{"id": "1", "t": text}])


def test_readme_picture(tmp_path: Path) -> None:
    path = figure_png(make_scores(), tmp_path / "docs" / "results.png")  # type: ignore[arg-type]
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.read_bytes() == figure_png(make_scores(), tmp_path / "again.png").read_bytes()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing to draw"):
        figure_png([], tmp_path / "none.png")


def test_a_title_of_several_turns_says_what_the_last_one_is_about(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=3)
    turns = [("user", "How long\n is it?"), ("assistant", "What?"), ("user", "sure"), ("user", "y" * 200)]
    said = [{"role": role, "content": text} for role, text in turns]
    rows = [
        {**row, "prompt": prompt}
        for row, prompt in zip(
            read_rows(run / "01-revisions/revisions.jsonl"), (said[:1], said[:3], said[3:]), strict=True
        )
    ]
    write_rows(run / "01-revisions/revisions.jsonl", rows)
    (part, *_) = embedded(write_report(run))
    titles = [item["t"] for item in part["items"]]
    assert titles == ["How long is it?", "How long is it? / sure", "y" * 157 + "..."]


def test_words_for_times_and_colours() -> None:
    assert [duration(s) for s in (3.4, 75, 7320)] == ["3 s", "1 min 15 s", "2 h 2 min"]
    assert (tone("helps", harmful=True), tone("helps", harmful=False), tone(None, harmful=True)) == ("bad", "good", "")


# ---- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs Debian's chromium and the package playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


class Opened:
    """A page with what it complained about and asked for."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1400, anchor: str = "") -> None:
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.tab = browser.new_page(viewport={"width": width, "height": 900})
        self.tab.on("console", lambda message: self.troubles.append(message.text))
        self.tab.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri() + anchor)

    def titles(self) -> list[str]:
        return self.tab.locator("#items .title").all_inner_texts()

    def status(self) -> str:
        return self.tab.locator("#status").inner_text()


@pytest.mark.parametrize("width", [400, 1400])
def test_it_opens_without_error_or_request_and_fits(browser: Any, page: Path, width: int) -> None:
    opened = Opened(browser, page, width=width)
    assert opened.troubles == [] and opened.requests == [page.as_uri()]
    assert opened.tab.evaluate("document.documentElement.scrollWidth") <= width
    assert len(opened.titles()) == 20


def test_filters_search_order_and_pages(browser: Any, page: Path) -> None:
    from playwright.sync_api import expect

    opened = Opened(browser, page)
    tab = opened.tab
    tab.select_option("#category", "fraud")
    assert len(opened.titles()) == 10 and all("invoice" in title for title in opened.titles())
    tab.select_option("#category", "")
    tab.fill("#search", "PAINT (case 39)")
    expect(tab.locator("#items details")).to_have_count(1)
    assert opened.titles() == ["What paint stays longest on a shop window? (case 39)"]
    tab.fill("#search", "")
    expect(tab.locator("#items details")).to_have_count(20)
    tab.click("#next")
    assert tab.locator("#where").inner_text() == "page 2 of 2" and tab.locator("#next").is_disabled()
    tab.select_option("#part", "comparisons")
    tab.select_option("#order", "unsure")
    shown = [float(text.removeprefix("p = ")) for text in tab.locator("summary .mark:last-child").all_inner_texts()]
    assert shown == sorted(shown)
    tab.select_option("#show", "preference model disagrees")
    assert opened.status().startswith("10 of 40 rows")
    assert "preferred: -0.25; other: +1.50" in tab.locator("#items").inner_text()
    tab.select_option("#show", "orders disagree")
    rows = list(read_rows(page.parents[1] / "03-comparisons" / "comparisons.jsonl"))
    flipped = [abs(row["order_gap"]) / 2 > row["probability"] - 0.5 for row in rows]
    assert int(opened.status().split()[0]) == sum(flipped) > 0
    tab.select_option("#show", "")
    principle = tab.locator("#principle option").nth(1).get_attribute("value")
    tab.select_option("#principle", principle)
    assert int(opened.status().split()[0]) < 40
    assert opened.troubles == []


def test_a_revision_is_marked_word_by_word_and_the_most_changed_come_first(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", prompts=3)
    texts = [
        ("one two three four", "one 2 three four five", "one 2 three four five "),
        ("same", "same"),
        ("a b", "c d"),
    ]
    rows = [
        {**row, "response": first, "rounds": [{"principle": "say-why", "critique": "", "revision": x} for x in rest]}
        for row, (first, *rest) in zip(read_rows(run / "01-revisions/revisions.jsonl"), texts, strict=True)
    ]
    write_rows(run / "01-revisions/revisions.jsonl", rows)
    tab = Opened(browser, write_report(run)).tab
    shown = tab.locator("#items .revision")
    assert [shown.nth(0).locator("del").all_inner_texts(), shown.nth(0).locator("ins").all_inner_texts()] == [
        [" two"],
        [" 2", " five"],
    ]
    assert shown.nth(1).locator("ins, del").count() == 0 and "no change" in shown.nth(1).inner_text()
    tab.select_option("#order", "change")
    assert [text.split("case ")[1][0] for text in tab.locator("#items .title").all_inner_texts()] == ["2", "0", "1"]
    tab.select_option("#part", "failures")
    assert tab.locator("#order").is_disabled() and tab.locator("#order").input_value() == "file"


def test_keyboard_opens_a_row_and_its_link_leads_back(browser: Any, page: Path) -> None:
    from playwright.sync_api import expect

    opened = Opened(browser, page)
    second = opened.tab.locator("#items summary").nth(1)
    second.focus()
    opened.tab.keyboard.press("Enter")
    link = opened.tab.locator("#items details").nth(1).locator("a.link")
    expect(link).to_be_visible()
    again = Opened(browser, page, anchor=link.get_attribute("href"))
    assert again.tab.evaluate("document.activeElement.innerText") == second.inner_text()


def test_planted_scripts_do_not_run(browser: Any, hostile_page: Path) -> None:
    opened = Opened(browser, hostile_page)
    for part in ("revisions", "mending", "comparisons", "rollouts", "evaluation", "failures"):
        opened.tab.select_option("#part", part)
        for row in opened.tab.locator("#items summary").all()[1:3]:
            row.click()
        assert "<img src=x onerror" in opened.tab.locator("#items").inner_text()
    assert opened.tab.evaluate("window.hit") is None
    assert opened.tab.locator("img").count() == 0
    assert opened.troubles == [] and opened.requests == [hostile_page.as_uri()]
