"""Strategies by name, over Flower's own classes."""

import inspect
from collections.abc import Callable
from typing import Any

from flwr.serverapp.strategy import FedAvg, Strategy

from utils.config import InputError, StrategyConfig, nearest

# name -> (class, options a user may set with their defaults, paper)
#
# fedavg: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized
# Data, 2017, arXiv 1602.05629. The mean of the clients' arrays, weighted by training images.
STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
}
# Sampling and record names are this project's own business.
_RESERVED = frozenset(
    "fraction_train fraction_evaluate min_train_nodes min_evaluate_nodes min_available_nodes "
    "weighted_by_key arrayrecord_key configrecord_key train_metrics_aggr_fn "
    "evaluate_metrics_aggr_fn".split()
)


def build_strategy(config: StrategyConfig, num_clients: int) -> Strategy:
    """The strategy of a config, in which all clients train and evaluate in every round.

    Raises InputError for an unknown name or option.
    """
    if config.name not in STRATEGIES:
        raise InputError(
            f"strategy.name: found '{config.name}', expected one of {', '.join(STRATEGIES)}"
            f"{nearest(config.name, STRATEGIES)}"
        )
    strategy_class = STRATEGIES[config.name]
    known = [p for p in inspect.signature(strategy_class).parameters if p not in _RESERVED]
    unknown = [option for option in config.options if option not in known]
    if unknown:
        options = f"its options are {', '.join(known)}" if known else "it has no options"
        raise InputError(
            [
                f"strategy.{name}: unknown option of {config.name}; {options}{nearest(name, known)}"
                for name in unknown
            ]
        )
    everyone: dict[str, Any] = dict.fromkeys(
        ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), num_clients
    )
    return strategy_class(**everyone, **config.options)
