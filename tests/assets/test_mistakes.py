"""Each calibration mistake is built as somebody would who made it, and meets the gate that should see it.

In this order: the calibration set's own units and coverage, the model's normalization, parity on the
evaluation windows, the champion's golden windows. A mistake that none of them refuses must do no harm: on
good windows its artifact is then as good as the one without the mistake, each window counted alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.builder import Builder, good_windows, with_mistake
from tests.chain import SAMPLE_WEIGHTS
from tests.mistakes import MISTAKES, Mistake

pytestmark = [pytest.mark.build, pytest.mark.timeout(600)]

HARMLESS_DB = 1.0
"""What a mistake that nobody sees may cost on good windows; two draws of good windows differ by 0.5 dB."""
DRAWS = (201, 202, 203, 204, 205)


@dataclass(frozen=True)
class Crowned:
    """A builder whose good build is the champion, and that build's SQNR on good windows."""

    builder: Builder
    sqnr_db: float


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Crowned:
    builder = Builder(tmp_path_factory.mktemp("sample"), SAMPLE_WEIGHTS)
    return Crowned(builder, builder.crown())


@pytest.fixture(scope="module")
def users(upstream: Path, tmp_path_factory: pytest.TempPathFactory) -> Crowned:
    builder = Builder(tmp_path_factory.mktemp("users"), upstream / "weights")
    return Crowned(builder, builder.crown())


def check(crowned: Crowned, mistake: Mistake, everywhere: bool) -> None:
    builder = crowned.builder
    outcome = builder.build(with_mistake(mistake, builder.good, builder.trained, everywhere))
    checks = mistake.both if everywhere else mistake.alone
    if checks:
        assert outcome.refused_by == "input gate", outcome
        assert any(f"{name} [" in outcome.reasons for name in checks), outcome.reasons
    elif not outcome.refused_by:
        assert mistake.harmless, "nobody refuses it: say why that does no harm"
        assert outcome.sqnr_db >= crowned.sqnr_db - HARMLESS_DB, outcome


@pytest.mark.slow
@pytest.mark.parametrize("everywhere", [False, True], ids=["calibration", "everywhere"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_meets_the_gate_that_should_see_it(sample: Crowned, name: str, everywhere: bool) -> None:
    check(sample, MISTAKES[name], everywhere)


@pytest.mark.slow
@pytest.mark.parametrize("everywhere", [False, True], ids=["calibration", "everywhere"])
@pytest.mark.parametrize("name", MISTAKES)
def test_so_it_does_with_the_users_encoder(users: Crowned, name: str, everywhere: bool) -> None:
    check(users, MISTAKES[name], everywhere)


@pytest.mark.slow
@pytest.mark.parametrize("seed", DRAWS)
def test_good_windows_are_let_through_whichever_they_are(sample: Crowned, seed: int) -> None:
    """No flaky gate: five draws, all published."""
    outcome = sample.builder.build(good_windows(seed))
    assert (outcome.refused_by, outcome.reasons) == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("calibration", [1200, 256])
@pytest.mark.parametrize("seed", DRAWS)
def test_so_they_are_with_the_users_encoder(users: Crowned, seed: int, calibration: int) -> None:
    """Fewer windows than the champion had may be worse than it, and are no mistake by themselves."""
    outcome = users.builder.build(good_windows(seed, calibration), beside_champion=calibration == 1200)
    assert (outcome.refused_by, outcome.reasons) == ("", "")


def test_what_the_gate_refuses_says_channel_number_range_and_cause(sample: Crowned) -> None:
    drawn = with_mistake(MISTAKES["gyro in deg/s"], sample.builder.good, sample.builder.trained, False)
    reasons = sample.builder.build(drawn).reasons
    for words in ("gyroscope", "rad/s", "expected", "deg/s"):
        assert words in reasons, reasons
