"""A consortium by its kit alone, with real processes: from init to revoke, and each fault once.

Behind nginx where that is installed, else at the SuperLink itself, as in a trial on one machine.
"""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import psutil
import pytest
import yaml
from kit import joined
from loopback import HOST, MARKER, end_all, free_port
from processes import ROOT, clean_environment, process_ids_with, wait_until
from recipes import make_checkpoint, make_dataset

from federated_yolo.client.journal import Journal
from federated_yolo.runtime.certificates import make_certificates
from federated_yolo.sites import check
from federated_yolo.sites.folder import SiteFolder, find_site
from federated_yolo.sites.probe import Registration, UnreachableError, contact, registration
from federated_yolo.storage.run_dir import read_csv

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]

HAS_NGINX = shutil.which("nginx") is not None
CLOSED = ("/v1/control/list-runs", "/v1/control/start-run", "/v1/runtime/acquire-task", "/health")
WAIT_S = 240  # for what takes seconds where nothing else runs


@dataclass
class Kit:
    """A consortium with its server running, and what was started."""

    folder: Path
    port: int
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {**clean_environment(), MARKER: self.marker, "OMP_NUM_THREADS": "1"}

    def command(self, *words: str, prefix: tuple[str, ...] = ()) -> str:
        """Run a command to its end with exit code 0, and return what it prints."""
        done = self.try_command(*words, prefix=prefix)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def try_command(
        self, *words: str, prefix: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, sys.executable, str(ROOT / "federated.py"), *words],
            cwd=self.folder.parent,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    def start(self, *command: str) -> tuple[subprocess.Popen[bytes], Path]:
        """Start a process in the background; return it and the file of its output."""
        output = self.folder.parent / f"output{len(self.started)}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=self.folder.parent,
                env=self.environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.started.append(process)
        return process, output

    def site(self, name: str) -> SiteFolder:
        """A site that has joined, with data of its own."""
        folder = self.folder.parent / name
        if not folder.exists():
            data = make_dataset(self.folder.parent / f"data-{name}", 4, 3, seed=len(name))
            joined(self.folder, name, folder, str(data))
        return find_site(folder)

    def end(self) -> None:
        """End everything; start.sh ends nginx, which shows no environment to be found by."""
        for process in self.started:
            process.terminate()
        for process in self.started:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        end_all(f"{MARKER}={self.marker}")
        pid = self.folder / "server" / "nginx" / "nginx.pid"
        assert wait_until(lambda: not pid.exists(), 20), "nginx stays behind"


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kit]:
    """A consortium of three sites, none of which has joined yet."""
    folder = tmp_path_factory.mktemp("kit")
    port = free_port()
    settings = {
        "name": "lungs",
        "host": f"{HOST}:{free_port() if HAS_NGINX else port}",
        "sites": ["north", "south", "west"],
        "superlink_port": port,
    }
    (folder / "consortium.yaml").write_text(yaml.safe_dump(settings))
    kit = Kit(folder / "lungs", port)
    try:
        kit.command("consortium", "init", "consortium.yaml")
        _, output = kit.start(str(kit.folder / "server" / "start.sh"))
        site = kit.site("west")

        def is_there() -> bool:
            return asked(site) is Registration.UNKNOWN

        assert wait_until(is_there, WAIT_S), output.read_text()
        yield kit
    finally:
        kit.end()


def asked(site: SiteFolder) -> Registration | None:
    """What the server says of a site's key; None if it does not answer."""
    try:
        return registration(site.terms.address, site.ca, (site.path / "key").read_bytes())
    except UnreachableError:  # it is starting
        return None


def problems(site: SiteFolder) -> dict[str, str]:
    found = [finding for finding in check.quick_checks(site) if finding.is_good is False]
    return {finding.what: f"{finding.text} | {finding.remedy}" for finding in found}


