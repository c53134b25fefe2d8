"""Federated fine-tuning of an Ultralytics YOLO model with Flower, from a clone.

    python federated.py [CONFIG.yaml] [key=value ...]
    python federated.py check [CONFIG.yaml] [key=value ...]    look at all data, without training
    python federated.py resume=RUN_DIR    go on with a stopped run; resume=true: with the newest

It is the command `federated-yolo`; --help shows the rest. The main files, in the order of a run
(docs/architecture.md has a picture):

    federated_yolo/cli.py                     load config -> check -> simulate -> print the results
    federated_yolo/config/schema.py           every setting
    federated_yolo/checks/federation.py       all checks before round 1
    federated_yolo/runtime/simulation.py      Flower's simulation; deployment.py: SuperNodes
    federated_yolo/server/server.py           the round: train, aggregate, evaluate, save
    federated_yolo/client/yolo_client.py      a client's part of it: YoloClient(NumPyClient)
    federated_yolo/yolo/trainer.py            a slice of one Ultralytics training run
    federated_yolo/aggregation/strategies.py  the strategies
    federated_yolo/storage/run_dir.py         the files of a run directory
    federated_yolo/reporting/run_page.py      report.html
"""

from federated_yolo.cli import entry

if __name__ == "__main__":
    entry()
