"""Errors, texts, files, arrays, figures and processes: what every room needs.

It imports no other room.
Start at errors.py: what a command turns into lines and an exit code.
"""
