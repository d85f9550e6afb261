"""What a real `dagster dev` does by itself: webserver, daemon and code server, as `make run` starts them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.contract.verdict import verdicts_on
from tests.chain import SAMPLE_VERSION
from tests.orchestration.graphql import ENDED, Dagster
from tests.orchestration.test_chain import another_normalization
from tests.running import Running, end, start
from tests.simulators import wait_for

pytestmark = [pytest.mark.build, pytest.mark.slow, pytest.mark.timeout(900)]
TICKS = 10
CHAIN = {"onnx_model", "emulator/quantized_har", "emulator/hef", "emulator/parity_report"}


class Pages(ThreadingHTTPServer):
    """A runtime's ``/metrics``, as a test writes it."""

    text = b""


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Pages)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.text)))
        self.end_headers()
        self.wfile.write(self.server.text)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Platform:
    """`make run`, its weights, and a runtime elsewhere that says what a test wants."""

    def __init__(self, running: Running, weights: Path, pages: Pages) -> None:
        self.running, self.weights, self.pages = running, weights, pages
        self.dagster = Dagster(running.ui_url)

    def unfinished(self) -> list[str]:
        return [run["jobName"] for run in self.dagster.runs() if run["status"] not in ENDED]

    def comes_to_rest(self) -> None:
        """Until every watcher has looked, and what they asked for has ended."""

        def rests() -> bool:
            looked = {run["jobName"] for run in self.dagster.runs() if run["status"] == "SUCCESS"}
            return {"observe_weights", "read_windows"} <= looked and not self.unfinished()

        wait_for(rests, "the first looks", 180)

    def drop(self, version: str) -> None:
        """Put a version of the weights into the folder, as a copy does: file by file."""
        source = self.weights.parent / f"new-{version}"
        shutil.copytree(SAMPLE_VERSION, source)
        another_normalization(source)
        shutil.copytree(source, self.weights / "tcn_encoder" / version)

    def looks(self) -> list[dict[str, Any]]:
        """Ticks of the automation that have ended, newest first."""
        ticks = self.dagster.ticks("rebuild_what_changed")
        return [tick for tick in ticks if tick["status"] != "STARTED"]

    def by_themselves(self) -> list[dict[str, Any]]:
        """Runs that the automation asked for, oldest first."""
        key = "dagster/from_automation_condition"
        return [run for run in reversed(self.dagster.runs()) if key in run["tags"]]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    root = tmp_path_factory.mktemp("platform")
    weights = root / "weights"
    shutil.copytree(SAMPLE_VERSION, weights / "tcn_encoder" / "v0.1.0")
    with Pages(("127.0.0.1", 0), Page) as pages:
        thread = threading.Thread(target=pages.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://127.0.0.1:{pages.server_port}"
        running = start(root, WEIGHTS_DIR=str(weights), RUNTIME_URLS=url)
        yield Platform(running, weights, pages)
        end(running)
        pages.shutdown()
        thread.join()


def test_new_weights_become_a_canary_by_themselves_and_then_nothing_happens(platform: Platform) -> None:
    platform.comes_to_rest()
    first = platform.running.canary()
    assert platform.by_themselves() == []  # what was looked at had not changed
    platform.drop("v0.2.0")
    wait_for(lambda: platform.running.canary().id != first.id, "another canary", 240)
    canary = platform.running.canary()
    assert canary.manifest.model.version == "v0.2.0"
    wait_for(lambda: not platform.unfinished(), "the end of the last run", 60)
    chain, release = platform.by_themselves()
    assert (chain["assets"], release["assets"]) == (CHAIN, {"emulator/canary_release"})
    assert (chain["status"], release["status"]) == ("SUCCESS", "SUCCESS")
    told = platform.dagster.assets()["emulator/canary_release"]["assetMaterializations"][0]
    assert told["runId"] == release["runId"]
    # The runtime that follows canary serves it: from weights in a folder to answers, without anybody acting.
    wait_for(
        lambda: httpx.get(f"{platform.running.url}/healthz").json()["release"] == canary.id, "a switch", 30
    )
    runs = [run["runId"] for run in platform.dagster.runs() if run["jobName"] != "judge_canary"]
    seen = len(platform.looks())
    wait_for(lambda: len(platform.looks()) >= min(seen + TICKS, 50), "ten ticks", 400)
    ticks = platform.looks()[:TICKS]
    assert [tick["runIds"] for tick in ticks] == [[]] * TICKS
    assert {tick["status"] for tick in ticks} == {"SKIPPED"}
    assert [run["runId"] for run in platform.dagster.runs() if run["jobName"] != "judge_canary"] == runs
    assert platform.running.canary().id == canary.id


def test_a_canary_that_breaks_is_rolled_back_by_the_daemon(platform: Platform) -> None:
    """The verdict of a real sensor and a real run; canary returns to the release before it."""
    platform.comes_to_rest()
    store, canary = platform.running.store, platform.running.canary()
    before = store.history("emulator", "canary")[-1].previous
    platform.pages.text = (
        f'hailo_golden_replays_total{{channel="canary",release="{canary.id}",result="missed"}} 3\n'
        f'hailo_release_served_seconds{{channel="canary",release="{canary.id}"}} 60\n'
    ).encode()

    def returned() -> bool:
        entry = store.current("emulator", "canary")
        return entry is not None and entry.release == before

    wait_for(returned, "canary to return", 180)
    kept = verdicts_on(store, canary.id)
    assert kept[-1].decision == "roll_back"
    wait_for(lambda: store.is_marked_bad(canary) is not None, "the mark", 30)
    (row,) = [row for row in kept[-1].rows if row.name == "golden windows, served"]
    assert row.outcome == "breached"
    wait_for(
        lambda: any(
            run["jobName"] == "judge_canary" and run["status"] == "SUCCESS" for run in platform.dagster.runs()
        ),
        "the run that judged",
        60,
    )

    def shown() -> bool:
        found = platform.dagster.assets()["emulator/release_channels"]["assetMaterializations"]
        texts = {entry["label"]: entry.get("text") for entry in found[0]["metadataEntries"]} if found else {}
        return texts.get("canary") == (before or "nothing")

    wait_for(shown, "the channels in the UI", 120)
