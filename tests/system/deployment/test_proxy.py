"""Behind docs/nginx.conf the SuperNodes pass and nobody else does; real processes."""

import http.client
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback import COMPLETED, HOST, Deployment, deployment, free_port
from processes import ROOT, wait_until

pytestmark = [
    pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]

ECHO = Path(__file__).parent / "echo_app"
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
MAIN = f"""
    daemon off;
    master_process off;  # a worker would outlive a master that is killed
    pid nginx.pid;
    error_log stderr;
    events {{}}
    http {{
        access_log off;
        {" ".join(f"{name}_temp_path {name};" for name in TEMPORARY)}
        include flower.conf;
    }}
"""
PROTOBUF = "application/protobuf"
CLOSED = (
    "/v1/control/list-runs",
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/..%2fcontrol/list-runs",
    "//v1//control/list-runs",
    "/V1/control/list-runs",
    "/docs",
    "/openapi.json",
    "/health",
    "/",
)


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A SuperLink, with two sites that have keys."""
    with deployment(tmp_path_factory.mktemp("proxy"), ("north", "south")) as parts:
        parts.start_superlink()
        yield parts


@pytest.fixture(scope="module")
def proxy(flower: Deployment) -> str:
    """Address of an nginx with docs/nginx.conf, adapted where it says so."""
    port, certificates = free_port(), flower.certificates
    server = (ROOT / "docs" / "nginx.conf").read_text()
    for line, adapted in {
        "server 127.0.0.1:8000;": f"server {flower.address};",
        "listen 443 ssl;": f"listen {HOST}:{port} ssl;",
        "/etc/flower/fullchain.pem;": f"{certificates}/server.pem;",
        "/etc/flower/privkey.pem;": f"{certificates}/server.key;",
        "/etc/flower/superlink/ca.crt;": f"{certificates}/ca.crt;",
    }.items():
        assert server.count(line) == 1, line
        server = server.replace(line, adapted)
    folder = flower.home("nginx")
    (folder / "nginx.conf").write_text(MAIN)
    (folder / "flower.conf").write_text(server)
    # Before it reads its configuration, nginx would open the log in /var/log.
    flower.start("nginx", "nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "stderr")
    address = f"{HOST}:{port}"
    assert wait_until(lambda: status(flower, address, "/") == 403, 20), flower.output("nginx")
    return address


def status(flower: Deployment, address: str, path: str) -> int:
    """Status of the answer to an empty message; 0 where nobody listens. The path goes as it is."""
    context = ssl.create_default_context(cafile=flower.certificates / "ca.crt")
    connection = http.client.HTTPSConnection(address, context=context, timeout=10)
    try:
        connection.request("POST", path, headers={"Content-Type": PROTOBUF, "Accept": PROTOBUF})
        return connection.getresponse().status
    except ConnectionRefusedError:
        return 0
    finally:
        connection.close()


def test_a_site_with_the_ca_certificate_can_neither_register_keys_nor_submit_code(
    flower: Deployment, proxy: str
) -> None:
    flower.connect("site", proxy)
    key = str(flower.certificates / "south.pub")
    for command in (["supernode", "register", key], ["run", str(ECHO)], ["list"]):
        done = flower.flwr(*command, user="site")
        assert done.returncode == 1, done.stdout + done.stderr
        assert "403" in done.stdout + done.stderr
    assert "StartRun" not in flower.output("superlink")
    assert "RegisterNode" not in flower.output("superlink")


def test_all_that_is_not_the_sites_api_is_closed_at_the_proxy(
    flower: Deployment, proxy: str
) -> None:
    assert {path: status(flower, proxy, path) for path in CLOSED} == dict.fromkeys(CLOSED, 403)
    # The SuperLink itself asks nobody who he is: this is why the proxy is needed.
    assert status(flower, flower.address, "/v1/control/list-runs") == 200
    assert status(flower, flower.address, "/v1/runtime/acquire-task") == 200


def test_a_registered_site_takes_part_through_the_proxy_and_an_unregistered_one_is_sent_away(
    flower: Deployment, proxy: str
) -> None:
    flower.register("north")
    for site in flower.sites:
        flower.start_supernode(site, superlink=proxy, name=site)
    flower.wait_online("north")
    run = flower.wait(flower.submit(ECHO))
    assert run.status == COMPLETED, run.log
    assert "hello from north" in run.log
    assert flower.wait_end("south") == 1
    assert "Exit Code: 305" in flower.output("south")
