"""Constraints for pip out of what `pip list --format freeze` says of a tested environment.

They hold for other machines too: builds (2.13.0+cpu) are left to whoever installs, and so is what
a CUDA build of PyTorch brings along, which pins it itself.
"""

import re
import sys

CUDA = re.compile(r"(cuda|triton|nvidia-(?!ml-py))")  # ml-py asks a driver, and runs anywhere
OURS = ("pip", "federated-yolo")

print("# What the tests passed with; `make constraints` renews it.")
for line in sys.stdin:
    name, _, version = line.strip().partition("==")
    if version and name not in OURS and not CUDA.match(name):
        print(f"{name.lower()}=={version.partition('+')[0]}")
