"""The operator's kit: invites sites, approves their keys, runs the server, shows who is there.

    federated-yolo consortium init consortium.yaml   make the server's kit and the invitations
    NAME/server/start.sh                             run the server: SuperLink and nginx
    federated-yolo consortium approve KEYLINE        admit a site, by the line that it has sent
    federated-yolo consortium run CONFIG [key=value] start a run and follow it; RUN_DIR resumes one
    federated-yolo consortium status                 each site: online, round, seconds, failures
    federated-yolo consortium add-site NAME          invite one more site
    federated-yolo consortium revoke NAME            admit a site no longer
    federated-yolo consortium renew                  new certificates, before the old ones end
    federated-yolo consortium upgrade                the app as it is now, and new invitations

consortium.yaml needs three lines:

    name: lungs
    host: flower.example.org        # what sites reach; :PORT if it is not 443
    sites: [north, south]

and may have `task: segment` (detect without it), `tls: {certificate: ..., key: ...}` for a
certificate of a public CA, and `superlink_port` (8000). Commands after init work in the
consortium's folder or beside it; --folder names another one. docs/deployment.md explains it all.

Exit codes: 0 done, 1 failed, or status has something to tell, 2 wrong input (nothing was changed).
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from federated_yolo.common.command_line import answer, inside, parser_of
from federated_yolo.common.errors import InputError, nearest
from federated_yolo.config.schema import CLIENT_NAME
from federated_yolo.consortium import bundle
from federated_yolo.consortium.folder import (
    STATE,
    SiteState,
    find_folder,
    locked,
    read_state,
    write_state,
)
from federated_yolo.consortium.invitation import write_invitation
from federated_yolo.consortium.keys import SiteKey, read_line
from federated_yolo.consortium.packages import needed_versions
from federated_yolo.consortium.server_kit import (
    issue_certificates,
    make_consortium,
    read_authority,
    write_app,
    write_server_files,
)
from federated_yolo.consortium.settings import NAME_EXPECTED, load_settings
from federated_yolo.consortium.status import show_status
from federated_yolo.consortium.superlink import SuperLink

COMPLETED = "finished:completed"


def init(options: argparse.Namespace) -> int:
    """Make a consortium's folder."""
    settings = load_settings(options.settings)
    folder = (options.folder or Path(settings.name)).absolute()
    make_consortium(settings, folder)
    shown = inside(folder)
    print(f"{shown}/server/start.sh   runs the server; units and a compose file are there, too")
    for site in settings.sites:
        print(f"{shown}/invitations/{site}.zip   for {site}; it has no secret")
    print(f"{shown}/authority/ca.key   the CA's key: keep a copy in a safe place, nowhere else")
    return 0


def add_site(options: argparse.Namespace) -> int:
    """Invite one more site."""
    folder, name = _folder(options), options.name
    with locked(folder) as state:
        if not CLIENT_NAME.fullmatch(name):
            raise InputError(f"add-site: found {name!r}, {NAME_EXPECTED}")
        if name.casefold() in {other.casefold() for other in state.sites}:
            raise InputError(f"add-site: '{name}' is there already; its invitation is, too")
        state = state.with_site(name, SiteState())
        path = write_invitation(state, folder, name)
        write_state(folder, state)
    print(f"{inside(path)}   for {name}")
    return 0


def approve(options: argparse.Namespace) -> int:
    """Admit a site's key under its name."""
    key = read_line(" ".join(options.key_line))
    folder = _folder(options)
    with locked(folder) as state:
        if key.site not in state.sites:
            raise InputError(
                f"approve: '{key.site}' is no site of {state.settings.name} "
                f"[{', '.join(state.sites)}]{nearest(key.site, state.sites)}; add-site invites one"
            )
        before = state.sites[key.site].public_key
        if before not in ("", key.public):
            raise InputError(
                f"approve: '{key.site}' has another key already; if it has lost that, first: "
                f"consortium revoke {key.site}"
            )
        if any(s.public_key == key.public for n, s in state.sites.items() if n != key.site):
            raise InputError("approve: another site has this key; each makes its own")
        if not _is_confirmed(key, options):
            print("Nothing was approved.")
            return 1
        node = _registered(SuperLink(folder), key, state.sites[key.site])
        now = datetime.now(UTC).isoformat(timespec="seconds")
        site = SiteState(public_key=key.public, node=node, approved=now)
        write_state(folder, state.with_site(key.site, site))
    print(f"{key.site} is approved: node {node}")
    return 0


def _is_confirmed(key: SiteKey, options: argparse.Namespace) -> bool:
    """Show the fingerprint, and ask whether the site reads the same."""
    print(f"{key.site}: {key.fingerprint}\n\n    {key.spoken}\n")
    if options.yes:
        return True
    if not sys.stdin.isatty():
        raise InputError("approve: nobody can be asked here; compare the digits, and give --yes")
    return input(f"Does {key.site} read the same digits to you? [y/N] ").strip().lower() == "y"


