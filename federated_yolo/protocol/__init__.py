"""The messages between server and clients: instructions, records, codecs, deltas.

It may import common, storage, config, data and yolo.
Start at instructions.py; delta.py and codec.py define how arrays are encoded.
"""
