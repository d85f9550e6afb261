"""What ``deploy/`` asks Prometheus: the dashboard's queries, the recorded ones, and what alerts look at."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import yaml

from tests.simulators import ROOT

PROMETHEUS: Final = ROOT / "deploy" / "prometheus"
DASHBOARD: Final = ROOT / "deploy" / "grafana" / "dashboards" / "hailo-inference.json"
JOB: Final = 'job="hailo-inference"'
SELECTOR: Final = re.compile(r"\b((?:hailo|http|process)_[a-z0-9_]+|up)\b(\{[^}]*\})?")
"""A metric that a runtime exports, or ``up``, and what is asked of its labels."""


def rules() -> list[dict[str, Any]]:
    """Every recorded query and every alert."""
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """Name to alert."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def records() -> dict[str, str]:
    """Name of what is recorded to its query."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def selectors(expression: str) -> list[str]:
    """What an expression selects, with its labels."""
    return [match[0] for match in SELECTOR.finditer(expression)]


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, without the rows above them."""
    return [each for each in json.loads(DASHBOARD.read_text())["panels"] if each["type"] != "row"]


def panel_queries() -> dict[str, list[str]]:
    """A panel's title to its queries, as Grafana writes them."""
    return {each["title"]: [target["expr"] for target in each["targets"]] for each in panels()}


def as_grafana_asks(expression: str) -> str:
    """A panel's query with its variables filled in: every Pi, and a minute."""
    return expression.replace("$instance", ".*").replace("$__rate_interval", "1m")


def documents(folder: Path) -> dict[Path, Any]:
    """Every YAML file below a folder, read."""
    return {path: yaml.safe_load(path.read_text()) for path in sorted(folder.rglob("*.y*ml"))}
