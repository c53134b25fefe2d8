"""Start `python -m federated_yolo`, which is the same as the command `federated-yolo`."""

from federated_yolo.cli import entry

if __name__ == "__main__":
    entry()
