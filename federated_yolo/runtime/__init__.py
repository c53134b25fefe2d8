"""Runs a checked federation, in a simulation or on SuperNodes, and shows it on a terminal.

This room may import all other rooms.
Start at simulation.py; startup.py makes the server.
"""