def _registered(superlink: SuperLink, key: SiteKey, site: SiteState) -> str:
    """Return the ID of a key's node; the SuperLink refuses a key that it has already."""
    if site.node:
        known = superlink.nodes().get(site.node)
        if known is not None and known.status != "unregistered":
            return site.node
    return superlink.register(key)


def revoke(options: argparse.Namespace) -> int:
    """Admit a site no longer: first by this kit's server app, then by the SuperLink."""
    folder, name = _folder(options), options.name
    with locked(folder) as state:
        if name not in state.sites:
            raise InputError(f"revoke: no site '{name}'{nearest(name, state.sites)}")
        node = state.sites[name].node
        if not node:
            raise InputError(f"revoke: '{name}' is not approved")
        state = state.with_site(name, state.sites[name].model_copy(update={"approved": ""}))
        write_state(folder, state)
        superlink = SuperLink(folder)
        known = superlink.nodes().get(node)
        if known is not None and known.status != "unregistered":
            superlink.unregister(node)
        write_state(folder, state.with_site(name, SiteState()))
    print(f"{name} is admitted no longer; approve admits it again, with this or another key")
    return 0


def run(options: argparse.Namespace) -> int:
    """Start a run of the consortium's app, and follow it unless told not to."""
    folder = _folder(options)
    config = options.config.absolute()
    if not config.exists():
        raise InputError(f"run: {options.config}: not there; give a config, or a run to resume")
    first = f"resume={config}" if config.is_dir() else str(config)
    superlink = SuperLink(folder)
    run_id = superlink.submit(shlex.join([first, *options.overrides]))
    print(f"run {run_id}", flush=True)
    if options.detach:
        return 0
    superlink.follow(run_id)
    status, details = superlink.state_of(run_id)
    print(f"run {run_id}: {status} {details}".rstrip())
    return 0 if status == COMPLETED else 1


def status(options: argparse.Namespace) -> int:
    """Show the state of all sites."""
    folder = _folder(options)
    console = Console(file=sys.stdout, highlight=False)
    return show_status(console, read_state(folder), folder)


def renew(options: argparse.Namespace) -> int:
    """Make new certificates with the same CA, so that sites change nothing."""
    folder = _folder(options)
    with locked(folder) as state:
        for path in issue_certificates(state, folder, read_authority(folder)):
            print(inside(path))
    print("They count when the SuperLink and nginx are started again, which ends a run: resume it.")
    return 0


def upgrade(options: argparse.Namespace) -> int:
    """Take the app and the versions as they are now, and write all invitations anew."""
    folder = _folder(options)
    app, content = bundle.build()
    with locked(folder) as state:
        is_new = app.hash != state.app.hash
        state = state.model_copy(update={"app": app, "versions": needed_versions()})
        write_app(state, content, folder)
        write_server_files(state, folder, folder)
        for site in state.sites:
            write_invitation(state, folder, site)
        write_state(folder, state)
    print(f"the app is {app.file}{'' if is_new else ', as before'}")
    print(
        f"Send {inside(folder / 'invitations')}/SITE.zip to each site, which joins again with it."
    )
    return 0


def _folder(options: argparse.Namespace) -> Path:
    return find_folder(options.folder, STATE, "consortium init")


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("consortium", __doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, function: Callable[[argparse.Namespace], int], text: str):
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        if name != "init":
            sub.add_argument("--folder", type=Path, help="the consortium's folder")
        return sub

    made = command("init", init, "make the server's kit and the invitations")
    made.add_argument("settings", type=Path, metavar="consortium.yaml")
    made.add_argument("-o", "--folder", type=Path, help="where to make it (default: its name)")
    command("add-site", add_site, "invite one more site").add_argument("name", metavar="NAME")
    admitted = command("approve", approve, "admit a site, by the line that it has sent")
    admitted.add_argument("key_line", nargs="+", metavar="KEYLINE")
    admitted.add_argument("--yes", action="store_true", help="the digits have been compared")
    started = command("run", run, "start a run and follow it; Ctrl-C ends only the following")
    started.add_argument("config", type=Path, metavar="CONFIG")
    started.add_argument("overrides", nargs="*", metavar="key=value")
    started.add_argument("--detach", action="store_true", help="do not follow it")
    command("status", status, "show each site, the run, and what needs attention")
    command("revoke", revoke, "admit a site no longer").add_argument("name", metavar="NAME")
    command("renew", renew, "make new certificates for the server")
    command("upgrade", upgrade, "take the app as it is now, and write new invitations")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    return answer(_parser(), arguments)
