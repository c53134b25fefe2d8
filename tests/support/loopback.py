"""A deployment of Flower on this machine, of real processes: SuperLink, SuperNodes, `flwr`.

    with deployment(tmp_path, sites=("north", "south")) as flower:
        flower.start_superlink()
        for site in flower.sites:
            flower.register(site)
            flower.start_supernode(site, data=str(tmp_path / site / "data.yaml"), name=site)
        flower.wait_online(*flower.sites)
        run = flower.wait(flower.submit(app, config="two_rounds.yaml"))
        assert run.status == COMPLETED, run.log

TLS and node authentication are on, ports are free ones. Each part has a folder of its own below
`tmp_path`: its working directory, its FLWR_HOME (`flwr/`) and its output (`output.txt`). All waits
have a limit. When the block ends, however it does, so do all processes.
"""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import clean_environment, process_ids_with, wait_until

from federated_yolo.runtime.certificates import make_certificates

COMPLETED = "finished:completed"
FAILED = "finished:failed"
STOPPED = "finished:stopped"
HOST = "127.0.0.1"
LOCAL = ":local:"  # a SuperLink that `flwr` starts itself, for simulations
START_S = 120  # 5 s where nothing else runs; a machine that is busy took ten times as long
COMMAND_S = 120  # one `flwr` command
MARKER = "DEPLOYMENT_OF_TEST"  # the variable by which all processes of a deployment are found


@dataclass(frozen=True)
class Run:
    """What the SuperLink tells of a run. log: what the ServerApp printed, stderr too."""

    run_id: str
    status: str
    details: str
    log: str


