"""Helpers that every room needs: errors, texts, files, arrays, figures and processes.

It imports no other room.
Start at errors.py: the errors that a command reports as lines of text and an exit code.
"""
