"""A checked federation runs: in a simulation or on SuperNodes, shown on a terminal.

It may import all other rooms.
Start at simulation.py; startup.py makes the server.
"""
