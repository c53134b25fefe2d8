"""The lower end of each range in a pyproject.toml, as constraints for pip: NAME==VERSION lines."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
groups = [project["dependencies"], *project["optional-dependencies"].values()]
for requirement in (requirement for group in groups for requirement in group):
    if found := re.match(r"([\w.-]+)(?:\[.*\])?>=([\w.]+)", requirement):  # `flwr[dp]` has none
        print(f"{found[1]}=={found[2]}")
