"""A file system that keeps only what was synced, and of the rest whatever a loss of power leaves.

A file's bytes, size and mode are kept from the fsync of that file on; its name from the fsync of the
folder. What was not synced is kept or lost change by change, in any combination: a name may stay
whose bytes are gone. A rename is one change, kept from the fsync of the folder it leads to.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.contract.crash import Call

Tree = dict[str, tuple[int, bytes | None]]
"""Path to mode and bytes; None for a folder."""
ALL: Final[Callable[[int], float]] = lambda _index: 1.0  # noqa: E731
NOTHING: Final[Callable[[int], float]] = lambda _index: 0.0  # noqa: E731


def read_tree(root: Path) -> Tree:
    """What lies below a folder."""
    return {
        str(path.relative_to(root)): (
            path.stat().st_mode & 0o7777,
            None if path.is_dir() else path.read_bytes(),
        )
        for path in sorted(root.rglob("*"))
    }


def write_tree(tree: Tree, root: Path) -> None:
    """Make it below a folder that is not there yet."""
    root.mkdir(parents=True)
    for name, (mode, data) in tree.items():
        path = root / name
        if data is None:
            path.mkdir()
        else:
            path.write_bytes(data)
            path.chmod(mode)


@dataclass
class _Node:
    mode: int
    data: bytearray | None = None
    names: dict[str, int] = field(default_factory=dict)


@dataclass
class _Change:
    """``node``: whose fsync keeps it."""

    node: int
    kind: str
    data: bytes = b""
    number: int = 0
    names: tuple[tuple[int, str, int | None], ...] = ()
    kept: bool = False


class Disk:
    """A folder's files before a log of calls, and what the calls change.

    Args:
        root: The folder; everything in it is on the disk.
    """

    def __init__(self, root: Path) -> None:
        self._made: list[tuple[int, bool]] = []
        self._live: list[dict[str, int]] = []
        self._changes: list[_Change] = []
        self._handles: dict[int, tuple[int, int]] = {}
        self._base = Path("/nowhere")
        self._new(0o755, folder=True)
        for name, (mode, data) in read_tree(root).items():
            path = Path(name)
            node = self._new(mode, folder=data is None)
            parent = self._find(path.parent)
            self._change(_Change(parent, "names", names=((parent, path.name, node),), kept=True))
            if data is not None:
                self._change(_Change(node, "data", data=data, kept=True))

    def _new(self, mode: int, *, folder: bool) -> int:
        self._made.append((mode, folder))
        self._live.append({})
        return len(self._made) - 1

    def _find(self, path: Path) -> int:
        node = 0
        for part in path.parts:
            node = self._live[node][part]
        return node

    def _change(self, change: _Change) -> None:
        self._changes.append(change)
        for folder, name, node in change.names:
            if node is None:
                del self._live[folder][name]
            else:
                self._live[folder][name] = node

    def apply(self, calls: Sequence[Call], base: Path) -> None:
        """Do these calls, whose paths are below ``base``; handles of another log are forgotten."""
        self._base, self._handles = base, {}
        for call in calls:
            if call.done:
                self._do(call)

    def _split(self, path: str) -> tuple[int, str]:
        relative = Path(path).relative_to(self._base)
        return self._find(relative.parent), relative.name

    def _do(self, call: Call) -> None:
        if call.name == "open":
            self._open(call)
        elif call.name in ("rename", "replace", "link"):
            self._two_paths(call)
        elif call.name in ("unlink", "remove", "rmdir"):
            folder, name = self._split(call.path)
            self._change(_Change(folder, "names", names=((folder, name, None),)))
        elif call.name == "mkdir":
            folder, name = self._split(call.path)
            node = self._new(call.number & ~0o022, folder=True)
            self._change(_Change(folder, "names", names=((folder, name, node),)))
        elif call.name == "chmod":
            self._change(
                _Change(self._find(Path(call.path).relative_to(self._base)), "mode", number=call.number)
            )
        else:
            self._descriptor(call)

    def _open(self, call: Call) -> None:
        if not Path(call.path).is_relative_to(self._base):
            assert not call.number & os.O_CREAT, f"{call.path} is outside"
            return
        if Path(call.path) == self._base:
            self._handles[call.handle] = (0, 0)
            return
        folder, name = self._split(call.path)
        node = self._live[folder].get(name)
        if node is None:
            node = self._new(int(call.data, 8) & ~0o022, folder=False)
            self._change(_Change(folder, "names", names=((folder, name, node),)))
        elif call.number & os.O_TRUNC:
            self._change(_Change(node, "size"))
        self._handles[call.handle] = (node, 0)

    def _two_paths(self, call: Call) -> None:
        folder, name = self._split(call.path)
        target, other = self._split(call.to)
        node = self._live[folder][name]
        gone = () if call.name == "link" else ((folder, name, None),)
        self._change(_Change(target, "names", names=(*gone, (target, other, node))))

    def _descriptor(self, call: Call) -> None:
        if call.handle not in self._handles:
            return  # a folder above the store
        node, offset = self._handles[call.handle]
        if call.name in ("fsync", "fdatasync"):
            for change in self._changes:
                change.kept = change.kept or change.node == node
        elif call.name == "write":
            self._handles[call.handle] = (node, offset + len(call.data))
            self._change(_Change(node, "data", data=call.data, number=offset))
        elif call.name == "pwrite":
            self._change(_Change(node, "data", data=call.data, number=call.number))
        else:
            kind = "size" if call.name == "ftruncate" else "mode"
            self._change(_Change(node, kind, number=call.number))

    @property
    def open_changes(self) -> int:
        """How many changes a loss of power may undo."""
        return sum(not change.kept for change in self._changes)

    def after(self, kept: Callable[[int], float]) -> Tree:
        """What is there after a loss of power.

        Args:
            kept: Index among the changes that were not synced to how much of it stays: 0 to 1, which
                for anything but bytes is 1 from a half on.
        """
        nodes = [_Node(mode, None if folder else bytearray()) for mode, folder in self._made]
        index = 0
        for change in self._changes:
            share = 1.0
            if not change.kept:
                share, index = kept(index), index + 1
            _apply(change, share, nodes)
        tree: Tree = {}
        _walk(nodes, 0, "", tree)
        return tree


def _apply(change: _Change, share: float, nodes: list[_Node]) -> None:
    node = nodes[change.node]
    if change.kind == "data":
        data = change.data[: int(len(change.data) * share)]
        if data and node.data is not None:
            node.data.extend(bytes(max(0, change.number - len(node.data))))
            node.data[change.number : change.number + len(data)] = data
    elif share < 0.5:
        return
    elif change.kind == "size" and node.data is not None:
        node.data.extend(bytes(max(0, change.number - len(node.data))))
        del node.data[change.number :]
    elif change.kind == "mode":
        node.mode = change.number
    for folder, name, other in change.names:
        if other is None:
            nodes[folder].names.pop(name, None)
        else:
            nodes[folder].names[name] = other


def _walk(nodes: list[_Node], node: int, path: str, tree: Tree) -> None:
    for name, inner in sorted(nodes[node].names.items()):
        where = f"{path}/{name}" if path else name
        data = nodes[inner].data
        tree[where] = (nodes[inner].mode, None if data is None else bytes(data))
        _walk(nodes, inner, where, tree)
