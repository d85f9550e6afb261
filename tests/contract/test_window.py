"""Windows: what passes the check is what the encoder takes, and what fails names the place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.contract.errors import ManifestError, WindowShapeError, WindowValueError
from runtime.contract.window import (
    CHANNELS,
    ChannelStatistics,
    check_window,
    normalize,
    to_graph_layout,
)
from tests.simulators import STATISTICS, imu_windows

PLACES = st.tuples(st.integers(0, 99), st.integers(0, 8))


@given(st.integers(0, 2**32 - 1))
def test_a_good_window_passes_unchanged(seed: int) -> None:
    window = imu_windows(1, seed)[0]
    checked = check_window(window.tolist())
    assert checked.dtype == np.float32
    assert checked.flags.c_contiguous
    np.testing.assert_array_equal(checked, window)


@given(PLACES, st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e39, -3.5e38]))
def test_a_value_that_is_no_float32_is_named(place: tuple[int, int], value: float) -> None:
    rows = imu_windows(1)[0].tolist()
    row, channel = place
    rows[row][channel] = value
    with pytest.raises(WindowValueError) as caught:
        check_window(rows)
    assert caught.value.where == f"x[{row}][{channel}]"
    assert CHANNELS[channel] in str(caught.value)


@given(st.integers(0, 300).filter(lambda count: count != 100))
def test_another_number_of_rows_is_refused(count: int) -> None:
    with pytest.raises(WindowShapeError, match=f"{count} rows, expected 100"):
        check_window([[0.0] * 9] * count)


@given(st.integers(0, 99), st.integers(0, 20).filter(lambda count: count != 9))
def test_a_ragged_row_is_named(row: int, count: int) -> None:
    rows = [[0.0] * 9 for _ in range(100)]
    rows[row] = [0.0] * count
    with pytest.raises(WindowShapeError) as caught:
        check_window(rows)
    assert caught.value.where == f"x[{row}]"
    assert f"{count} values" in str(caught.value)


def test_normalization_is_by_channel() -> None:
    mean, std = STATISTICS.arrays()
    window = np.broadcast_to(mean + 2 * std, (100, 9)).astype(np.float32)
    np.testing.assert_allclose(normalize(window, STATISTICS), 2, rtol=1e-5)


def test_normalization_works_on_many_as_on_one() -> None:
    windows = imu_windows(3)
    np.testing.assert_array_equal(normalize(windows, STATISTICS)[1], normalize(windows[1], STATISTICS))


def test_the_graph_takes_channels_first() -> None:
    window = imu_windows(1)[0]
    tensor = to_graph_layout(window)
    assert tensor.shape == (1, 9, 1, 100)
    assert tensor.flags.c_contiguous
    assert tensor[0, 3, 0, 42] == window[42, 3]
    assert np.moveaxis(tensor, 1, 3).tobytes() == window.tobytes()


@pytest.mark.parametrize(
    ("mean", "std", "where"),
    [
        ((0.0,) * 8, (1.0,) * 9, "mean"),
        ((0.0,) * 9, (1.0,) * 10, "std"),
        ((0.0,) * 9, (1.0,) * 8 + (0.0,), "std[mz]"),
        ((0.0,) * 9, (-1.0,) + (1.0,) * 8, "std[ax]"),
        ((0.0,) * 9, (1e-60,) + (1.0,) * 8, "std[ax]"),
        ((float("nan"),) + (0.0,) * 8, (1.0,) * 9, "mean[ax]"),
        ((0.0, 1e39) + (0.0,) * 7, (1.0,) * 9, "mean[ay]"),
        ((0.0,) * 9, (float("inf"),) * 9, "std[ax]"),
    ],
)
def test_statistics_that_cannot_divide_are_refused(
    mean: tuple[float, ...], std: tuple[float, ...], where: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        ChannelStatistics(mean=mean, std=std)
    assert where in caught.value.where
