"""Ultralytics' models: built, trained slice by slice, evaluated, exported.

It may import common, storage, config and data.
Start at trainer.py (one round is a slice); rebuild.py makes a .pt of a round.
"""
