"""``releasectl``'s verbs that move, sign, carry and remove: what people answer for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from runtime.accept import add_acceptance
from runtime.contract.channel_log import Head
from runtime.contract.channels import CHANNELS, ChannelEntry, as_document
from runtime.contract.errors import ChannelMovedError, ConfigError, ReleaseNotFoundError
from runtime.contract.keys import PrivateKey, load_key
from runtime.contract.marks import markable
from runtime.contract.portable import export, import_file
from runtime.contract.promotion import (
    UNSEEN,
    Decision,
    Plan,
    mark_bad,
    plan_promotion,
    plan_roll_back,
    promote,
    roll_back,
)
from runtime.contract.pruning import prune, pruned_text
from runtime.contract.release import TARGETS
from runtime.contract.release_directory import Release
from runtime.contract.requests import MoveRequest, drop_request, pending_requests, request_named
from runtime.contract.store import ReleaseStore
from runtime.contract.store_reader import SHORTEST_SIGNED
from runtime.key_commands import NotConfirmedError, key_command, passphrase, user_name
from runtime.pull_command import add_pull
from runtime.release_text import entry_line

KEY_VARIABLES: Final = {"canary": "CANARY_KEY_FILE", "stable": "RELEASE_KEY_FILE"}
Print = Callable[[argparse.Namespace, object, Callable[[], Sequence[str]]], None]


def add_commands(commands: Any, parents: list[argparse.ArgumentParser], failure: object, show: Print) -> None:
    """Add the verbs to ``releasectl``.

    Args:
        commands: Where verbs are added.
        parents: Parsers of ``--store`` and ``--json``.
        failure: What ``--json`` prints for an error.
        show: Prints an answer.
    """

    def verb(name: str, text: str, command: Callable[..., int]) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, parents=parents, help=text)
        parser.set_defaults(command=command, failure=failure, show=show)
        return parser

    add_acceptance(verb)
    add_pull(verb)
    moved = verb("promote", "let stable take a canary's release", _promote)
    moved.add_argument("release", metavar="ID", nargs="?", help="its id, or the first 6 digits or more")
    moved.add_argument("--request", metavar="NAME", help="sign a pending request instead")
    _add_decision(moved)
    back = verb("rollback", "let a channel return to an earlier release", _roll_back)
    back.add_argument("target", choices=TARGETS)
    back.add_argument("channel", choices=CHANNELS)
    back.add_argument("--to", metavar="ID", help="default: the newest that is not marked bad")
    _add_decision(back)
    bad = verb("mark-bad", "say that a release is never to be promoted", _mark_bad)
    bad.add_argument("release", metavar="ID")
    bad.add_argument("--channel", choices=CHANNELS, default="stable", help="whose history says it")
    bad.add_argument("--target", choices=TARGETS, help="whose it is, where nothing that is left of it says")
    _add_decision(bad, force=False)
    told = verb("history", "every move of a channel", _history)
    told.add_argument("target", choices=TARGETS, nargs="?")
    told.add_argument("channel", choices=CHANNELS, nargs="?")
    told.add_argument("--at", type=int, metavar="N", help="what it named after entry N")
    asked = verb("requests", "moves that wait for a signature", _requests)
    asked.add_argument("--drop", metavar="NAME", help="take one away unsigned")
    fewer = verb("prune", "remove releases that no channel needs", _prune)
    fewer.add_argument("--keep", type=int, required=True, metavar="N", help="last entries of each channel")
    fewer.add_argument("--dry-run", action="store_true", help="say only what would be removed")
    fewer.add_argument("--yes", action="store_true", help="do not ask, as without a terminal")
    out = verb("export", "one file that carries a release elsewhere", _export)
    out.add_argument("release", metavar="ID")
    out.add_argument("file", metavar="FILE", type=Path)
    out.add_argument("--force", action="store_true", help="write over FILE where it is there")
    arrived = verb("import", "take a release out of such a file, verified", _import)
    arrived.add_argument("file", metavar="FILE", type=Path)
    keys = verb("keys", "signing keys: init, show, rotate, resign", key_command)
    keys.add_argument("what", choices=("init", "show", "rotate", "resign"))
    keys.add_argument(
        "folder", metavar="DIR", type=Path, nargs="?", help="init: made; rotate: holds root.pem"
    )
    keys.add_argument("--holder", choices=("build", "release-manager", "root"), help="rotate: whose key")
    keys.add_argument("--by", metavar="NAME", help="who rotates, for the history; default: the user's name")
    keys.add_argument("--new", type=Path, metavar="FILE", help="the new key: made, or read by resign")


def _add_decision(parser: argparse.ArgumentParser, *, force: bool = True) -> None:
    """Who, why, with which key, without being asked, against advice."""
    parser.add_argument("--by", metavar="NAME", help="who answers; default, but for a request: the user")
    parser.add_argument("--reason", help="why, in one line")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the signing key; default: see docs/keys.md")
    parser.add_argument("--yes", action="store_true", help="do not ask before signing")
    if force:
        parser.add_argument("--force", action="store_true", help="against advice; shown and recorded")


def _promote(store: ReleaseStore, options: argparse.Namespace) -> int:
    if options.request:
        return _sign_request(store, options)
    if not options.release:
        raise ReleaseNotFoundError("names no release", where="promote", hint="an ID, or --request NAME")
    identifier = store.named(options.release, SHORTEST_SIGNED)
    target = store.open(identifier).manifest.target
    plan = plan_promotion(store, target, identifier)
    return _moved(options, _carry_out(store, options, plan, _decision(options)))


def _sign_request(store: ReleaseStore, options: argparse.Namespace) -> int:
    name, request = request_named(store, options.request)
    target, channel = request.target, request.channel
    head = store.present(target, channel)
    _check_seen(request, head)
    if request.action == "promote":
        plan = plan_promotion(store, target, request.release, seen=head)
    else:
        plan = plan_roll_back(store, target, channel, to=request.release or None, seen=head or UNSEEN)
    asked = ("  asked   to force it: takes your own --force",) if request.force else ()
    entry = _carry_out(store, options, plan, _of_request(options, request), asked)
    drop_request(store, name)
    return _moved(options, entry)


def _check_seen(request: MoveRequest, head: Head | None) -> None:
    """Refuse a request that was written about another state of the channel."""
    if (head.signed.digest if head else "") != request.seen:
        who = f"{head.entry.actor}: {head.entry.reason}" if head else "it names nothing"
        raise ChannelMovedError(
            f"moved since this was asked for: {who}",
            where=f"{request.target}/{request.channel}",
            hint="`releasectl requests --drop` takes it away; ask again",
        )


def _roll_back(store: ReleaseStore, options: argparse.Namespace) -> int:
    to = store.named(options.to, SHORTEST_SIGNED) if options.to else None
    plan = plan_roll_back(store, options.target, options.channel, to=to)
    return _moved(options, _carry_out(store, options, plan, _decision(options)))


def _carry_out(
    store: ReleaseStore,
    options: argparse.Namespace,
    plan: Plan,
    decision: Decision,
    asked: Sequence[str] = (),
) -> ChannelEntry:
    """Show a plan, ask, and make that move and no other: what changed meanwhile is refused."""
    plan.check(decision)
    verb = plan.action.replace("_", " ")
    _confirm(
        options,
        [
            f"{verb} {plan.target}/{plan.channel} to {plan.identifier or 'nothing'}",
            *(_release_lines(plan.release) if plan.release else ()),
            _now_line(plan.head),
            *(f"  passed over  {each}" for each in plan.skipped),
            *(f"  AGAINST {each}" for each in plan.advice),
            *asked,
            *_decision_lines(store, decision),
        ],
    )
    key = _key(options, plan.channel)
    if plan.action == "promote":
        return promote(store, plan.target, plan.identifier, decision, key, seen=plan.head)
    to = plan.identifier
    return roll_back(store, plan.target, plan.channel, decision, key, to=to, seen=plan.head)


def _mark_bad(store: ReleaseStore, options: argparse.Namespace) -> int:
    marked = markable(store, options.release, options.target)
    target, channel = marked.target, options.channel
    head = store.head(target, channel)
    decision = _decision(options)
    _confirm(
        options,
        [
            f"mark {marked.identifier} bad, in the history of {target}/{channel}",
            *(_release_lines(marked.release) if marked.release else ()),
            *([f"  but     {marked.problem}"] if marked.problem else ()),
            _now_line(head),
            *_decision_lines(store, decision),
        ],
    )
    key = _key(options, channel)
    entry = mark_bad(store, marked.identifier, channel, decision, key, target=target, seen=head)
    return _moved(options, entry)


def _release_lines(release: Release) -> list[str]:
    model, parity = release.manifest.model, release.manifest.parity
    verdict = "passed" if parity.passed else "FAILED"
    return [
        f"  model   {model.name} {model.version}",
        f"  parity  {verdict}, {parity.provenance}, {parity.windows} windows",
    ]


def _now_line(head: Head | None) -> str:
    if head is None:
        return "  now     the channel never named anything"
    entry = head.entry
    now = f"  now     {entry.release or 'nothing'}, entry {entry.sequence}, {entry.actor}: {entry.reason}"
    return "\n".join([now, *(f"  REFUSED {sentence}" for sentence in head.refused[:5])])


def _decision_lines(store: ReleaseStore, decision: Decision) -> list[str]:
    force = ["  forced  against advice, which is recorded"] if decision.force else []
    return [
        f"  by      {decision.actor}",
        f"  reason  {decision.reason}",
        *force,
        f"  signed with {store.trust.root.kind}",
    ]


def _decision(options: argparse.Namespace) -> Decision:
    return Decision(
        actor=options.by or user_name(),
        reason=options.reason or "",
        force=getattr(options, "force", False),
    )


def _of_request(options: argparse.Namespace, request: MoveRequest) -> Decision:
    """The signer's decision. A request names whoever its writer liked: it is told as the request's word only.

    Raises:
        ConfigError: The signer is not named. The user's name will not do here: beside a request's
            `approved_by` it would pass for a person's, and in a container it is root.
    """
    if not options.by:
        raise ConfigError(
            f"nobody vouches for {request.approved_by!r}, whom the request names: who signs?",
            where="--by",
            hint="--by NAME says who signs and answers for it; the request's word goes into the reason",
        )
    return Decision(
        actor=options.by,
        reason=options.reason or f"{request.reason} (requested by {request.approved_by}, {request.origin})",
        force=options.force,  # nobody vouched for what a request says
    )


def _confirm(options: argparse.Namespace, lines: Sequence[str]) -> None:
    if options.yes:
        return
    for line in lines:
        # A release that is to be marked bad may say anything: nothing that a terminal obeys.
        print("".join(each if each.isprintable() else "?" for each in line), file=sys.stderr)
    if not sys.stdin.isatty():
        raise NotConfirmedError("nobody was there to confirm it", hint="in a terminal, or with --yes")
    if not _said_yes("sign? [y/N] "):
        raise NotConfirmedError("was not confirmed", hint="nothing was changed")


def _said_yes(question: str) -> bool:
    # Not input's own prompt, which would come between the lines of --json.
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _key(options: argparse.Namespace, channel: str) -> PrivateKey:
    variable = KEY_VARIABLES[channel]
    named = options.key or os.environ.get(variable)
    if not named:
        raise ConfigError(
            f"no key to sign for {channel}", where=variable, hint="--key FILE, or set it: docs/keys.md"
        )
    return load_key(Path(named), passphrase)


def _moved(options: argparse.Namespace, entry: ChannelEntry) -> int:
    options.show(options, _entry_document(entry), lambda: [entry_line(entry)])
    return 0


def _entry_document(entry: ChannelEntry) -> dict[str, object]:
    return {name: getattr(entry, name) for name in ("target", "channel", "sequence", "action", "release")} | {
        "previous": entry.previous,
        "actor": entry.actor,
        "reason": entry.reason,
        "at": entry.at,
        "marked": entry.marked,
        "overridden": list(entry.overridden),
    }


def _history(store: ReleaseStore, options: argparse.Namespace) -> int:
    places = [
        (target, channel)
        for target in ([options.target] if options.target else TARGETS)
        for channel in ([options.channel] if options.channel else CHANNELS)
    ]
    found = [signed for place in places for signed in store.chain(*place)]
    if options.at is not None:
        found = [signed for signed in found if signed.entry.sequence == options.at]
        if not found:
            raise ReleaseNotFoundError(f"no entry {options.at}", hint="`releasectl history` shows all")
    problems = [problem for place in places for problem in store.history_problems(*place)]
    options.show(
        options,
        [as_document(signed) for signed in found],
        lambda: (
            [entry_line(signed.entry, signed.keyids) for signed in found] or ["no channel was ever moved"]
        ),
    )
    sys.stdout.flush()
    for problem in problems:
        print(f"releasectl: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _requests(store: ReleaseStore, options: argparse.Namespace) -> int:
    if options.drop:
        drop_request(store, request_named(store, options.drop)[0])
    pending = pending_requests(store)
    shown = [
        {"name": name, **{k: getattr(each, k) for k in each.__dataclass_fields__}}
        for name, each in pending.items()
    ]

    def lines() -> list[str]:
        return [
            f"{name[:12]}  {each.at}  {each.action} {each.target}/{each.channel} "
            f"{each.release[:12] or '-'}  {each.approved_by}: {each.reason}"
            for name, each in pending.items()
        ] or ["no move waits for a signature"]

    options.show(options, shown, lines)
    return 0


def _prune(store: ReleaseStore, options: argparse.Namespace) -> int:
    if not options.yes and not options.dry_run and sys.stdin.isatty():
        planned = prune(store, options.keep, dry_run=True)
        print("\n".join(pruned_text(planned, dry_run=True)), file=sys.stderr)
        if (planned.removed or planned.leftovers) and not _said_yes("remove? [y/N] "):
            raise NotConfirmedError("was not confirmed", hint="nothing was removed")
    plan = prune(store, options.keep, dry_run=options.dry_run)
    document = {
        "dry_run": options.dry_run,
        "removed": list(plan.removed),
        "bytes": plan.size,
        "kept": plan.kept,
        "leftovers": [str(path) for path in plan.leftovers],
    }
    options.show(options, document, lambda: list(pruned_text(plan, dry_run=options.dry_run)))
    return 0


def _export(store: ReleaseStore, options: argparse.Namespace) -> int:
    made = export(store, store.named(options.release), options.file, force=options.force)
    name, size = made.release.id, options.file.stat().st_size
    document = {"release": name, "file": str(options.file), "bytes": size, "left_out": list(made.left_out)}
    told = [f"{name}  {size} bytes  {options.file}", *(f"left out: {each}" for each in made.left_out)]
    options.show(options, document, lambda: told)
    return 0


def _import(store: ReleaseStore, options: argparse.Namespace) -> int:
    found = import_file(store, options.file)
    document = {"release": found.release.id, "entries": found.entries, "roots": found.roots}

    def lines() -> list[str]:
        moves = ", ".join(f"{place}: {count} new moves" for place, count in found.entries.items() if count)
        return [f"{found.release.id}  verified", moves or "no channel moved"]

    options.show(options, document, lines)
    return 0
