"""Split one data set into clients: `federated-yolo partition` for a clone.

python utils/partition.py --help
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from federated_yolo.cli import script

    script("partition")
