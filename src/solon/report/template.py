"""The template of a page, filled: autoescaping, in the report's style."""

from __future__ import annotations

from importlib.resources import files


def asset(package: str, name: str) -> str:
    """The text of a file that lies beside the modules of `package`."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def fill_page(package: str, **values: object) -> str:
    """`page.html.j2` of `package` as HTML: `values` are escaped, a name without a value is an error, and `style` is the
    report's."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = Markup(asset("solon.report", "page.css"))
    return environment.from_string(asset(package, "page.html.j2")).render(style=style, **values)
