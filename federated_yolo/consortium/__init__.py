"""The kit of a consortium: what its operator makes, keeps and hands out to sites.

This room may import all rooms but sites.
Start at operator_command.py; invitation.py has what a site is given.
"""
