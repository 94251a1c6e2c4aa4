"""What `solon doctor` looks at."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, cast

PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "numpy")
NEED_MEMORY, NEED_DISK = 3 * 2**30, 2 * 2**30
"""Bytes that the demo needs."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    found: str
    fine: bool = True


def examine() -> list[Finding]:
    """Everything that was found, in order; it takes as long as loading torch and two small models."""
    return [*_python(), *_packages(), *_machine(), *_gpu(), *_checkpoints(), *_privacy()]


def _python() -> Iterator[Finding]:
    yield Finding("python", f"{platform.python_version()} ({sys.executable})", sys.version_info >= (3, 11))


def _packages() -> Iterator[Finding]:
    tested = tested_versions()
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "not installed: pip install solon", fine=False)
            continue
        wanted = tested.get(name)
        same = wanted is None or found.partition("+")[0] == wanted
        yield Finding(name, found if same else f"{found}, tested with {wanted}")


def tested_versions() -> dict[str, str]:
    """The versions of constraints.txt, where this is a checkout or a wheel that carries it; else none."""
    package = Path(__file__).parents[1]
    for file in (package / "constraints.txt", package.parents[1] / "constraints.txt"):
        if file.is_file():
            return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;#]+)", file.read_text(), flags=re.MULTILINE))
    return {}


def _machine() -> Iterator[Finding]:
    import torch

    yield Finding("threads", f"{torch.get_num_threads()} for torch of {os.cpu_count()} CPUs (OMP_NUM_THREADS)")
    memory = memory_limit()
    yield Finding("memory", f"{memory / 2**30:.1f} GiB", memory >= NEED_MEMORY)
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding("disk", f"{free / 2**30:.1f} GiB free here", free >= NEED_DISK)


def memory_limit() -> int:
    """Bytes of memory of the machine, or of the control group if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = Path("/sys/fs/cgroup/memory.max")
    limit = group.read_text().strip() if group.is_file() else "max"
    return total if limit == "max" else min(total, int(limit))


def _gpu() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding("gpu", "none; the CPU does for the sandbox and for small models")
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        about: Any = cast(Any, torch.cuda).get_device_properties(index)
        yield Finding("gpu", f"{about.name}, {about.total_memory / 2**30:.0f} GiB")


def _checkpoints() -> Iterator[Finding]:
    from solon.engine import LocalEngineConfig
    from solon.engine.checkpoint import find_folder, load_model
    from solon.errors import InputError

    for name in ("sandbox:base", "sandbox:helpful"):
        try:
            model = load_model(find_folder(name), LocalEngineConfig(path=name, device="cpu")).model
        except InputError as error:
            yield Finding(name, str(error), fine=False)
        else:
            yield Finding(name, f"loads, {model.num_parameters() / 1e6:.1f} M parameters")


def _privacy() -> Iterator[Finding]:
    off = os.environ.get("HF_HUB_DISABLE_TELEMETRY") == "1"
    yield Finding("telemetry", "off" if off else "HF_HUB_DISABLE_TELEMETRY is not 1: libraries may report")
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    yield Finding("network", "models are read from disk alone" if offline else "HF_HUB_OFFLINE is not 1")
