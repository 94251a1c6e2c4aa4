"""Constitutional AI end to end: one file of principles makes the data, the models, the evaluation and the report.

    import asyncio, solon
    from pathlib import Path

    recipe = solon.load_recipe("recipes/sandbox.yaml", ["constitution=my-constitution.yaml"])
    asyncio.run(solon.run_recipe(recipe, Path("runs/mine")))

What is named here is what may be relied on. Importing it loads nothing: each name is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from solon.config import Recipe, load_recipe
    from solon.constitution import Constitution, Principle, import_constitution
    from solon.dialogue import Message, parse_transcript, read_hh, read_prompts, render_transcript
    from solon.engine import (
        ChoiceRequest,
        Engine,
        LocalEngineConfig,
        Request,
        Sampling,
        ServerEngineConfig,
        load_engine,
    )
    from solon.engine.scripted import ScriptedEngine
    from solon.errors import EngineError, InputError, SolonError
    from solon.evaluation import rate_battles
    from solon.pipeline import run_recipe
    from solon.preference import PreferenceModel, train_preference
    from solon.reinforcement import train_rl
    from solon.report import write_report
    from solon.training import train_sft

    __version__: str

__all__ = [
    "ChoiceRequest",
    "Constitution",
    "Engine",
    "EngineError",
    "InputError",
    "LocalEngineConfig",
    "Message",
    "PreferenceModel",
    "Principle",
    "Recipe",
    "Request",
    "Sampling",
    "ScriptedEngine",
    "ServerEngineConfig",
    "SolonError",
    "__version__",
    "import_constitution",
    "load_engine",
    "load_recipe",
    "parse_transcript",
    "rate_battles",
    "read_hh",
    "read_prompts",
    "render_transcript",
    "run_recipe",
    "train_preference",
    "train_rl",
    "train_sft",
    "write_report",
]

_NAMES_OF = {
    "config": "Recipe load_recipe",
    "constitution": "Constitution Principle import_constitution",
    "dialogue": "Message parse_transcript read_hh read_prompts render_transcript",
    "engine": "ChoiceRequest Engine LocalEngineConfig Request Sampling ServerEngineConfig load_engine",
    "engine.scripted": "ScriptedEngine",
    "errors": "EngineError InputError SolonError",
    "evaluation": "rate_battles",
    "pipeline": "run_recipe",
    "preference": "PreferenceModel train_preference",
    "reinforcement": "train_rl",
    "report": "write_report",
    "training": "train_sft",
}
"""Module -> the names of `__all__` that live in it."""
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF and name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = _version() if name == "__version__" else getattr(_module_of(name), name)
    globals()[name] = found
    return found


def _module_of(name: str) -> ModuleType:
    return import_module(f"{__name__}.{_MODULE_OF[name]}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("solon")
    except PackageNotFoundError:
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
