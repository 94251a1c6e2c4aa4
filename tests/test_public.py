"""What `import solon` gives: the names that may be relied on, and nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import solon


def test_names_are_few_and_sorted() -> None:
    assert len(solon.__all__) <= 30
    assert list(solon.__all__) == sorted(set(solon.__all__))


@pytest.mark.parametrize("name", solon.__all__)
def test_every_name_is_there(name: str) -> None:
    value = getattr(solon, name)
    assert value is not None
    assert getattr(solon, name) is value, "the second access gives the same object"
    assert name in dir(solon)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'solon' has no attribute 'nothing'"):
        _ = solon.nothing  # type: ignore[attr-defined]


def test_importing_solon_loads_nothing_but_the_standard_library() -> None:
    script = (
        "import sys; before = set(sys.modules); import solon; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(name for name in new if name not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "['solon']", done.stderr


def test_star_import_gives_exactly_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from solon import *", names)
    assert set(names) - {"__builtins__"} == set(solon.__all__)
