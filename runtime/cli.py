"""``releasectl``: what is in a store, what a release is, and whether every byte is in place."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from runtime.config import DEFAULT_STORE
from runtime.contract.audit import pruned_release, signature_of, store_problems
from runtime.contract.channels import CHANNELS, UNMOVED, ChannelEntry, SignedEntry, as_document
from runtime.contract.document import to_json
from runtime.contract.errors import (
    PipelineError,
    ReleaseNotFoundError,
    StoreError,
    WindowError,
    collect_problems,
    store_errors,
)
from runtime.contract.evidence import evidence_kind
from runtime.contract.files import is_directory
from runtime.contract.release import manifest_bytes
from runtime.contract.store import Release, ReleaseStore, open_release
from runtime.contract.store_reader import SHORTEST_PREFIX
from runtime.contract.trust import DEFAULT_TRUST_ROOT, Trust
from runtime.inspect_file import FileMissingError, inspect_file
from runtime.parity_text import parity_documents, parity_json, parity_lines
from runtime.release_diff import diff_releases
from runtime.release_text import Standing, release_lines
from runtime.releasectl_list import channel_entries, check_store, list_releases
from runtime.selftest import as_report, self_test
from runtime.store_commands import add_commands

OK: Final = 0
PROBLEMS: Final = 1
USAGE: Final = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 where all is well, 1 where something in the store is wrong, 2 for a wrong command line or
        something that is not there.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without µ or ² shows them escaped, as stderr does by itself.
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(argv)
    place = options.store or Path(os.environ.get("RELEASE_STORE") or DEFAULT_STORE)
    try:
        code = _run(place, options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has seen enough; without this Python complains again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PROBLEMS
    return code


def _run(place: Path, options: argparse.Namespace) -> int:
    try:
        needs_none = options.command in (_inspect, _selftest) or getattr(options, "what", "") == "init"
        trust = None if needs_none else _trust()
        code: int = options.command(ReleaseStore(place, trust), options)
    except PipelineError as error:
        if options.json:
            _print_json(options.failure(error))
            sys.stdout.flush()
        print(f"releasectl: {error}", file=sys.stderr)
        usage = ReleaseNotFoundError | WindowError | FileMissingError
        return USAGE if isinstance(error, usage) else PROBLEMS
    return code


def _trust() -> Trust | None:
    """The root of trust; None where none was named and this is no place with development keys."""
    named = os.environ.get("TRUST_ROOT")
    path = Path(named or DEFAULT_TRUST_ROOT)
    return Trust.load(path) if named or path.exists() else None


def _as_error(error: PipelineError) -> dict[str, object]:
    """What ``list``, ``show``, ``diff`` and ``inspect`` print with ``--json`` in place of an answer."""
    return {"error": error.code, "message": str(error)}


def _as_report(error: PipelineError) -> dict[str, object]:
    """What ``verify --json`` prints where it could not begin."""
    return {"ok": False, "checked": [], "problems": [str(error)]}


def _parser() -> argparse.ArgumentParser:
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print JSON")
    common = argparse.ArgumentParser(add_help=False, parents=[output])
    common.add_argument(
        "--store", type=Path, metavar="DIR", help="default: RELEASE_STORE or artifacts/releases"
    )
    parser = argparse.ArgumentParser(prog="releasectl", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", parents=[common], help="every release of the store")
    listing.set_defaults(command=list_releases, failure=_as_error, show=_print)
    show = commands.add_parser("show", parents=[common], help="one release, in full")
    show.add_argument("release", metavar="ID", help="its id, or the first 6 digits or more")
    show.add_argument("--parity", action="store_true", help="its parity instead: verdict, metrics, layers")
    show.set_defaults(command=_show, failure=_as_error)
    diff = commands.add_parser("diff", parents=[common], help="what changed between two releases")
    for name in ("a", "b"):
        diff.add_argument(name, metavar=name.upper(), help="its id, or the first 6 digits or more")
    diff.set_defaults(command=_diff, failure=_as_error)
    verify = commands.add_parser("verify", parents=[common], help="compare every byte with its digest")
    verify.add_argument("release", metavar="ID", nargs="?", help="default: the whole store")
    verify.set_defaults(command=_verify, failure=_as_report)
    selftest = commands.add_parser("selftest", parents=[common], help="does a release run here as it should")
    selftest.add_argument(
        "release", metavar="RELEASE", help="an id, its first digits, or a release directory"
    )
    selftest.add_argument("--windows", type=Path, metavar="NPZ", help="`windows` to run besides")
    selftest.add_argument("--latents", type=Path, metavar="NPZ", help="where their `latents` go")
    selftest.set_defaults(command=_selftest, failure=as_report, wrong=selftest.error)
    add_commands(commands, [common], _as_error, _print)
    inspect = commands.add_parser("inspect", parents=[output], help="what a HEF or a HAR is; needs no store")
    inspect.add_argument("file", metavar="FILE", type=Path, help="a file of Hailo's compiler")
    inspect.set_defaults(command=_inspect, failure=_as_error, store=None)
    return parser


def _inspect(_: ReleaseStore, options: argparse.Namespace) -> int:
    found = inspect_file(options.file)
    _print(options, found.document, lambda: found.lines)
    return OK


def _print_bad_channels(bad: Sequence[str]) -> None:
    sys.stdout.flush()
    for problem in bad:
        print(f"releasectl: {problem}", file=sys.stderr)


def _show(store: ReleaseStore, options: argparse.Namespace) -> int:
    check_store(store.root)
    release = pruned_release(store, options.release) or store.open(store.named(options.release))
    if options.parity:
        documents = parity_documents(store, release)
        _print(options, parity_json(documents), lambda: parity_lines(documents))
        return OK
    standing, bad = _standing(store, release)
    evidence = store.evidence(release.id)
    shown = {
        "release": release.id,
        "signature": standing.signature,
        "marked_bad": [as_document(signed) for signed in standing.marks],
        "history": [as_document(signed) for signed in standing.history],
        "history_problems": standing.broken,
        "channels": [json.loads(to_json(entry)) for entry in standing.entries],
        "evidence": [{"kind": evidence_kind(path), "path": str(path)} for path in evidence],
        **json.loads(manifest_bytes(release.manifest)),
    }
    _print(options, shown, lambda: release_lines(release, standing, evidence))
    _print_bad_channels(bad)
    return PROBLEMS if bad else OK


def _moved(head: ChannelEntry, about: Sequence[SignedEntry]) -> ChannelEntry:
    """The entry since which a channel names what it names: a mark, or another signature, moves nothing."""
    place = head.target, head.channel, head.release
    for signed in reversed(about):
        entry = signed.entry
        if (entry.target, entry.channel, entry.release) == place and entry.action not in UNMOVED:
            return entry
    return head


def _standing(store: ReleaseStore, release: Release) -> tuple[Standing, list[str]]:
    """Where a release stands, and a sentence for each channel that cannot be read or does not hold."""
    everywhere, bad = channel_entries(store)
    broken: list[str] = []
    about: list[SignedEntry] = []
    for channel in CHANNELS if store.has_trust else ():
        target = release.manifest.target
        with collect_problems(broken):
            about += [
                signed
                for signed in store.chain(target, channel)
                if release.id in (signed.entry.release, signed.entry.previous, signed.entry.marked)
            ]
            store.whole_history(target, channel)
    standing = Standing(
        signature=signature_of(store, release.id),
        entries=[_moved(entry, about) for entry in everywhere if entry.release == release.id],
        history=about,
        broken=broken,
        judged=store.has_trust,
    )
    return standing, [*bad, *(problem for problem in broken if problem not in bad)]


def _diff(store: ReleaseStore, options: argparse.Namespace) -> int:
    check_store(store.root)
    a, b = (store.open(store.named(name)) for name in (options.a, options.b))
    found = diff_releases(a, b)
    _print(options, found.document(), found.lines)
    return OK


def _verify(store: ReleaseStore, options: argparse.Namespace) -> int:
    check_store(store.root)
    identifier = store.named(options.release) if options.release else None
    problems = store_problems(store, identifier)
    # Where the releases cannot be listed, that is among the problems.
    checked = [identifier] if identifier else _identifiers(store)
    if options.json:
        _print_json({"ok": not problems, "checked": checked, "problems": problems})
    else:
        for problem in problems:
            print(problem)
        count = f"{len(checked)} release{'' if len(checked) == 1 else 's'}"
        print(f"{count} checked, {len(problems)} problem{'' if len(problems) == 1 else 's'}")
    return PROBLEMS if problems else OK


def _identifiers(store: ReleaseStore) -> list[str]:
    try:
        return store.identifiers()
    except StoreError:
        return []


def _selftest(store: ReleaseStore, options: argparse.Namespace) -> int:
    if (options.windows is None) != (options.latents is None):
        options.wrong("--windows and --latents go together")
    folder = os.environ.get("HAILO_LOCK_DIR")
    found = self_test(
        _release_named(store, options.release),
        options.windows,
        options.latents,
        Path(folder) if folder else None,
    )
    _print(options, found.document(), found.lines)
    return OK if found.ok else PROBLEMS


def _release_named(store: ReleaseStore, name: str) -> Release:
    """What has the form of an id is one, of the store; anything else is a path, and needs no store."""
    if re.fullmatch(rf"[0-9a-fA-F]{{{SHORTEST_PREFIX},64}}", name):
        check_store(store.root)
        return store.open(store.named(name))
    path = Path(name)
    with store_errors(path):
        there = is_directory(path)
    if not there:
        raise ReleaseNotFoundError(
            "is no release directory", where=name, hint=f"an id has at least {SHORTEST_PREFIX} digits"
        )
    return open_release(path)


def _print(options: argparse.Namespace, value: object, lines: Callable[[], Sequence[str]]) -> None:
    if options.json:
        _print_json(value)
    else:
        print("\n".join(lines()))


def _print_json(value: object) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        # JSON has escapes of its own; Python's would break it.
        text = json.dumps(value, indent=1)
    print(text)


if __name__ == "__main__":
    sys.exit(main())
