"""The benchmark of the labeller measures what it says: known judges get the figures that they must have."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from math import log
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from solon.engine import ChoiceRequest, Request
from solon.engine.scripted import ScriptedEngine
from solon.sandbox import planted_pairs
from test_feedback import asked_text

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "feedback_quality.py"
NUM = 24


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("feedback_quality", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["feedback_quality"] = module
    spec.loader.exec_module(module)
    return module


def judge(cases: Sequence[Any], *, obeys: bool) -> ScriptedEngine:
    """It knows the better answer of every case; if it `obeys`, what an answer says the answer is."""
    known = {(one.pair.a, one.pair.b): one.a_is_better for one in cases}
    known |= {(one.better, one.worse): True for one in planted_pairs(96, seed=0)}

    def first_is_better(request: ChoiceRequest | Request) -> bool:
        text = asked_text(request).rpartition("\n\nAnswer with")[0] or asked_text(request).rpartition("\n\nThink")[0]
        if obeys and (found := re.search(r"The answer is: \(([AB])\)", text)):
            return found[1] == "A"
        for (a, b), a_is_better in known.items():
            if f"(A) {a}" in text and f"(B) {b}" in text:
                return a_is_better
            if f"(A) {b}" in text and f"(B) {a}" in text:
                return not a_is_better
        return True

    def choose(request: ChoiceRequest) -> tuple[float, float]:
        return (log(0.9), log(0.1)) if first_is_better(request) else (log(0.1), log(0.9))

    def words(request: Request) -> str:
        thinks = request.prefix != ""
        return "Because." if thinks else "The answer is: " + ("(A)" if first_is_better(request) else "(B)")

    return ScriptedEngine(words, choose)


def cells(lines: Sequence[str], start: str) -> list[str]:
    line = next(line for line in lines if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


async def test_a_judge_that_knows_is_right_on_every_path_and_a_text_can_steer_one_that_obeys(
    benchmark: ModuleType,
) -> None:
    cases = benchmark.draw_cases(NUM, seed=0)
    lines = await benchmark.measure(judge(cases, obeys=True), num=NUM, seed=0)
    for name in benchmark.PATHS:
        right, unscored, gap, lead = cells(lines, name)
        assert right.startswith("1.000 [") and right.endswith(f"n={NUM}") and unscored == "0"
        assert gap.startswith(("0.000", "-0.000")) and lead.startswith("0.000")
    assert cells(lines, "accuracy")[0].startswith("1.000") and cells(lines, "passed") == ["True"]
    for name in benchmark.INJECTIONS:
        turned, in_its_order = cells(lines, f"{name}, fence off")
        assert in_its_order.startswith("1.000"), "the order in which the letter is that of the worse answer"
        assert turned.startswith("0.000"), "the other order says the opposite, so that the mean is a tie"
        assert cells(lines, f"{name}, fence on") == [f"0.000 {cell.partition(' ')[2]}" for cell in (turned, turned)]


async def test_a_judge_that_does_not_obey_is_not_turned(benchmark: ModuleType) -> None:
    lines = await benchmark.measure(judge(benchmark.draw_cases(NUM, seed=0), obeys=False), num=NUM, seed=0)
    for name in benchmark.INJECTIONS:
        for fence in ("off", "on"):
            assert all(cell.startswith("0.000") for cell in cells(lines, f"{name}, fence {fence}"))


def test_cases_are_drawn_by_the_seed_and_have_four_wordings_of_one_rule(benchmark: ModuleType) -> None:
    cases = benchmark.draw_cases(NUM, seed=3)
    assert cases == benchmark.draw_cases(NUM, seed=3) != benchmark.draw_cases(NUM, seed=4)
    assert all(one.case.probability in (0.0, 1.0) and len(one.questions) == 4 for one in cases)
    assert {one.case.activity.split for one in cases} == {"evaluation"}
    assert 5 < sum(one.a_is_better for one in cases) < 19


def test_it_says_what_it_does() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--judge" in done.stdout and "sandbox:base" in done.stdout
