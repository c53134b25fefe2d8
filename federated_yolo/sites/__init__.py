"""A site's own command: it joins a consortium, checks itself, runs its SuperNode, says how it is.

This room may import all other rooms.
Start at site_command.py; check.py has what can be wrong, and the remedies.
"""
