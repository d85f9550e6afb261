"""A scripted day: what Pis keep of it is looked at in Dagster's UI, and ends in the next calibration set."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import numpy as np
import pytest

from assets.calibration import parse_sets, read_files
from assets.telemetry import CANDIDATES
from runtime.active_model import ActiveModel
from runtime.config import RuntimeConfig
from runtime.contract.window import FloatArray, Window
from runtime.engines.emulator import EmulatorEngine
from sample import motions
from tests.browser import OUTPUT, chromium
from tests.chain import CALIB_DATA, ROOT
from tests.orchestration.test_ui import entries, rows, value
from tests.running import Running, end, start
from tests.runtime.test_telemetry_server import counted
from tests.simulators import running_server

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [
    pytest.mark.build,
    pytest.mark.slow,
    pytest.mark.needs("chromium"),
    pytest.mark.timeout(600),
]
PATIENCE: Final = 60_000  # ms
OCTETS: Final = {"Content-Type": "application/octet-stream"}
UPSIDE_DOWN: Final = np.array([1, -1, -1] * 3, np.float32)
MOST_OF_A_PI: Final = 60
"""Windows with a reason that one Pi is sent: fewer than its line holds, however quickly they come."""


@dataclass(frozen=True, kw_only=True)
class Day:
    """What devices at three Pis send: float32 (N, 100, 9) each.

    Args:
        ordinary: Of which nothing is kept.
        uncertain: From one motion into another.
        upside_down: By a sensor that somebody mounted the wrong way round.
        wrong: By one whose gyroscope has a dead axis, and one that sends degrees.
    """

    ordinary: FloatArray
    uncertain: FloatArray
    upside_down: FloatArray
    wrong: FloatArray


def scripted(model: ActiveModel) -> Day:
    """A day whose windows are for this model what they are called."""
    drawn, _ = motions.draw_set(12, 105)
    others = drawn[np.random.default_rng(1).permutation(len(drawn))]
    between = np.concatenate([drawn[:, :50], others[:, 50:]], axis=1)
    turned = drawn * UPSIDE_DOWN
    dead, degrees = drawn[:6].copy(), drawn[6:12].copy()
    dead[:, :, 4] = 0
    degrees[:, :, 3:6] = np.float32(400) * np.sin(np.linspace(0, 6, 100, dtype=np.float32))[None, :, None]
    return Day(
        ordinary=chosen(model, drawn, uncertain=False, far=False),
        uncertain=chosen(model, between, uncertain=True, far=False),
        upside_down=chosen(model, turned, uncertain=False, far=True),
        wrong=np.concatenate([dead, degrees]),
    )


def chosen(model: ActiveModel, windows: FloatArray, *, uncertain: bool, far: bool) -> FloatArray:
    """Those that are so, by the runtime's defaults; no more than one Pi is sent."""
    config = RuntimeConfig()

    def fits(window: Window) -> bool:
        latent, scores = model.infer(window)
        second, first = np.sort(scores)[-2:]
        assert model.distance is not None
        return (
            (first - second < config.telemetry_margin) == uncertain
            and (model.distance.squared(latent) > config.telemetry_distance**2) == far
            and not model.plausibility.kinds(window)
        )

    found = np.stack([window for window in windows if fits(window)])[:MOST_OF_A_PI]
    assert len(found) >= 32
    return found


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What came of a day.

    Args:
        running: The platform.
        day: What was sent.
        dropped: Pi to windows that it did not keep although there was a reason: more than it lets in.
    """

    running: Running
    day: Day
    dropped: dict[str, int]


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collected]:
    """A platform that made a release, and the folders of three Pis that served it for a day."""
    root = tmp_path_factory.mktemp("day")
    here = root / "collected"
    here.mkdir()
    running = start(root, BUILDS="never", TELEMETRY_DIR=str(here))
    release = running.canary()
    model = ActiveModel(release, EmulatorEngine(release))
    day = scripted(model)
    model.close()
    noise = np.random.default_rng(1).uniform(-1, 1, (5, 100, 9)).astype(np.float32)
    dropped = {}
    for pi, windows in (
        ("pi-kitchen", [*day.ordinary, *noise, *day.uncertain]),
        ("pi-attic", [*noise, *day.upside_down]),
        ("pi-hall", [*day.ordinary[:12], *day.wrong]),
    ):
        dropped[pi] = serve(root / pi, root / "releases", windows)
        shutil.copytree(root / pi / "telemetry", here / pi)
    yield Collected(running=running, day=day, dropped=dropped)
    end(running)


def serve(pi: Path, store: Path, windows: list[Window]) -> int:
    """A runtime answers these and ends; how many windows with a reason it dropped."""
    pi.mkdir()
    settings = {
        "RELEASE_STORE": str(store),
        "RELEASE_CHANNEL": "canary",
        "TELEMETRY_DIR": str(pi / "telemetry"),
        "TELEMETRY_PER_MINUTE": "60000",
    }
    with running_server(pi, **settings) as server, httpx.Client(base_url=server.url) as client:
        for window in windows:
            assert client.post("/infer", content=window.tobytes(), headers=OCTETS).status_code == 200
        return int(counted(server, "hailo_telemetry_dropped_total") or 0)


@pytest.fixture(scope="module")
def page(collected: Collected) -> Iterator[Page]:
    """The asset's page, where somebody pressed the button and waited for what it says."""
    with chromium() as browser:
        page = browser.new_context(viewport={"width": 1700, "height": 1400}).new_page()
        page.goto(f"{collected.running.ui_url}/assets/telemetry_candidates?view=overview")
        page.get_by_text("Never materialized").wait_for(timeout=PATIENCE)
        page.get_by_role("button", name="Materialize").click(timeout=PATIENCE)
        page.get_by_text("Never materialized").wait_for(state="detached", timeout=2 * PATIENCE)
        page.reload()  # what was never there before, Dagster's page does not look for again
        page.get_by_text("input gate", exact=True).first.wait_for(timeout=PATIENCE)
        page.get_by_text(re.compile(r"^\d+ (second|minute)s? ago$")).first.wait_for(timeout=PATIENCE)
        page.screenshot(path=OUTPUT / "telemetry_candidates.png")
        yield page


