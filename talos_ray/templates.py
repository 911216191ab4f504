"""Pages out of templates: whatever a template shows was written by others unless it is marked as safe, and is escaped.

A template refuses a name that nobody gave it, so that a page cannot lose a figure in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from talos_ray.shown import markdown, plain_lines


def readable(value: object) -> object:
    """For HTML, before it is escaped: controls are shown as their codes, also those that no browser would draw."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return plain_lines(value)
    return value


def in_markdown(value: object) -> Markup:
    """For Markdown, in which more than HTML's letters mean something."""
    return value if isinstance(value, Markup) else Markup(markdown(value))


def template(package: str, name: str) -> Template:
    """The template `name` in the folder `templates` of a package of ours; `*.md.jinja` is Markdown, all else HTML."""
    escape = in_markdown if name.endswith(".md.jinja") else readable
    return _environment(package, escape).get_template(name)


@cache  # with its templates, which are compiled at the first use
def _environment(package: str, escape: Callable[[object], object]) -> Environment:
    return Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=escape,
    )
