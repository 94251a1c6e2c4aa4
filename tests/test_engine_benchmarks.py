"""The benchmarks of the client and of the chains run in miniature, and count every request."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(*arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("openai") is None, reason="compares with the openai SDK")
def test_the_client_is_compared_with_the_openai_sdk() -> None:
    shown = run("engine_client.py", "--requests", "200", "--rounds", "1", "--in-flight", "8")
    for name in ("solon", "openai", "raw"):
        assert re.search(rf"^{name} +[\d,]+ requests/s", shown, re.MULTILINE)
    ratio = re.search(r"^ratio +(\S+)", shown, re.MULTILINE)
    assert ratio and float(ratio[1]) > 1


@pytest.mark.slow
def test_chains_keep_a_simulated_server_busier_than_rounds_do() -> None:
    shown = run("engine_chains.py", "--chains", "60", "--in-flight", "8", "--window", "16", "--seeds", "1")
    shares = dict(re.findall(r"(solon|barrier) .* busy (\d\.\d+)", shown))
    assert 0 < float(shares["barrier"]) < float(shares["solon"]) <= 1
