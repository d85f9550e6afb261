"""A policy speaks of a family and of each metric, or nothing is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from assets.metrics import LatentScale
from assets.policy import POLICY_FILE, PolicyError, load_policy, policy_digest
from runtime.contract.motifs import MotifScorer
from tests.assets.test_metrics import head, latents

pytestmark = pytest.mark.build


def changed(tmp_path: Path, change: Any) -> Path:
    document = json.loads(POLICY_FILE.read_text())
    change(document)
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(document))
    return path


def test_every_bound_of_the_committed_policy_is_about_a_metric_that_is_computed() -> None:
    policy = load_policy()
    judged = LatentScale(latents(), MotifScorer(head()), active_share=0.05, clear_margin=0.3)
    assert set(policy.metrics) <= set(judged.metrics(latents(), latents()))
    assert policy.thresholds["mean_cosine"] == 0.95


def test_typical_values_lie_within_the_bounds() -> None:
    """Else a good build would be refused, or the table would show nonsense."""
    for name, bound in load_policy().metrics.items():
        low, high = bound.typical
        assert bound.at_least is None or low >= bound.at_least, name
        assert bound.at_most is None or high <= bound.at_most, name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["families"].clear(), "says nothing about tcn_vae"),
        (lambda d: d.update(schema=1), "schema 1, expected 2"),
        (lambda d: d["families"]["tcn_vae"]["metrics"]["gain"].update(at_least=None, at_most=None), "bounds"),
        (lambda d: d["families"]["tcn_vae"]["metrics"]["gain"].update(typical=[2, 1]), "typical"),
        (lambda d: d["families"]["tcn_vae"]["metrics"]["gain"].pop("typical"), "missing key 'typical'"),
        (lambda d: d["families"]["tcn_vae"].update(more=1), "unknown key 'more'"),
        (lambda d: d["families"]["tcn_vae"].update(active_share=1.5), "active_share: 1.5 is not within"),
        (lambda d: d["families"]["tcn_vae"].update(active_share=0), "active_share: 0 is not within"),
        (lambda d: d["families"]["tcn_vae"].update(clear_margin=-1), "clear_margin: -1 is not within"),
        (lambda d: d["families"]["tcn_vae"].update(champion_drop_db=999), "champion_drop_db: 999 is not"),
    ],
)
def test_what_is_wrong_in_a_policy_is_named(tmp_path: Path, change: Any, words: str) -> None:
    with pytest.raises(PolicyError, match=words):
        load_policy(changed(tmp_path, change))


def test_a_missing_policy_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        load_policy(tmp_path / "none.json")


def test_its_digest_changes_with_it(tmp_path: Path) -> None:
    other = changed(tmp_path, lambda d: d["families"]["tcn_vae"].update(clear_margin=0.4))
    assert policy_digest(other) != policy_digest()
