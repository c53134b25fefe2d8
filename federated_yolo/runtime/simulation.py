"""Runs a checked federation on this machine, or on a Ray cluster, under Flower's simulation."""

import math
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch
from flwr.serverapp import Grid, ServerApp

from federated_yolo.checks.cluster import cpus_of_worker, joined
from federated_yolo.checks.federation import Federation
from federated_yolo.client import app as client_module
from federated_yolo.common.environment import num_cpus, quiet_stdout, set_verbosity
from federated_yolo.common.errors import FederationError
from federated_yolo.config.schema import ResolvedConfig
from federated_yolo.protocol.records import MAX_ATTEMPTS
from federated_yolo.runtime.startup import make_server
from federated_yolo.server.final_evaluation import finish, is_finished
from federated_yolo.server.results import Display, RunResult
from federated_yolo.server.server import Server, finish_loggers
from federated_yolo.storage.run_dir import RunDir


def simulate(federation: Federation, display: Display, run_dir: RunDir) -> RunResult:
    """Run the federation under Flower's simulation.

    Raises FederationError (server/server.py) if it cannot continue; finished rounds stay usable.
    """
    server = make_server(federation, display, run_dir)
    try:
        if server.is_done and is_finished(server):  # the resumed run was complete
            return server.result
        return _run_simulation(server, federation.config, run_dir)
    finally:
        server.stop()  # the server runs in a Flower thread, which would wait for replies for ever
        finish_loggers(server)


def _run_simulation(server: Server, config: ResolvedConfig, run_dir: RunDir) -> RunResult:
    """Run Flower's simulation in a thread of its own, so that an interrupt does not unwind it.

    In the main thread, Ctrl-C would make Flower shut Ray down while Flower's own threads wait for
    replies in Ray's native code; now and then that ended the process with a segmentation fault
    (flwr 1.41, ray 2.55) before it had shown how to resume.
    """
    outcome: Future[RunResult] = Future()

    def run() -> None:
        try:
            outcome.set_result(_simulated(server, config, run_dir))
        except BaseException as error:  # raised again by the caller
            outcome.set_exception(error)

    set_verbosity(verbose=config.verbose)
    with quiet_stdout(verbose=config.verbose):
        threading.Thread(target=run, name="simulation", daemon=True).start()
        return outcome.result()


def _simulated(server: Server, config: ResolvedConfig, run_dir: RunDir) -> RunResult:
    results: list[RunResult] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _: Any) -> None:
        result = server.run(grid)
        finish(server, grid)
        results.append(result)

    # unstable: flwr.simulation.run_simulation
    # The only place that starts a simulation: Flower deprecates `run_simulation` in favour of
    # `flwr run`, which needs a package of its own and a daemon.
    from flwr.simulation import run_simulation

    try:
        with _backend(config, run_dir) as backend:
            run_simulation(app, client_module.app, len(config.clients), backend_config=backend)
    except (FederationError, OSError):
        raise
    except Exception as error:  # whatever Flower and Ray raise, the run can be resumed
        path = run_dir.write_text("server/error.txt", traceback.format_exc())
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise FederationError(f"the simulation failed: {reason}; see {path}") from error
    if not results:
        raise RuntimeError("Flower's simulation ended without a result; try verbose=true")
    return results[0]


@contextmanager
def _backend(config: ResolvedConfig, run_dir: RunDir) -> Iterator[Any]:
    """Yield Flower's backend config; keep the connection to a Ray cluster open meanwhile."""
    if config.ray.address is None:
        yield _local_backend(config)
        return
    with joined(config, run_dir.server) as machines:
        cpus = config.client_resources.num_cpus
        yield {
            "client_resources": _worker(config, cpus_of_worker(machines, cpus, len(config.clients)))
        }


def _local_backend(config: ResolvedConfig) -> Any:
    """Return the resources of this machine that Ray may use, and those of each worker."""
    resources = config.client_resources
    # Flower starts as many workers as fit, each with its own PyTorch, whether or not there are
    # clients for them; so Ray gets no more CPUs than all clients together can use.
    cpus = min(num_cpus(), math.ceil(resources.num_cpus * len(config.clients)))
    return {
        "init_args": {
            "address": "local",  # else Ray would join a cluster that happens to run on this machine
            "num_cpus": cpus,
            "num_gpus": torch.cuda.device_count() if resources.num_gpus else 0,
            "include_dashboard": False,
            "log_to_driver": config.verbose,
            "logging_level": "info" if config.verbose else "critical",
        },
        "client_resources": _worker(config, max(resources.num_cpus, cpus / len(config.clients))),
    }


def _worker(config: ResolvedConfig, cpus: float) -> dict[str, float]:
    return {
        "num_cpus": cpus,
        "num_gpus": config.client_resources.num_gpus,
        # A worker that dies is restarted and gets its message again (see client/attempts.py); by
        # default that message and every later one would fail.
        "max_restarts": -1,
        "max_task_retries": MAX_ATTEMPTS,
    }
