"""Data sets as Ultralytics reads them: checked, in the federation's classes, never written to.

It may import common.
Start at scan.py (`check_dataset`). label_space.py gives each class its new number, by which
datasets.py renumbers labels when it reads them; exports/ reads exports of annotation tools.
"""
