"""A compiler at work and what it said, in Dagster's UI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import dagster as dg

from assets.product import Product
from assets.quantized_har import said_of
from assets.toolchain.dfc_process import Listener

SHOWN_LINES: Final = 60
"""Of a log, in the event log, which keeps every byte; the whole of it is in the product's description."""


class RunLog(Listener):
    """Puts what a compiler prints into the log of the run, while it works."""

    def __init__(self, log: dg.DagsterLogManager) -> None:
        self.log = log

    def line(self, verb: str, text: str) -> None:
        """The compiler printed a line."""
        self.log.info(f"{verb}: {text}")

    def fact(self, verb: str, name: str, value: str) -> None:
        """It told something worth keeping."""
        self.log.info(f"{verb}: {name} is {value}")


def said(product: Product) -> dict[str, Any]:
    """What a toolchain said about how a product was made; nothing of the emulator's."""
    facts: Mapping[str, str] = said_of(product)
    shown: dict[str, Any] = {name: facts[name] for name in sorted(facts) if name not in ("log", "script")}
    if "script" in facts:
        shown["script"] = dg.MetadataValue.md(f"```\n{facts['script']}```")
    if "log" in facts:
        lines = facts["log"].splitlines()
        shown["log"] = dg.MetadataValue.md("\n".join(["```", *lines[-SHOWN_LINES:], "```"]))
    return shown
