"""Strategies: they combine the updates of a round into new global arrays.

It may import the rooms from common to protocol, never client.
Start at strategies.py, where each strategy is registered.
"""
