"""Modules of the federated fine-tuning toolkit; federated.py shows how they fit together."""
