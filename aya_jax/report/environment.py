"""The templates of the pages, with the settings that all of them share."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from aya_jax.report.words import label


@cache
def page_template(name: str) -> Template:
    """Return the template of that name in `templates/`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(label=label, zip=zip)
    return environment.get_template(name)
