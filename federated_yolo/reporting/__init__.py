"""Pictures and pages of runs, drawn from their directories alone.

It may import common, storage, config and data.
Start at draw.py; run_page.py has the sections of report.html.
"""
