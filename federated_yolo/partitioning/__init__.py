"""One data set becomes many clients, for experiments.

It may import common, storage, config and data.
Start at command.py; schemes.py says which image goes to which client.
"""
