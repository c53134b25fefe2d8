"""Draw a run's report again, or compare runs: `federated-yolo report` for a clone.

python utils/report.py --help
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from federated_yolo.cli import script

    script("report")
