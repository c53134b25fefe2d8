"""The round loop, and what it keeps: the global model, the clients, the journal of a round.

It may import the rooms from common to protocol, and aggregation, never client.
Start at server.py (`Server.run_round`); replies.py says which replies are refused.
"""
