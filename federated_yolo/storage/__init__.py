"""The run directory: rounds as .npz, tables as .csv, everything written in one piece.

It may import common.
Start at run_dir.py; archive.py has the format of an .npz.
"""
