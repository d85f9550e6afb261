"""What a release manager does in Dagster's UI, in a real browser: build, promote, roll back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import OUTPUT, chromium
from tests.chain import SAMPLE_VERSION
from tests.orchestration.graphql import ENDED, Dagster
from tests.orchestration.test_chain import another_normalization
from tests.running import Running, end, start
from tests.simulators import wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.build,
    pytest.mark.slow,
    pytest.mark.needs("chromium"),
    pytest.mark.timeout(600),
]
PATIENCE = 60_000  # ms


class Desk:
    """A running platform that builds nothing by itself, and a browser in front of it."""

    def __init__(self, running: Running, weights: Path, browser: Browser) -> None:
        self.running, self.weights, self.browser = running, weights, browser
        self.dagster = Dagster(running.ui_url)

    def page(self, path: str) -> Page:
        page = self.browser.new_context(viewport={"width": 1700, "height": 1000}).new_page()
        page.goto(f"{self.running.ui_url}/{path}")
        return page

    def fill_in(self, page: Page, text: str) -> None:
        """Put this into the launchpad's editor in place of what is there."""
        page.locator(".cm-s-dagster, .CodeMirror").first.click()
        page.keyboard.press("Control+A")
        page.keyboard.press("Delete")
        page.keyboard.insert_text(text)

    def launch(self, job: str, text: str, shot: str) -> str:
        """Fill the launchpad in, launch, wait for the run's page to say that it succeeded; the run's id."""
        page = self.page(f"locations/hailo-pipeline/jobs/{job}/playground")
        button = page.get_by_role("button", name="Launch Run")
        button.wait_for(timeout=PATIENCE)
        self.fill_in(page, text)
        page.wait_for_function(
            "() => [...document.querySelectorAll('button')].some("
            "b => b.innerText.includes('Launch Run') && !b.disabled)",
            timeout=PATIENCE,
        )
        page.screenshot(path=OUTPUT / f"{shot}-launchpad.png")
        button.click()
        page.wait_for_url("**/runs/*", timeout=PATIENCE)
        page.get_by_text("Success", exact=True).first.wait_for(timeout=PATIENCE)
        page.screenshot(path=OUTPUT / f"{shot}-run.png")
        run = page.url.rstrip("/").rpartition("/")[2].partition("?")[0]
        page.context.close()
        return run

    def observed(self) -> list[str]:
        """Versions of the weights, newest first."""
        seen = self.dagster.assets()["model_weights"]["assetObservations"]
        return [
            str(entry["text"])
            for each in seen
            for entry in each["metadataEntries"]
            if entry["label"] == "version"
        ]

    def stable(self) -> str:
        entry = self.running.store.current("emulator", "stable")
        return entry.release if entry else ""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    root = tmp_path_factory.mktemp("desk")
    weights = root / "weights"
    shutil.copytree(SAMPLE_VERSION, weights / "tcn_encoder" / "v0.1.0")
    running = start(root, WEIGHTS_DIR=str(weights), BUILDS="never")
    with chromium() as browser:
        yield Desk(running, weights, browser)
    end(running)


def test_what_cannot_be_right_starts_nothing(desk: Desk) -> None:
    page = desk.page("locations/hailo-pipeline/jobs/promote_to_stable/playground")
    page.get_by_text("Missing required config entries").wait_for(timeout=PATIENCE)
    assert page.get_by_role("button", name="Launch Run").is_disabled()
    page.screenshot(path=OUTPUT / "promote-missing.png")
    page.context.close()
    config = {"release": "the newest", "approved_by": "anna", "reason": "why"}
    told = desk.dagster.launch("promote_to_stable", config)
    assert told["__typename"] != "LaunchRunSuccess"
    assert "release 'the newest': String should match pattern" in str(told)
    assert [run for run in desk.dagster.runs() if run["jobName"] == "promote_to_stable"] == []


def test_a_build_is_launched_and_a_canary_promoted_and_rolled_back(desk: Desk) -> None:
    first = desk.running.canary()
    desk.launch(
        "promote_to_stable",
        f"release: {first.id}\napproved_by: anna\nreason: good on the bench\nforce: true\n",
        "promote",
    )
    assert desk.stable() == first.id
    (desk.weights / "tcn_encoder" / "v0.2.0").mkdir()
    shutil.copytree(SAMPLE_VERSION, desk.weights / "tcn_encoder" / "v0.2.0", dirs_exist_ok=True)
    another_normalization(desk.weights / "tcn_encoder" / "v0.2.0")
    wait_for(lambda: "v0.2.0" in desk.observed(), "the observation", 120)
    page = desk.page("locations/hailo-pipeline/jobs/build_canary")
    page.get_by_role("button", name="Materialize all").click(timeout=PATIENCE)

    def built() -> bool:
        (run,) = [run for run in desk.dagster.runs() if run["jobName"] == "build_canary"][:1]
        return bool(run["status"] in ENDED) and desk.running.canary().id != first.id

    wait_for(built, "the build", 240)
    page.context.close()
    second = desk.running.canary()
    assert second.manifest.model.version == "v0.2.0"
    page = desk.page("locations/hailo-pipeline/asset-groups/emulator/lineage")
    page.get_by_text("canary_release", exact=True).first.wait_for(timeout=PATIENCE)
    page.wait_for_timeout(1500)  # what it draws while it zooms
    page.screenshot(path=OUTPUT / "lineage-after-build.png")
    page.context.close()
    desk.launch(
        "promote_to_stable",
        f"release: {second.id[:16]}\napproved_by: bert\nreason: newer weights\nforce: true\n",
        "promote-second",
    )
    assert desk.stable() == second.id
    run = desk.launch(
        "roll_back",
        f"release: {first.id}\napproved_by: anna\nreason: heat\n",
        "roll_back",
    )
    entry = desk.running.store.current("emulator", "stable")
    assert entry is not None
    assert (entry.release, entry.action, entry.actor) == (first.id, "roll_back", "anna")
    assert desk.dagster.run(run)["status"] == "SUCCESS"
    page = desk.page("assets/emulator/stable_release?view=overview")
    page.get_by_text("heat", exact=True).first.wait_for(timeout=PATIENCE)
    page.screenshot(path=OUTPUT / "stable_release.png")
    page.context.close()
    page = desk.page("assets/emulator/release_channels?view=overview")
    page.get_by_text("heat", exact=True).first.wait_for(timeout=2 * PATIENCE)
    assert page.get_by_text(first.id).first.is_visible()
    page.screenshot(path=OUTPUT / "release_channels.png")
    page.context.close()
