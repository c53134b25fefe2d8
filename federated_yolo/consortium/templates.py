"""Fills in the files of the kits, which lie in templates/; tests/unit/consortium looks at each.

They end in .md, since Flower's bundle takes no other endings.
"""

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("templates")


def fill(template: str, /, **values: Any) -> str:
    """Return a file of templates/, filled in; a value that is missing is an error."""
    import shlex

    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = lambda value: shlex.quote(str(value))
    return environment.get_template(template).render(**values)
