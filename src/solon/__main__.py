"""`python -m solon` is `solon`."""

from __future__ import annotations

from solon.cli import main

if __name__ == "__main__":
    main()
