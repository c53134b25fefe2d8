"""Strategies: updates of a round become new global arrays.

It may import common to protocol, never client.
Start at strategies.py, where each strategy is registered.
"""
