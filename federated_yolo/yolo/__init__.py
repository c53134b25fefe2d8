"""Build Ultralytics models, train them slice by slice, evaluate and export them.

It may import common, storage, config and data.
Start at trainer.py (one round is a slice); rebuild.py makes a .pt file from a round.
"""
