"""An artifact whose input clips what it will be given is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from assets.hef import make_hef
from assets.input_limits import (
    MAX_CHANNEL_CLIPPED_SHARE,
    MAX_CLIPPED_SHARE,
    InputLimitsError,
    check_input_limits,
    clipped_share,
)
from assets.product import Product, Workbench
from assets.quantized_har import make_quantized_har
from assets.toolchain import Built
from assets.toolchain.emulator import EmulatorToolchain
from runtime.contract.document import sha256_bytes
from runtime.contract.hef_errors import HefArchitectureError, HefJsonError
from runtime.contract.hef_file import read_hef
from runtime.contract.window import CHANNELS, FloatArray
from tests.chain import Chain
from tests.hef_writer import make_hef as write_hef
from tests.hef_writer import stream

pytestmark = pytest.mark.build


def takes(low: float, high: float) -> bytes:
    """A HEF whose input has these limits."""
    return write_hef(inputs=[stream("encoder/input_layer1", (1, 100, 9), limits=(low, high))])


def standard_windows(count: int = 40) -> FloatArray:
    """As normalized ones are: mean 0, deviation 1."""
    return np.random.default_rng(5).normal(size=(count, 100, 9)).astype(np.float32)


def test_values_beyond_the_limits_are_counted() -> None:
    (network,) = read_hef(takes(-1, 1)).network_groups
    windows = np.zeros((2, 100, 9), np.float32)
    windows[0, :50, 0] = 1.5
    windows[1, :10, 8] = -1.01
    windows[0, 0, 4] = np.nan
    found = clipped_share(network.inputs[0], windows)
    assert found.channels == (0.25, 0, 0, 0, 0.005, 0, 0, 0, 0.05)
    assert found.share == pytest.approx(61 / 1800)


@pytest.mark.parametrize(("value", "share"), [(1.0, 0.0), (1.0035, 0.0), (1.0045, 1.0), (-1.0045, 1.0)])
def test_what_is_rounded_to_the_limit_is_not_clipped(value: float, share: float) -> None:
    """A step is 0.0078."""
    (network,) = read_hef(takes(-1, 1)).network_groups
    assert clipped_share(network.inputs[0], np.full((1, 100, 9), value, np.float32)).share == share


@pytest.mark.parametrize("shape", [(0, 100, 9), (100, 9), (1, 9, 100)])
def test_windows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    (network,) = read_hef(takes(-1, 1)).network_groups
    with pytest.raises(InputLimitsError, match="expected"):
        clipped_share(network.inputs[0], np.zeros(shape, np.float32))


def test_a_range_that_holds_nearly_everything_passes() -> None:
    found = check_input_limits(read_hef(takes(-3, 3)), standard_windows(), "x.hef")
    assert 0 < found.share < MAX_CLIPPED_SHARE


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-2, 2), (-100, 0), (-300, -200)])
def test_a_range_that_clips_is_refused(low: float, high: float) -> None:
    with pytest.raises(InputLimitsError, match="of all values") as caught:
        check_input_limits(read_hef(takes(low, high)), standard_windows(), "x.hef")
    assert caught.value.where == "x.hef"
    assert "not on random ones" in caught.value.hint


def test_one_channel_that_is_clipped_is_refused() -> None:
    """0.6 % of all values, and 6 % of the one channel."""
    windows = np.clip(standard_windows(100), -2.9, 2.9)
    windows[:6, :, CHANNELS.index("gz")] = 5.0
    with pytest.raises(InputLimitsError, match=r"clips 6\.0% of gz; allowed") as caught:
        check_input_limits(read_hef(takes(-3, 3)), windows, "x.hef")
    assert "all values" not in caught.value.what
    windows[5:6, :, CHANNELS.index("gz")] = 0.0
    assert max(check_input_limits(read_hef(takes(-3, 3)), windows, "x").channels) <= MAX_CHANNEL_CLIPPED_SHARE


def test_a_file_with_two_inputs_is_refused() -> None:
    inputs = [stream(name, (1, 100, 9), limits=(-3, 3)) for name in ("a", "b")]
    with pytest.raises(InputLimitsError, match="has 2 inputs"):
        check_input_limits(read_hef(write_hef(inputs=inputs)), standard_windows(), "x.hef")


def test_the_genuine_file_clips_every_negative_value(upstream: Path) -> None:
    hef = read_hef(upstream / "hef" / "fsq_m13_behavioral_analysis.hef")
    windows = standard_windows()
    found = clipped_share(hef.network_groups[0].inputs[0], windows)
    # What is negative by less than half a step is rounded to 0.
    below, above = (windows < -0.00197).mean(), (windows > 1.00196).mean()
    assert found.share == pytest.approx(below + above, abs=1e-4)
    assert found.share > 0.6
    with pytest.raises(InputLimitsError, match=r"takes 0 to 1 and clips 6\d\.\d% of all values"):
        check_input_limits(hef, windows, "fsq.hef")


class CompilerDouble(EmulatorToolchain):
    """Writes whatever HEF a test decides."""

    target = "hailo8"

    def __init__(self, hef: bytes) -> None:
        super().__init__()
        self.hef = hef

    def _check(self, built: Built) -> None:
        """No graph of the emulator's, where it is compiled."""

    def _compile(self, quantized: Built) -> Built:
        return Built(stage="compiled", kind="hef", suffix=".hef", data=self.hef)


@pytest.fixture(name="quantized", scope="module")
def a_quantized_model(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workbench, Product]:
    """The sample, quantized for a chip on a workbench of its own."""
    root = tmp_path_factory.mktemp("quantized") / "bench"
    shutil.copytree(chain.bench.root, root)
    bench, made = Workbench(root), chain.products
    return bench, make_quantized_har(
        bench,
        CompilerDouble(b""),
        onnx_model=made["onnx_model"],
        calibration_set=made["calibration_set"],
    )


def test_a_chips_artifact_is_kept(quantized: tuple[Workbench, Product]) -> None:
    bench, har = quantized
    product = make_hef(bench, CompilerDouble(takes(-12, 12)), quantized_har=har)
    assert (product.asset, bench.read(product)) == ("hailo8/hef", takes(-12, 12))
    assert product.facts["kind"] == "hef"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (takes(0, 1), InputLimitsError),
        (write_hef(arch="HAILO15H"), HefArchitectureError),
        (b'{"mock_hef": true}', HefJsonError),
    ],
    ids=["clips", "another chip", "a mock"],
)
def test_a_chips_artifact_is_looked_at_when_it_is_compiled(
    quantized: tuple[Workbench, Product], data: bytes, error: type[Exception]
) -> None:
    bench, har = quantized
    with pytest.raises(error, match="hailo8/hef"):
        make_hef(bench, CompilerDouble(data), quantized_har=har)
    assert not (bench.root / "hailo8" / "hef" / sha256_bytes(data)).exists()
