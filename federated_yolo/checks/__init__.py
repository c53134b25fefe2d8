"""Everything that can be checked before round 1, and what is decided once for all clients.

It may import all rooms but runtime.
Start at federation.py (`check`).
"""
