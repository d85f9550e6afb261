"""What Dagster is told about parity: verdict first, and every number as a number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from assets.report import render
from orchestration.parity_view import REPORT_KEY, origin_shown, parity_check_result, parity_metadata
from orchestration.resources import Places
from orchestration.settings import BuildSettings
from runtime.contract.parity import PublicationEvidence
from tests.evidence import latents, publication

pytestmark = pytest.mark.build
REPORT = Path("/reports/emulator-parity-12.html")


def shown(
    evidence: PublicationEvidence, url: str = "", images: Mapping[str, bytes] | None = None
) -> dict[str, Any]:
    return parity_metadata(evidence.parity, evidence.champion, images or {}, REPORT, url)


def rows(value: dg.TableMetadataValue) -> list[dict[str, Any]]:
    return [dict(record.data) for record in value.records]


def test_the_verdict_is_first_and_then_the_table() -> None:
    metadata = shown(publication())
    assert [*metadata][:5] == ["verdict", "summary", "report", REPORT_KEY, "metrics"]
    assert metadata["verdict"].value == "passed"
    failed = shown(publication(good=False))
    assert [*failed][:2] == ["verdict", "failures"]
    assert failed["verdict"].value == "FAILED"
    assert {"failure": "p99_error_sd is 4.611, at most 1.2 is allowed"} in rows(failed["failures"])


def test_the_table_says_what_missed_its_bound_first() -> None:
    first, *_ = rows(shown(publication(good=False))["metrics"])
    assert first == {
        "ok": "✗",
        "metric": "sqnr_db",
        "value": "5.81",
        "threshold": "≥ 18",
        "typical": "20–27.5",
        "champion": "22.12",
    }
    alone = rows(shown(publication(compared=False))["metrics"])
    assert {row["champion"] for row in alone} == {"no champion"}


def test_every_metric_is_a_number_with_a_history() -> None:
    evidence = publication()
    metadata = shown(evidence)
    for name, value in evidence.parity.result.metrics.items():
        assert metadata[name] == dg.MetadataValue.float(value)
    assert metadata["active dimensions"] == dg.MetadataValue.int(9)
    assert metadata["origin"].value.startswith("SYNTHETIC")
    assert origin_shown("captured") == "captured"
    assert metadata["windows"] == dg.MetadataValue.int(480)
    assert metadata["numbers"].value == "emulated"
    assert metadata["judged"].value == "artifact"


def test_the_link_is_an_address_where_the_reports_are_served() -> None:
    assert shown(publication())["report"].value == "file:///reports/emulator-parity-12.html"
    served = shown(publication(), "http://127.0.0.1:4000")
    assert served["report"].value == "http://127.0.0.1:4000/emulator-parity-12.html"
    assert served[REPORT_KEY].value == str(REPORT)


def test_strata_and_contexts_are_tables_also_where_there_is_little() -> None:
    metadata = shown(publication())
    assert [row["stratum"] for row in rows(metadata["strata"])][:2] == ["still_flat", "still_tilted"]
    contexts = rows(metadata["contexts"])
    assert [row["context"] for row in contexts] == [
        "source",
        "full_precision",
        "emulator",
        "artifact",
        "hardware",
    ]
    assert contexts[-1]["numbers"] == "not run"
    assert contexts[-1]["ran by"].startswith("the target is the emulator")
    assert rows(shown(publication(strata=()))["strata"]) == []


@pytest.mark.parametrize(("good", "worse", "passed"), [(1, 0, True), (0, 0, False), (1, 1, False)])
def test_the_check_passes_only_where_policy_and_champion_do(good: int, worse: int, passed: bool) -> None:
    evidence = publication(good=bool(good), worse=bool(worse))
    check = parity_check_result(evidence.parity, evidence.champion, REPORT, "http://127.0.0.1:4000")
    assert check.passed is passed
    assert [*check.metadata][:2] == ["report", REPORT_KEY]
    assert check.metadata["report"] == dg.MetadataValue.url(f"http://127.0.0.1:4000/{REPORT.name}")
    assert check.severity is dg.AssetCheckSeverity.ERROR
    failures = (*evidence.parity.result.failures, *evidence.champion.failures)
    assert check.description == ("; ".join(failures) or check.description)
    assert bool(failures) is not passed


def test_an_event_with_pictures_stays_small() -> None:
    """The event log holds it, once for each build."""
    evidence = publication(good=False)
    images = render(evidence, latents(good=False)).images

    @dg.asset
    def judged() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata=shown(evidence, images=images))

    result = dg.materialize([judged])
    (event,) = result.get_asset_materialization_events()
    assert len(dg.serialize_value(event)) < 200_000
    metadata = event.step_materialization_data.materialization.metadata
    assert str(metadata["plot: latents"].value).startswith("![latents](data:image/png;base64,iVBOR")


def test_reports_lie_beside_the_workbench_and_are_served_where_settings_say() -> None:
    settings = BuildSettings.from_environment({"BUILD_DIR": "/bench", "REPORTS_URL": "http://127.0.0.1:4000"})
    assert settings.reports_dir == Path("/bench/reports")
    assert settings.reports_url == "http://127.0.0.1:4000"
    assert BuildSettings.from_environment({}).reports_url == ""
    places = Places(weights_dir="", calib_dir="", build_dir="/bench", release_store="")
    assert places.reports() == Path("/bench/reports")
    assert places.reports_url == ""