class Deployment:
    """Starts, kills and asks the parts; made by `deployment`."""

    def __init__(self, folder: Path, sites: Sequence[str]) -> None:
        self.sites = tuple(sites)
        self.port = free_port()
        self.address = f"{HOST}:{self.port}"
        self.certificates = folder / "certificates"
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._site_of: dict[str, str] = {}  # by the ID of its node; `flwr` does not list names
        self._marker = uuid.uuid4().hex
        self._environment = {
            **clean_environment(),
            MARKER: self._marker,
            # flower-superlink finds flower-superexec there, which finds flwr-serverapp.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        }
        make_certificates(self.certificates, [HOST, "localhost"], sites)
        self.connect("operator", self.address)

    def connect(self, user: str, address: str) -> None:
        """Give a user of `flwr` this address of the SuperLink, and the CA's certificate."""
        config = self.home(user) / "flwr" / "config.toml"
        config.parent.mkdir(parents=True, exist_ok=True)
        certificate = f'root-certificates = "{self.certificates / "ca.crt"}"\n'
        config.write_text(
            '[superlink]\ndefault = "test"\n[superlink.test]\n'
            f'address = "{address}"\n{"" if address == LOCAL else certificate}'
        )

    def home(self, part: str) -> Path:
        """The folder of a part: "superlink", a site, or a user of `flwr`."""
        folder = self._folder / part
        folder.mkdir(exist_ok=True)
        return folder

    def output(self, part: str) -> str:
        """What a part has printed so far."""
        return (self.home(part) / "output.txt").read_text(errors="replace")

    def start(self, part: str, *command: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start a part in its folder, with these environment variables besides."""
        assert part not in self._processes, f"{part} is there; kill it first"
        with (self.home(part) / "output.txt").open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self.home(part),
                env={**self._environment, **self._flower_home(part), **variables},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._processes[part] = process
        return process

    def start_superlink(self, *options: str, **variables: str) -> None:
        """Start it, or start it again with the same database, and wait until it answers."""
        server = self.certificates / "server"
        command = f"flower-superlink --host {HOST} --port {self.port} --enable-supernode-auth"
        process = self.start(
            "superlink",
            *command.split(),
            *("--ssl-ca-certfile", str(self.certificates / "ca.crt")),
            *("--ssl-certfile", f"{server}.pem", "--ssl-keyfile", f"{server}.key"),
            *("--database", str(self.home("superlink") / "state.db")),
            "--disable-runtime-dependency-installation",
            *options,
            **variables,
        )
        wait_until(lambda: self._answers() or process.poll() is not None, START_S)
        assert self._answers(), self.output("superlink")

    def _answers(self) -> bool:
        context = ssl.create_default_context(cafile=self.certificates / "ca.crt")
        try:
            with urllib.request.urlopen(
                f"https://{self.address}/health", context=context, timeout=5
            ) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def start_supernode(
        self, site: str, *options: str, superlink: str = "", **node_config: str | int | bool
    ) -> None:
        """Start a site's SuperNode; again, with the same key, after `wait_offline`.

        superlink: another address than the SuperLink's own, such as a proxy's.
        """
        config = " ".join(f"{k}={json.dumps(v)}" for k, v in node_config.items())
        self.start(
            site,
            *("flower-supernode", "--superlink", superlink or self.address),
            *("--root-certificates", str(self.certificates / "ca.crt")),
            *("--auth-supernode-private-key", str(self.certificates / site)),
            *("--host", HOST, "--port", str(free_port()), "--node-config", config),
            *options,
        )

    def kill(self, part: str, how: signal.Signals = signal.SIGKILL) -> int:
        """Send a part's main process a signal, wait for its end, and return its exit code.

        What it had started is left to notice by itself, as after a crash.
        """
        self._processes[part].send_signal(how)
        return self.wait_end(part)

    def wait_end(self, part: str) -> int:
        """Wait until a part's main process has ended by itself, and return its exit code."""
        return self._processes.pop(part).wait(START_S)

    def processes(self, name: str = "") -> list[str]:
        """Command lines of the processes that are there, with this in them."""
        return [line for line in process_ids_with(self._variable).values() if name in line]

    def end(self) -> None:
        """Kill everything.

        Flower puts parts of itself into sessions of their own, so a process group is not enough.
        """
        for process in self._processes.values():
            process.kill()
            process.wait()
        end_all(self._variable)

    @property
    def _variable(self) -> str:
        return f"{MARKER}={self._marker}"

    def flwr(self, *arguments: str, user: str = "operator") -> subprocess.CompletedProcess[str]:
        """Run a command of `flwr` to its end."""
        return subprocess.run(
            ["flwr", *arguments],
            cwd=self.home(user),
            env={**self._environment, **self._flower_home(user)},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )

    def register(self, site: str) -> None:
        """Tell the SuperLink a site's public key."""
        key = str(self.certificates / f"{site}.pub")
        node = self._ask("supernode", "register", key, "--name", site)
        self._site_of[str(node["node-id"])] = site

    def online(self) -> set[str]:
        """Sites whose SuperNodes are connected; one that was killed counts for a minute more."""
        nodes = self._ask("supernode", "list")["nodes"]
        return {self._site_of[n["node-id"]] for n in nodes if n["status"] == "online"}

    def wait_online(self, *sites: str, timeout_s: float = START_S) -> None:
        """Wait until the SuperNodes of these sites are connected."""
        found = wait_until(lambda: self.online() >= set(sites), timeout_s)
        assert found, "\n".join(self.output(site) for site in sites)

    def wait_offline(self, *sites: str) -> None:
        """Wait until the SuperLink has noticed that these SuperNodes were killed.

        Before that, Flower 1.41 refuses a new process with the same key (code 2004, exit 305).
        """
        assert wait_until(lambda: not self.online() & set(sites), START_S), self.online()

    def submit(
        self, app: Path, federation: str = "", **run_config: str | int | float | bool
    ) -> str:
        """`flwr run` an app with these settings, and return the ID of the run.

        federation: settings of a simulation, as `flwr` takes them.
        """
        config = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
        options = ["--run-config", config] if config else []
        options += ["--federation-config", federation] if federation else []
        return self._ask("run", str(app), *options)["run-id"]

    def wait(self, run_id: str, timeout_s: float = 300) -> Run:
        """Wait for the end of a run."""
        ended = wait_until(lambda: self.run(run_id).status.startswith("finished"), timeout_s)
        assert ended, f"{self.run(run_id)}\n{self.output('superlink')}"
        return self.run(run_id, with_log=True)

    def run(self, run_id: str, *, with_log: bool = False) -> Run:
        """State of a run now."""
        row = self._ask("list", "--run-id", run_id)["runs"][0]
        log = self.flwr("log", run_id, "--show").stdout if with_log else ""
        return Run(run_id, row["status"], row["status-details"], log)

    def _ask(self, *arguments: str) -> dict[str, Any]:
        done = self.flwr(*arguments, "--format", "json")
        assert done.returncode == 0, done.stdout + done.stderr
        answer = json.loads(done.stdout)
        assert answer["success"], answer  # a command that was refused exits with 0 too
        return answer

    def _flower_home(self, part: str) -> dict[str, str]:
        return {"FLWR_HOME": str(self.home(part) / "flwr")}


@contextmanager
def deployment(folder: Path, sites: Sequence[str] = ("north",)) -> Iterator[Deployment]:
    """A deployment with certificates and keys; nothing is started yet."""
    parts = Deployment(folder, sites)
    try:
        yield parts
    finally:
        parts.end()


def end_all(marker: str) -> None:
    """Kill the processes that have inherited this variable, and those that they still start."""

    def none_is_left() -> bool:
        left = process_ids_with(marker)
        for process_id in left:
            try:
                os.kill(process_id, signal.SIGKILL)
            except ProcessLookupError:  # it has ended just now
                continue
        return not left

    assert wait_until(none_is_left, 20), "processes stay behind"


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
