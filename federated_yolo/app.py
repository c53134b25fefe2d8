"""The two apps that `flwr run` starts: the same run as `python federated.py`, on Flower's nodes.

    flwr run . FEDERATION --run-config 'arguments="configs/example.yaml num_rounds=20"'

pyproject.toml names the two apps. `arguments` are the arguments of federated.py.
"""

import logging
import shlex
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server_app = ServerApp()
log = logging.getLogger(__name__)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation on this grid; the run fails if the exit code is not 0."""
    from federated_yolo import cli
    from federated_yolo.common.processes import end_with_parent

    end_with_parent()
    arguments = shlex.split(str(context.run_config["arguments"]))
    code = cli.main([_in_bundle(argument) for argument in arguments], grid)
    if code:
        raise RuntimeError(f"the run ended with exit code {code}; the reason stands above")


def _in_bundle(argument: str) -> str:
    """Return the path of a config file in the app, if the working directory has no such file."""
    in_bundle = Path(__file__).resolve().parents[1] / argument
    return str(in_bundle) if not Path(argument).exists() and in_bundle.is_file() else argument


class _PreparedClientApp(ClientApp):
    """The app of client/app.py; a process must prepare its environment before importing it."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Handle a message.

        The app itself reports errors of a message. Flower would send the text of any other error,
        which may contain folder names of the site, so only the error's type is sent.
        """
        try:
            from federated_yolo.common.environment import prepare_environment
            from federated_yolo.common.processes import end_with_parent

            end_with_parent()
            prepare_environment()
            from federated_yolo.client.app import app

            return app(message, context)
        except Exception as error:
            log.exception("error: this site cannot take part")
            kind = type(error).__name__
            raise RuntimeError(f"{kind} before its work began; its own log says why") from None


client_app = _PreparedClientApp()
