"""Splits one data set into several clients, for experiments.

It may import common, storage, config and data.
Start at command.py; schemes.py decides which image goes to which client.
"""