def test_a_site_that_is_not_approved_is_told_so_and_can_do_nothing(kit: Kit) -> None:
    """It has the CA's certificate, a key of its own, and all of Flower's API."""
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, node_pb2, run_pb2
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    site = kit.site("west")
    assert list(problems(site)) == ["approval"]
    assert f"(consortium approve): {site.public_key.line}" in problems(site)["approval"]
    key = load_ssh_private_key((site.path / "key").read_bytes(), None)
    public = public_key_to_bytes(key.public_key())  # type: ignore[arg-type]
    nodes = (0, 1, 2**63)
    requests = [
        ("RegisterNode", fleet_pb2.RegisterNodeFleetRequest(public_key=public)),
        ("ActivateNode", fleet_pb2.ActivateNodeRequest(public_key=public, heartbeat_interval=30)),
    ]
    for number in nodes:
        node = node_pb2.Node(node_id=number)
        requests += [
            ("DeactivateNode", fleet_pb2.DeactivateNodeRequest(node_id=number)),
            ("UnregisterNode", fleet_pb2.UnregisterNodeFleetRequest(node_id=number)),
            ("SendNodeHeartbeat", heartbeat_pb2.SendNodeHeartbeatRequest(node=node)),
            ("PullMessages", fleet_pb2.PullMessagesRequest(node=node)),
            ("PushMessages", fleet_pb2.PushMessagesRequest(node=node)),
            ("GetRun", run_pb2.GetRunRequest(node=node, run_id=1)),
            ("GetFab", fab_pb2.GetFabRequest(node=node, hash_str=site.terms.app.hash)),
            ("PushObject", message_pb2.PushObjectRequest(node=node, object_id="x")),
            ("PullObject", message_pb2.PullObjectRequest(node=node, object_id="x")),
            ("ConfirmMessageReceived", message_pb2.ConfirmMessageReceivedRequest(node=node)),
        ]
    ca = site.ca
    assert ca is not None
    signed = [NodeAuthHttpInterceptor(key, key.public_key())]  # type: ignore[arg-type]
    for interceptors in (signed, []):
        address = (site.terms.address, False, ca.read_bytes(), interceptors)
        with FleetHttpClient.from_server_address(*address) as client:
            for name, request in requests:
                with pytest.raises(httpx.HTTPStatusError):
                    getattr(client, name)(request)
    listed = kit.command("consortium", "status")
    assert listed.count("not approved") == 3


@pytest.mark.skipif(not HAS_NGINX, reason="needs nginx")
def test_behind_the_kits_nginx_all_but_the_sites_api_is_closed(kit: Kit) -> None:
    site = kit.site("west")
    with httpx.Client(verify=ssl.create_default_context(cafile=site.ca)) as client:
        found = {
            path: client.post(f"https://{site.terms.address}{path}").status_code for path in CLOSED
        }
    assert found == dict.fromkeys(CLOSED, 403)
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == "LISTEN"]
    places = [(getattr(at, "ip", ""), getattr(at, "port", 0)) for at in listening]
    assert [host for host, port in places if port == kit.port] == [HOST]


def test_each_thing_that_is_wrong_with_the_way_to_the_server_is_told(
    kit: Kit, tmp_path: Path
) -> None:
    site = kit.site("west")
    make_certificates(tmp_path / "other", [HOST], [])
    folder = Path(shutil.copytree(site.path, tmp_path / "copy"))
    copy = SiteFolder(folder, site.terms)
    shutil.copy(tmp_path / "other" / "ca.crt", folder / "ca.crt")
    assert "its certificate is of another CA" in problems(copy)["server"]
    if HAS_NGINX:  # the SuperLink's own certificate is for localhost, too
        port = site.terms.address.rpartition(":")[2]
        named = site.terms.model_copy(update={"address": f"localhost:{port}"})
        assert "is not for 'localhost'" in problems(replace(site, terms=named))["server"]
    with socket.socket() as silent:  # accepts connections and says nothing that is TLS
        silent.bind((HOST, 0))
        silent.listen()
        address = f"{HOST}:{silent.getsockname()[1]}"
        silent.close()
        away = site.terms.model_copy(update={"address": address})
        assert "TCP, outbound" in problems(replace(site, terms=away))["server"]
    assert abs(contact(site.terms.address, site.ca).ahead_s or 0.0) < 5


