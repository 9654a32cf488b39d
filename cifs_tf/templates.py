"""Jinja templates, in one way for reports, tables and the documentation."""

from pathlib import Path

import jinja2


def template_environment(folder: Path) -> jinja2.Environment:
    """Make the environment of templates: HTML is escaped, a name that is not given is an error.

    Args:
        folder: where the templates lie.

    Returns:
        the environment, to add filters to.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=jinja2.select_autoescape(["html", "html.j2"], default_for_string=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
