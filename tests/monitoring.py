"""What ``deploy/`` asks Prometheus: the dashboard's queries, the recorded ones, and what alerts look at.

And a Prometheus to ask, with the files of ``deploy/``.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from tests.requirements import program
from tests.simulators import ROOT, free_port, wait_for

JOB_NAME: Final = "hailo-inference"
PROMETHEUS: Final = ROOT / "deploy" / "prometheus"
DASHBOARD: Final = ROOT / "deploy" / "grafana" / "dashboards" / "hailo-inference.json"
JOB: Final = f'job="{JOB_NAME}"'
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


@contextlib.contextmanager
def prometheus(targets: Sequence[str], folder: Path) -> Iterator[str]:
    """A real one with configuration and rules of ``deploy/``: what differs is whom it asks, and how often.

    Args:
        targets: Address and port of each runtime, in the place of the configuration's own.
        folder: Where its data go; is made.

    Yields:
        Its address. It looks each second.
    """
    folder.mkdir()
    settings = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(PROMETHEUS / name) for name in settings["rule_files"]]
    (job,) = settings["scrape_configs"]
    job["static_configs"] = [{"targets": list(targets)}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    url = f"127.0.0.1:{free_port()}"
    command = [
        str(program("prometheus")),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address={url}",
    ]
    url = f"http://{url}"
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:

            def ready() -> bool:
                assert process.poll() is None, (folder / "log").read_text()
                with contextlib.suppress(httpx.TransportError):
                    return httpx.get(f"{url}/-/ready").status_code == 200
                return False

            wait_for(ready, "Prometheus", 60)
            yield url
        finally:
            process.terminate()


def asked(url: str, query: str) -> list[Any]:
    """What a Prometheus finds: one entry a series, with ``metric`` and ``value``."""
    answer = httpx.get(f"{url}/api/v1/query", params={"query": query}, timeout=30).json()
    assert answer["status"] == "success", (query, answer)
    found: list[Any] = answer["data"]["result"]
    return found