@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs faketime")
@pytest.mark.parametrize(("offset", "told"), [("+20s", "ahead of"), ("-6m", "behind")])
def test_a_clock_that_flower_would_refuse_without_a_word_is_told(
    offset: str, told: str, kit: Kit
) -> None:
    site = kit.site("west")
    done = kit.try_command(
        *("site", "check", "--folder", str(site.path)), prefix=("faketime", "-f", offset)
    )
    assert done.returncode == 1
    assert re.search(rf"✗ clock +[\d.]+ s {told} the server's; Flower takes 5 s ahead", done.stdout)
    assert "✗ approval  the server refuses the signature" in done.stdout
    assert "clock: set this clock by NTP" in done.stdout


def test_sites_join_are_approved_train_and_are_revoked(kit: Kit) -> None:
    top = kit.folder.parent
    make_checkpoint(top / "base.pt")
    sites = {name: kit.site(name) for name in ("north", "south")}
    line = sites["north"].public_key.line
    told = kit.command("consortium", "approve", "--yes", line)
    assert sites["north"].public_key.spoken in told
    # South waits for its approval, north starts with it.
    processes = {}
    for name, site in sites.items():
        command = (sys.executable, str(ROOT / "federated.py"), "site", "start", "--folder")
        processes[name] = kit.start(*command, str(site.path))
    waiting = processes["south"][1]
    assert wait_until(lambda: sites["south"].public_key.line in waiting.read_text(), WAIT_S)
    kit.command("consortium", "approve", "--yes", *sites["south"].public_key.line.split())

    def online() -> bool:
        return kit.try_command("consortium", "status").stdout.count("online") == 2

    assert wait_until(online, WAIT_S), [file.read_text() for _, file in processes.values()]
    config = {
        "base_model": str(top / "base.pt"),
        "datasets": [{"name": name} for name in sites],
        "num_rounds": 1,
        "train": {"imgsz": 32, "batch": 2},
    }
    (top / "run.yaml").write_text(yaml.safe_dump(config))
    printed = kit.command("consortium", "run", "run.yaml", "name=first")
    assert "finished:completed" in printed
    run_dir = kit.folder / "server" / "runs" / "federated" / "first"
    assert {row["client"] for row in read_csv(run_dir / "clients.csv")} == set(sites)

    status = kit.command("consortium", "status")
    assert "round 1 of 1 is done" in status
    assert status.count("as the server") == 2
    own = kit.command("site", "status", "--folder", str(sites["north"].path))
    assert "connected to the server" in own
    assert "own score   round 1: 3 images" in own
    log = kit.command("site", "log", "--folder", str(sites["north"].path))
    assert "round 1 of 1: 4 images" in log
    assert "south" not in log
    assert str(top) not in log
    apps = [path.name for path in (sites["north"].flower_home / "apps").iterdir()]
    assert [name.rpartition(".")[2] for name in apps] == [sites["north"].terms.app.hash[:8]]
    assert kit.try_command("site", "start", "--folder", str(sites["north"].path)).returncode == 1

    kit.command("consortium", "revoke", "south")
    assert asked(sites["south"]) is Registration.UNKNOWN
    assert json.loads((kit.folder / "server" / "sites.json").read_text()).popitem()[1] == "north"
    for process, file in processes.values():
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0, file.read_text()
    left = process_ids_with(f"{MARKER}={kit.marker}").values()
    at_sites = ("flower-supernode", "flwr-clientapp")
    assert [line for line in left if any(name in line for name in at_sites)] == []
    assert not (sites["north"].path / "running.json").exists()
    assert Journal(sites["north"].work_folder()).read()["score"]["round"] == 1


def test_a_site_whose_own_process_is_killed_leaves_no_supernode_behind(kit: Kit) -> None:
    if os.name != "posix" or sys.platform != "linux":
        pytest.skip("Linux ends a process with its parent")
    site = kit.site("west")
    kit.command("consortium", "approve", "--yes", site.public_key.line)
    command = (sys.executable, str(ROOT / "federated.py"), "site", "start", "--folder")
    process, file = kit.start(*command, str(site.path))

    def supernodes() -> list[str]:
        left = process_ids_with(f"{MARKER}={kit.marker}").values()
        return [line for line in left if "flower-supernode" in line]

    assert wait_until(lambda: bool(supernodes()), WAIT_S), file.read_text()
    process.kill()
    process.wait()
    assert wait_until(lambda: not supernodes(), 60)
