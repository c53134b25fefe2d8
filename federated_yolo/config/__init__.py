"""Settings: a YAML file and key=value overrides become one validated `Config`.

It may import common.
Start at schema.py, which has every setting; loading.py reads a file.
"""
