"""Make certificates and keys for tests and trials of a deployment.

python utils/make_certificates.py --help
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from federated_yolo.cli import script

    script("certificates")
