"""Data sets as Ultralytics reads them: checked, in the federation's classes, never written to.

It may import common.
Start at scan.py (`check_dataset`); label_space.py renumbers labels.
"""
