"""Draw pictures and pages of runs from their run directories alone.

It may import common, storage, config and data.
Start at draw.py; run_page.py makes the sections of report.html.
"""
