"""The house stands: modules import only from those above them, and importing solon loads nothing heavy."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "solon"

METHOD = (
    # Exemplars of a constitution are dialogues, so that dialogue stands first.
    "dialogue",
    "constitution",
    "prompts",
    "engine",
    "chain",
    "supervised",
    "feedback",
    "preference",
    "reinforcement",
    "evaluation",
    "report",
)
"""In reading order: each imports only from those before it and from the support."""

SUPPORT = ("errors", "stats", "ratings", "wording", "artifact", "prompt_sets", "config", "processes", "training")
"""Imports no stage: of the method only the types of `dialogue` and `engine`, which recipes and rows are made of."""

TOP = ("sandbox", "run", "held_out_judges", "pipeline", "plan", "reproduce", "cli", "inspect", "__init__", "__main__")
"""May import everything."""

HEAVY = {
    "accelerate",
    "datasets",
    "evalica",
    "inspect_ai",
    "matplotlib",
    "pandas",
    "peft",
    "ray",
    "scipy",
    "torch",
    "transformers",
    "trl",
}

LEAVES = {"solon.training.on_cpu", "solon.training.ppo", "solon.training.trainers"}
LEAVES |= {f"solon.engine.{name}" for name in ("attention", "decoding", "graphs", "int8", "local")}
LEAVES |= {f"solon.engine.{name}" for name in ("scoring", "sharing", "slots", "trie")}
LEAVES |= {"solon.inspect", *(f"solon.inspect.{name}" for name in ("models", "plain", "scoring", "tasks"))}
"""Modules that run models, or that Inspect loads, and may import HEAVY at the top; others import them inside
functions."""


class Import(NamedTuple):
    """`target` is a dotted name such as solon.artifact.rows."""

    file: str
    line: int
    target: str
    inside_function: bool

    @property
    def module(self) -> str:
        """The module or package directly under solon that imports."""
        return self.file.split("/")[0].removesuffix(".py")


def all_imports() -> list[Import]:
    return [found for path in sorted(SOURCE.rglob("*.py")) for found in imports_of(path)]


def imports_of(path: Path) -> Iterator[Import]:
    file = path.relative_to(SOURCE).as_posix()

    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.Import):
            yield from (Import(file, node.lineno, name.name, inside) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            if node.module == "solon":
                yield from (Import(file, node.lineno, f"solon.{name.name}", inside) for name in node.names)
            else:
                yield Import(file, node.lineno, node.module or "", inside)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside)

    return walk(ast.parse(path.read_text()), inside=False)


def is_allowed(found: Import) -> bool:
    module, target = found.module, found.target.split(".")[1]
    if module == target or module in TOP:
        return True
    if target == "sandbox":
        # "sandbox:base" is the name of a model folder: whoever loads models may ask where it is.
        return found.target in {"solon.sandbox", "solon.sandbox.checkpoint"} and found.inside_function
    if module in SUPPORT:
        return target in SUPPORT or target in {"dialogue", "engine"}
    return target in SUPPORT or target in METHOD[: METHOD.index(module)]


def test_every_module_has_its_place() -> None:
    modules = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert modules - {*METHOD, *SUPPORT, *TOP} == set(), "give it a place in METHOD, SUPPORT or TOP"


def test_modules_import_only_from_those_above_them() -> None:
    ours = [found for found in all_imports() if found.target.startswith("solon.")]
    assert ours
    wrong = [f"{found.file}:{found.line} imports {found.target}" for found in ours if not is_allowed(found)]
    assert wrong == []


@pytest.mark.parametrize(
    ("file", "target", "inside_function", "allowed"),
    [
        ("feedback.py", "solon.supervised", False, True),
        ("supervised.py", "solon.feedback", False, False),
        ("supervised.py", "solon.pipeline", True, False),
        ("artifact/rows.py", "solon.errors", False, True),
        ("artifact/rows.py", "solon.supervised", True, False),
        ("engine/local.py", "solon.sandbox", True, True),
        ("engine/local.py", "solon.sandbox", False, False),
        ("evaluation/rows.py", "solon.sandbox.oracle", True, False),
        ("pipeline.py", "solon.report", False, True),
    ],
)
def test_the_rule_itself(file: str, target: str, inside_function: bool, allowed: bool) -> None:
    assert is_allowed(Import(file, 1, target, inside_function)) is allowed


def test_nothing_heavy_is_imported_when_solon_is() -> None:
    names: list[str] = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(["solon", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
        if name not in LEAVES and not name.endswith("__main__"):
            names.append(name)
    script = (
        "import importlib, json, sys\n"
        "names, heavy = json.loads(sys.argv[1])\n"
        "loads = {}\n"
        "for name in names:\n"
        "    importlib.import_module(name)\n"
        "    loads[name] = sorted(set(heavy) & set(sys.modules))\n"
        "    if loads[name]: break\n"
        "print(json.dumps(loads))\n"
    )
    arguments = [sys.executable, "-c", script, json.dumps([names, sorted(HEAVY)])]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loads: dict[str, list[str]] = json.loads(done.stdout)
    assert {name: heavy for name, heavy in loads.items() if heavy} == {}
    assert len(loads) == len(names)
