"""A site of a consortium: joins with an invitation, checks itself, runs, and says how it is.

    federated-yolo site join INVITATION   make this site's key and folder; prints a line to send
    federated-yolo site check             what can keep it from taking part; changes nothing
    federated-yolo site start             run it until Ctrl-C, or as the unit or container does
    federated-yolo site status            does it run, round, own scores, last error, logs
    federated-yolo site log [-f]          what it has done

The private key never leaves the site. `site join` with a newer invitation of the same consortium
keeps the key and the settings. Commands after join work in the site's folder or beside it;
--folder names another one. docs/deployment.md explains it all.

Exit codes: 0 done, or ended by Ctrl-C or SIGTERM; 1 something has to be corrected; 2 wrong input.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from federated_yolo.client.journal import LOG
from federated_yolo.common.command_line import answer, inside, parser_of
from federated_yolo.common.errors import InputError
from federated_yolo.common.files import at_home
from federated_yolo.consortium.invitation import SITE_SETTINGS, read_invitation
from federated_yolo.sites.folder import find_site, read_settings
from federated_yolo.sites.join import default_folder
from federated_yolo.sites.join import join as join_consortium
from federated_yolo.sites.status import log_lines, status_lines


def join(options: argparse.Namespace) -> int:
    """Make a site's folder, and print the line for the operator."""
    terms = read_invitation(options.invitation).terms
    folder = (options.folder or default_folder(terms)).absolute()
    data = _data(options.data, folder / SITE_SETTINGS)
    site = join_consortium(options.invitation, folder, data)
    key = site.public_key
    print(f"{terms.site} has joined {terms.consortium}; its files are in {inside(folder)}\n")
    print("1. Send this line to the operator. It is no secret; the key itself stays here.\n")
    print(f"{key.line}\n")
    print("2. Read these digits to each other, by a telephone number that you know to be right:\n")
    print(f"    {key.spoken}\n\n   ({key.fingerprint})\n")
    print(f"3. {folder / 'start.sh'} checks the site and runs it.")
    if not read_settings(folder / SITE_SETTINGS).get("data"):
        print(f"   Before that, write where the data is into {folder / SITE_SETTINGS}.")
    return 0


def _data(given: Path | None, settings: Path) -> str:
    """Return where the data is: as given, as in site.yaml (empty), or as somebody answers."""
    if given is None:
        if settings.is_file() and read_settings(settings).get("data"):
            return ""
        if not sys.stdin.isatty():
            return ""
        text = input("Where is the data (a data.yaml, a folder or an export; empty: later)? ")
        if not text.strip():
            return ""
        given = Path(at_home(text.strip()))
    path = given.absolute()
    if not path.exists():
        raise InputError(f"data: {path}: no such file or folder")
    return str(path)


def check(options: argparse.Namespace) -> int:
    """Look at everything; exit code 1 if something would keep the site from taking part."""
    from federated_yolo.sites.check import all_checks, show

    console = Console(file=sys.stdout, highlight=False)
    return 1 if show(console, all_checks(find_site(options.folder))) else 0


def start(options: argparse.Namespace) -> int:
    """Run the site's SuperNode until it is interrupted."""
    from federated_yolo.sites.supernode import run_site

    return run_site(find_site(options.folder), lambda text: print(text, flush=True))


def status(options: argparse.Namespace) -> int:
    """Say how the site is."""
    for label, text in status_lines(find_site(options.folder)):
        print(f"{label:<11} {text}")
    return 0


def log(options: argparse.Namespace) -> int:
    """Show the site's log."""
    path = find_site(options.folder).work_folder() / LOG
    if not path.exists() and not options.follow:
        print(f"{path}: nothing yet")
    try:
        for line in log_lines(path, follow=options.follow):
            print(line, flush=True)
    except KeyboardInterrupt:  # the way to end -f
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of("site", __doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, function: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(function=function)
        sub.add_argument("--folder", type=Path, help="the site's folder")
        return sub

    joined = command("join", join, "join with an invitation, or take a newer one")
    joined.add_argument("invitation", type=Path, help="the .zip, or the folder it unpacks to")
    joined.add_argument("--data", type=Path, help="a data.yaml, a classifier's folder, an export")
    command("check", check, "look at data, versions, app, disk, GPU, server, clock and key")
    command("start", start, "run the site until Ctrl-C")
    command("status", status, "say how the site is")
    shown = command("log", log, "show what the site has done")
    shown.add_argument("-f", "--follow", action="store_true", help="and what it does, until Ctrl-C")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    return answer(_parser(), arguments)
