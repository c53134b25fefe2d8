"""Exports of annotation tools, made into Ultralytics data sets; what a user names is only read.

A reader (coco.py, voc.py, ...) turns an export into `Content`; write.py writes its labels.
Start at convert.py (`prepare`); recognise.py lists the formats.
"""
