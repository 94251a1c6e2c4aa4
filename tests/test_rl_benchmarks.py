"""The benchmarks of reinforcement run in miniature, and one that needs a GPU says so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / arguments[0]), *arguments[1:]], capture_output=True, text=True, timeout=280
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.slow
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = run("rl_gpu.py")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: this benchmark needs a GPU .*\n", done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_a_tiny_step_is_measured_on_any_machine(kind: str) -> None:
    done = run("rl_gpu.py", "--tiny", "--set", f"reinforcement.algorithm.kind={kind}")
    assert done.returncode == 0, done.stderr
    first, rates, shares, memory = done.stdout.splitlines()
    assert f"{kind}, " in first
    assert all(float(rate.replace(",", "")) > 0 for rate in re.findall(r"([\d,]+) tokens/s", rates))
    parts = re.findall(r"([a-z-]+) (\d+) %", shares)
    assert [name for name, _ in parts] == ["rollout", "scoring", "log-probs", "update", "other"]
    assert 97 <= sum(int(share) for _, share in parts) <= 103
    assert "the plan says" in memory


@pytest.mark.slow
def test_solon_and_trl_train_on_as_many_tokens() -> None:
    short = ["--repeats", "2", "--steps", "2", "--rows", "4", "--new-tokens", "4"]
    done = run("rl_throughput.py", *short, "--algorithms", "rloo")
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("rloo: solon / TRL"))
    ratio, low, high = map(float, re.findall(r"(\d+\.\d+)", line)[:3])
    assert 0 < low <= ratio <= high
