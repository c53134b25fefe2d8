"""What travels between server and clients: instructions, records, codecs, deltas.

It may import the rooms above it in this list: common to yolo.
Start at instructions.py; delta.py and codec.py say how arrays are encoded.
"""
