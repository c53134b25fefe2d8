"""The checks that run before round 1, and the settings that are decided once for all clients.

This room may import all rooms but runtime.
Start at federation.py (`check`).
"""