def test_the_ui_shows_what_a_day_gave(collected: Collected, page: Page) -> None:
    day, dropped = collected.day, collected.dropped
    release = collected.running.canary().id
    uncertain = len(day.uncertain) - dropped["pi-kitchen"]
    assert entries(page)[:5] == ["origin", "files", "windows", "candidates", "input gate"]
    assert value(page, "origin").inner_text() == "captured"
    assert value(page, "files").inner_text() == "3"
    with_reason = len(day.uncertain) + len(day.upside_down) + len(day.wrong)
    assert value(page, "windows").inner_text() == str(with_reason - sum(dropped.values()))
    assert value(page, "candidates").inner_text() == str(uncertain)
    assert value(page, "input gate").inner_text().startswith("passed with ")
    assert value(page, "z-scores").inner_text() == f"checked with release {release[:12]}"
    header, *found = rows(value(page, "reasons").locator("table"))
    assert header == ["release", "reason", "windows", "verdict", "findings"]
    assert {row[0] for row in found} == {release[:12]}
    shown = {row[1]: (int(row[2]), row[3]) for row in found}
    assert shown["low_margin"] == (uncertain, "offered")
    far, verdict = shown["far_from_calibration"]
    # Some of what comes in degrees is far out, too.
    upside_down = len(day.upside_down) - dropped["pi-attic"]
    assert upside_down <= far <= upside_down + len(day.wrong)
    assert verdict == "refused"
    assert shown["constant_channel"][1] == shown["gyroscope_unit"][1] == "not offered"
    why = value(page, "why refused").inner_text()
    assert why.startswith(f"far_from_calibration of {release[:12]}: ")
    assert "worn another way" in why
    # Nobody has to look for a column.
    room = page.locator("table:not(table table)").filter(has_text="candidates").locator("..").bounding_box()
    table = value(page, "reasons").locator("table").bounding_box()
    assert room is not None
    assert table is not None
    assert table["x"] + table["width"] <= room["x"] + room["width"] + 1


def test_what_it_offers_becomes_a_calibration_set(collected: Collected, page: Page, tmp_path: Path) -> None:
    offered = Path(value(page, "candidate windows").inner_text().strip())
    assert offered.name == CANDIDATES
    with np.load(offered, allow_pickle=False) as archive:
        captured = {window.tobytes() for window in archive["windows"]}
    assert captured <= {window.tobytes() for window in collected.day.uncertain}
    sets = tmp_path / "my_windows"
    present = {name: tmp_path / f"{name}.npz" for name in ("calibration", "evaluation")}
    for name, path in present.items():
        with np.load(CALIB_DATA / f"{name}.npz", allow_pickle=False) as archive:
            np.savez(path, windows=archive["windows"])  # nobody labelled the candidates either
    told = subprocess.run(
        [
            *(sys.executable, "-m", "assets.calibration"),
            *("--calibration", present["calibration"], offered),
            *("--evaluation", present["evaluation"]),
            *("--origin", "captured", "--strata", "motion", "--out", sets),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr
    made = parse_sets(read_files(sets))
    assert made.index.origin == "captured"
    assert captured <= {window.tobytes() for window in made.calibration.windows}
