"""Asks a server what can be asked without changing anything: its certificate, time, and our key."""

import http.client
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from pathlib import Path

import httpx

from federated_yolo.consortium.settings import DEFAULT_PORT, split_address

TIMEOUT_S = 15
# A SuperLink takes the time of a request if it is less than this in its past or future.
MAX_AHEAD_S, MAX_BEHIND_S = 5.0, 305.0
# OpenSSL's codes of what is wrong with a certificate.
NOT_YET_VALID, EXPIRED, OTHER_NAME = 9, 10, 62
UNKNOWN_CA = (2, 18, 19, 20, 21)


class UnreachableError(Exception):
    """Nobody answers at the server's address."""


class UntrustedError(Exception):
    """A server answers, and it is not the one of the invitation. remedy: What to do."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.remedy = remedy


@dataclass(frozen=True)
class Contact:
    """A server that has answered over TLS.

    ends: When its certificate ends, in seconds since 1970. ahead_s: How much this machine's clock
    is ahead of the server's, negative if behind; None if the server does not say its time.
    error_s: How far off that may be, since servers say their time in whole seconds.
    """

    ends: float
    ahead_s: float | None
    error_s: float


class Registration(Enum):
    """What the SuperLink says of a key."""

    REGISTERED = "registered"
    UNKNOWN = "not registered"
    REFUSED = "refused"  # by its time, or by its signature
    NO_SUPERLINK = "no SuperLink"  # a proxy has answered, and nobody behind it
    OTHER = "not Flower"  # something else


def contact(address: str, ca: Path | None) -> Contact:
    """Connect to a server. Raises UnreachableError or UntrustedError."""
    host, port = split_address(address)
    context = ssl.create_default_context(cafile=str(ca) if ca else None)
    connection = http.client.HTTPSConnection(
        host, port or DEFAULT_PORT, timeout=TIMEOUT_S, context=context
    )
    try:
        connection.connect()
        sock = connection.sock
        assert isinstance(sock, ssl.SSLSocket)
        ends = ssl.cert_time_to_seconds(str((sock.getpeercert() or {})["notAfter"]))
        before = time.time()
        connection.request("GET", "/")
        date = connection.getresponse().getheader("Date")
        after = time.time()
    except ssl.SSLCertVerificationError as error:
        raise _untrusted(error, host) from error
    except ssl.SSLError as error:
        raise UntrustedError(
            f"no TLS there ({error.reason})", "check address and port with the operator"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreachableError(reason) from error
    finally:
        connection.close()
    try:
        server_time = parsedate_to_datetime(date or "").timestamp() + 0.5
    except ValueError:
        return Contact(ends, None, 0.0)
    return Contact(ends, (before + after) / 2 - server_time, 0.5 + (after - before) / 2)


def _untrusted(error: ssl.SSLCertVerificationError, host: str) -> UntrustedError:
    match error.verify_code:
        case code if code == OTHER_NAME:
            return UntrustedError(
                f"its certificate is not for '{host}'",
                "the operator makes one for this name, or the address of the invitation is wrong",
            )
        case code if code == EXPIRED:
            return UntrustedError(
                "its certificate has ended, or this clock is wrong",
                "the operator renews it (consortium renew); compare the clocks",
            )
        case code if code == NOT_YET_VALID:
            return UntrustedError("its certificate is not valid yet", "this clock is behind: NTP")
        case code if code in UNKNOWN_CA:
            return UntrustedError(
                "its certificate is of another CA",
                "this is not the server of the invitation, or something reads what is sent (a "
                "TLS proxy): ask the operator and your IT; a new CA comes with a new invitation",
            )
    return UntrustedError(error.verify_message, "ask the operator")


# unstable: flwr.supernode.fleet_http_client.FleetHttpClient.ActivateNode
# unstable: flwr.supernode.node_auth_http_interceptor.NodeAuthHttpInterceptor
# unstable: flwr.supercore.interceptors.http.runtime_version.RuntimeVersionHttpInterceptor
# unstable: flwr.superlink.servicer.fleet.fleet_handlers says '_validate_heartbeat_interval(request'
def registration(address: str, ca: Path | None, private_key: bytes) -> Registration:
    """Ask the SuperLink whether it knows a key, by a request that it must refuse.

    The request is a SuperNode's first, signed as usual, with an interval between heartbeats of 0 s.
    Flower 1.41 looks up the key, then refuses the interval, and only then would do anything: the
    code of the refusal says whether the key was found, and nothing has changed.

    private_key: In OpenSSH's format. Raises UnreachableError.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.proto.fleet_pb2 import ActivateNodeRequest
    from flwr.supercore.error import ApiErrorCode, FlowerError
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    key = load_ssh_private_key(private_key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    public = key.public_key()
    interceptors = [
        RuntimeVersionHttpInterceptor(component_name="SuperNode"),
        NodeAuthHttpInterceptor(key, public),
    ]
    request = ActivateNodeRequest(public_key=public_key_to_bytes(public), heartbeat_interval=0.0)
    certificates = ca.read_bytes() if ca else None
    with FleetHttpClient.from_server_address(address, False, certificates, interceptors) as client:
        try:
            client.ActivateNode(request)
        except httpx.HTTPStatusError as refused:
            answer = refused.response
        except httpx.HTTPError as error:
            raise UnreachableError(str(error)) from error
        else:
            return Registration.OTHER
    told = FlowerError.from_json(answer.text)
    code = told.code if told else None
    if code == ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
        return Registration.REGISTERED
    if code == ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
        return Registration.UNKNOWN
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return Registration.REFUSED
    if answer.status_code in (502, 503, 504):
        return Registration.NO_SUPERLINK
    return Registration.OTHER
