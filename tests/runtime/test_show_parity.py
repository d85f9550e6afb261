"""``releasectl show --parity``: the verdict first, and everything that it rests on, in 80 columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.cli import main
from runtime.contract.document import to_json
from runtime.contract.evidence import PARITY_KIND
from runtime.contract.store import Release
from tests.keys import a_store
from tests.runtime.evidence import ALIEN_LAYER, evidence, judged_by, publication, result
from tests.simulators import REPORT, ReleaseSimulator, flip_bit

Capture = pytest.CaptureFixture[str]


def shown(capsys: Capture, store: Path, release: Release, *more: str) -> tuple[int, str, str]:
    code = main(["show", "--parity", release.id, "--store", str(store), *more])
    out, err = capsys.readouterr()
    return code, out, err


def line(out: str, start: str) -> str:
    (found,) = [line for line in out.splitlines() if line.startswith(start)]
    return found


@pytest.fixture(name="release")
def a_release(tmp_path: Path) -> Release:
    return judged_by(evidence()).publish(tmp_path, "canary", judged=False)


def test_the_verdict_comes_first(tmp_path: Path, release: Release, capsys: Capture) -> None:
    code, out, _ = shown(capsys, tmp_path, release)
    assert code == 0
    assert out.splitlines()[0] == "parity      PASSED, numbers emulated"
    assert "SYNTHETIC windows, not captured on a device" in out
    assert "active      9 of 64 latent dimensions" in out
    assert "judged      emulator, policy tcn_encoder" in out


def test_every_line_fits_80_columns(tmp_path: Path, release: Release, capsys: Capture) -> None:
    out = shown(capsys, tmp_path, release)[1]
    assert [text for text in out.splitlines() if len(text) > 80] == []
    assert ALIEN_LAYER not in out
    assert f"{ALIEN_LAYER[-24:]} " in out


def test_each_metric_has_its_bound_and_what_is_usual(
    tmp_path: Path, release: Release, capsys: Capture
) -> None:
    out = shown(capsys, tmp_path, release)[1]
    assert line(out, "sqnr_db").split() == ["sqnr_db", "26.7", ">=", "20", "24.1", "..", "27.9", "yes"]
    assert line(out, "p99_max_error_sd").split() == ["p99_max_error_sd", "0.21", "<=", "0.5", "-", "yes"]


def test_contexts_also_say_why_they_did_not_run(tmp_path: Path, release: Release, capsys: Capture) -> None:
    out = shown(capsys, tmp_path, release)[1]
    assert line(out, "source").split()[:3] == ["source", "emulated", "120"]
    assert "did not run: no device of this target" in line(out, "hardware")
    assert "by onnxruntime 1.32.0" in out


def test_the_worst_comes_first(tmp_path: Path, release: Release, capsys: Capture) -> None:
    out = shown(capsys, tmp_path, release)[1]
    names = [text.split()[0] for text in out.splitlines() if text.startswith(("walk ", "rest ", "few "))]
    assert names == ["rest", "walk", "few"]
    assert out.index("Relu encoder") < out.index("Relu quiet")
    assert line(out, "noisy").split() == ["noisy", "+3.25"]
    assert "count [all]: 128 windows, expected 256 or more; record more" in " ".join(out.split())


def test_a_long_list_is_cut_and_says_so(tmp_path: Path, capsys: Capture) -> None:
    report = evidence()
    release = judged_by(evidence(strata=report.strata * 5)).publish(tmp_path)
    assert "and 7 more (--json)" in shown(capsys, tmp_path, release)[1]


def test_a_toolchain_that_cannot_tell_says_so(tmp_path: Path, capsys: Capture) -> None:
    release = judged_by(evidence(layers=None, findings=())).publish(tmp_path)
    out = shown(capsys, tmp_path, release)[1]
    assert "this toolchain cannot tell" in out
    assert line(out, "findings").split() == ["findings", "none"]


def test_a_failure_is_a_failure_whatever_the_report_claims(tmp_path: Path, capsys: Capture) -> None:
    claims = result(metrics={"mean_cosine": 0.9, "sqnr_db": 26.7})
    release = judged_by(evidence(claims)).place(tmp_path)
    code, out, _ = shown(capsys, tmp_path, release)
    first = " ".join(out.partition("\nrelease")[0].split())
    assert code == 0
    assert first.startswith("parity FAILED, numbers emulated: parity failed: mean_cosine is 0.9")
    assert "p99_max_error_sd was not computed" in first
    assert line(out, "mean_cosine").endswith("NO")
    assert line(out, "p99_max_error_sd").split()[1:3] == ["not", "computed"]


def test_the_manifest_counts_where_the_report_differs(tmp_path: Path, capsys: Capture) -> None:
    better = result(metrics={"mean_cosine": 0.9999, "sqnr_db": 50.0, "p99_max_error_sd": 0.01})
    release = ReleaseSimulator(
        files={REPORT: to_json(evidence(better))}, changes={"parity": result()}
    ).publish(tmp_path)
    out = shown(capsys, tmp_path, release)[1]
    assert "another result than the manifest, which counts" in " ".join(out.split())
    assert "26.7" in line(out, "sqnr_db")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {},
            "SQNR 26 dB, the champion's 27 dB, on the champion's golden windows (16)",
        ),
        ({"failures": ("SQNR is 3 dB lower",)}, "is allowed: SQNR is 3 dB lower"),
        ({"state": "no champion", "release": "", "model": "", "sqnr_db": None}, "champion no champion"),
        ({"state": "is the champion"}, "is the champion (cccccccccccc tiny v0.9.0)"),
    ],
)
def test_the_champion_of_the_day(
    tmp_path: Path, release: Release, changes: dict[str, Any], text: str, capsys: Capture
) -> None:
    assert "no comparison is kept beside" in shown(capsys, tmp_path, release)[1]
    document = publication(evidence(), **changes)
    store = a_store(tmp_path)
    path = store.add_evidence(release, PARITY_KIND, "json", to_json(document))
    store.add_evidence(release, PARITY_KIND, "html", b"<!doctype html>")
    store.add_evidence(release, "note", "json", b"{}")
    assert text in " ".join(shown(capsys, tmp_path, release)[1].split())
    answer = json.loads(shown(capsys, tmp_path, release, "--json")[1])
    assert answer["publications"] == [json.loads(to_json(document))]
    flip_bit(path)
    code, _, err = shown(capsys, tmp_path, release)
    assert code == 1
    assert "the name says" in err


def test_json_is_the_documents(tmp_path: Path, release: Release, capsys: Capture) -> None:
    code, out, _ = shown(capsys, tmp_path, release, "--json")
    assert code == 0
    assert json.loads(out) == {
        "release": release.id,
        "manifest": json.loads(to_json(result())),
        "parity": json.loads(to_json(evidence())),
        "publications": [],
        "reports": [],
    }


def test_it_says_where_the_page_is(tmp_path: Path, release: Release, capsys: Capture) -> None:
    path = a_store(tmp_path).add_evidence(release, PARITY_KIND, "html", b"<p>parity")
    out = shown(capsys, tmp_path, release)[1]
    assert out.splitlines()[-1] == str(path)
    assert json.loads(shown(capsys, tmp_path, release, "--json")[1])["reports"] == [str(path)]


@pytest.mark.parametrize("data", [b'{"note": "old"}', b"[]", b"not JSON", b"\xff", b'{"schema": 1}'])
def test_an_older_report_gives_what_the_manifest_has(tmp_path: Path, data: bytes, capsys: Capture) -> None:
    release = ReleaseSimulator(files={REPORT: data}).publish(tmp_path)
    code, out, _ = shown(capsys, tmp_path, release)
    assert code == 0
    assert "parity.json is of an older form" in out
    assert line(out, "mean_cosine").split() == ["mean_cosine", "0.999", ">=", "0.95", "-", "yes"]
    assert json.loads(shown(capsys, tmp_path, release, "--json")[1])["parity"] is None


def test_a_report_of_our_schema_that_is_none_is_1(tmp_path: Path, capsys: Capture) -> None:
    release = ReleaseSimulator(files={REPORT: b'{"schema": 2}'}).publish(tmp_path)
    code, out, err = shown(capsys, tmp_path, release)
    assert (code, out) == (1, "")
    assert "missing key" in err


def test_evidence_is_listed(tmp_path: Path, release: Release, capsys: Capture) -> None:
    path = a_store(tmp_path).add_evidence(release, PARITY_KIND, "html", b"<!doctype html>")
    assert main(["show", release.id, "--store", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"evidence\n  parity  {path}\n" in out
    assert "at most 0.5" in line(out, "  p99_max_error_sd")
    assert "SYNTHETIC windows, not captured on a device; 64: rest 64" in line(out, "calibration")
    assert main(["show", release.id, "--store", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evidence"] == [{"kind": "parity", "path": str(path)}]


def test_a_ceiling_that_is_passed_is_a_no(tmp_path: Path, capsys: Capture) -> None:
    high = result(metrics={"mean_cosine": 0.9986, "sqnr_db": 26.7, "p99_max_error_sd": 0.7})
    release = judged_by(evidence(high)).place(tmp_path)
    out = shown(capsys, tmp_path, release)[1]
    assert line(out, "p99_max_error_sd").split()[1:] == ["0.7", "<=", "0.5", "-", "NO"]
    assert line(out, "sqnr_db").endswith("yes")
    assert "p99_max_error_sd is 0.7, at most 0.5 is allowed" in " ".join(out.split())


def test_a_comparison_of_another_schema_is_left_out(
    tmp_path: Path, release: Release, capsys: Capture
) -> None:
    """Evidence outlives the version that wrote it: the others are shown all the same."""
    store, ours = a_store(tmp_path), publication(evidence())
    newer = {**json.loads(to_json(ours)), "schema": 3, "more": 1}
    store.add_evidence(release, PARITY_KIND, "json", to_json(newer))
    store.add_evidence(release, PARITY_KIND, "json", to_json(ours))
    code, out, err = shown(capsys, tmp_path, release)
    assert (code, err) == (0, "")
    assert out.count("the champion's 27 dB") == 1
