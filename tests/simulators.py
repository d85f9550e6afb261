"""Doubles and builders for tests: a real release from a tiny model, and a real server to ask.

Needs the runtime extra only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Self, TypeVar

import httpx
import numpy as np
import onnxruntime as ort

from runtime.contract.calibration_statistics import (
    FILE_NAME,
    KIND,
    CalibrationStatistics,
    measure_calibration,
)
from runtime.contract.document import sha256_bytes, to_json
from runtime.contract.motifs import MotifHead
from runtime.contract.release import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    Artifact,
    CalibrationRecord,
    GoldenRecord,
    InputSpec,
    Manifest,
    ModelIdentity,
    OutputQuantization,
    OutputSpec,
    ParityResult,
    ToolchainRecord,
    manifest_bytes,
    release_id,
)
from runtime.contract.release_directory import sign_release
from runtime.contract.store import Release, open_release
from runtime.contract.window import (
    LATENT_SIZE,
    WINDOW_SHAPE,
    ChannelStatistics,
    FloatArray,
    Window,
    normalize,
    to_graph_layout,
)
from runtime.engines import Engine
from tests.doubles.tiny_hef import tiny_hef
from tests.keys import BUILD, KEY_OF, a_store
from tests.verdicts import judged_well

ROOT: Final = Path(__file__).parent.parent
TINY_ENCODER: Final = Path(__file__).parent / "data" / "tiny_encoder.onnx"
ARTIFACT: Final = "tiny.onnx"
HEF_ARTIFACT: Final = "tiny.hef"
ARCHITECTURES: Final = {"hailo8": "HAILO8P", "hailo8l": "HAILO8L"}
GOLDEN: Final = "golden.npz"
REPORT: Final = "parity.json"
STATISTICS: Final = ChannelStatistics(
    mean=(0.1, -0.2, 9.8, 0.01, 0.02, -0.03, 20.0, -5.0, 40.0),
    std=(2.0, 2.5, 3.0, 0.5, 0.6, 0.7, 15.0, 16.0, 17.0),
)
DEADLINE_SECONDS: Final = 30.0

T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], what: str, seconds: float = DEADLINE_SECONDS) -> T:
    """Ask until the answer is true; TimeoutError where it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.01)
    raise TimeoutError(f"not within {seconds:g} s: {what}")


def imu_windows(count: int, seed: int = 0) -> FloatArray:
    """float32 (count, 100, 9) in physical units, each window different."""
    random = np.random.default_rng(seed)
    mean, std = STATISTICS.arrays()
    windows = random.normal(mean, std, (count, *WINDOW_SHAPE))
    return windows.astype(np.float32)


def motif_head(count: int = 12) -> MotifHead:
    """A head whose motifs differ."""
    random = np.random.default_rng(11)
    return MotifHead(
        provenance="checkpoint",
        names=tuple(f"motif{i}" for i in range(count)),
        weight=tuple(tuple(row) for row in random.normal(0, 0.2, (count, LATENT_SIZE)).tolist()),
        bias=tuple(random.normal(0, 0.1, count).tolist()),
    )


def reference_latents(model: bytes, windows: FloatArray, statistics: ChannelStatistics) -> FloatArray:
    """What onnxruntime gives, without the engine under test: float32 (N, 64)."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    run = [
        session.run(None, {"imu_window": to_graph_layout(normalize(w, statistics))})[0][0] for w in windows
    ]
    return np.stack(run)


def npz_bytes(**arrays: FloatArray) -> bytes:
    """The bytes of a numpy archive."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


@dataclass
class ReleaseSimulator:
    """Builds one valid release; change a field, a file or the manifest to break one thing."""

    target: str = "emulator"
    kind: str = ""  # as the target's toolchain makes
    model: bytes = field(default_factory=TINY_ENCODER.read_bytes)
    hef: bytes | None = None  # for hardware; where none is given, a double's for the target
    motifs: int = 12
    version: str = "v1.0.0"
    statistics: ChannelStatistics = STATISTICS
    golden_offset: float = 0.0
    tolerance: float = 0.07
    kernel_family: str = "recorded-elsewhere"
    calibrated: bool = False  # whether it holds calibration statistics, of windows as imu_windows gives them
    files: dict[str, bytes] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def hardware(self) -> bool:
        """Whether the release is for a chip."""
        return self.target != "emulator"

    @property
    def artifact(self) -> str:
        """File name of the artifact that an engine loads."""
        return HEF_ARTIFACT if self.hardware else ARTIFACT

    def _artifact_bytes(self) -> bytes:
        if not self.hardware:
            return self.model
        return tiny_hef(arch=ARCHITECTURES[self.target]) if self.hef is None else self.hef

    def contents(self) -> dict[str, bytes]:
        """File name to bytes, ``files`` laid over."""
        windows = imu_windows(4, seed=3)
        latents = reference_latents(TINY_ENCODER.read_bytes(), windows, STATISTICS)
        golden = npz_bytes(
            windows=windows,
            labels=np.arange(4, dtype=np.float32),
            full_precision=latents,
            artifact=latents + np.float32(self.golden_offset),
        )
        made = {
            self.artifact: self._artifact_bytes(),
            GOLDEN: golden,
            REPORT: b'{"note": "made by a simulator"}\n',
        }
        if self.calibrated:
            made[FILE_NAME] = to_json(calibration_statistics())
        return made | self.files

    def manifest(self, contents: Mapping[str, bytes]) -> Manifest:
        """The manifest of these files, ``changes`` laid over."""
        hardware = self.hardware
        kind = self.kind or ("hef" if hardware else "emulated-int8")
        kinds = {self.artifact: kind, GOLDEN: "golden-windows", REPORT: "parity-report", FILE_NAME: KIND}
        provenance = "measured" if hardware else "emulated"
        manifest = Manifest(
            schema=3,
            minimum_runtime="0.1.0",
            target=self.target,
            model=ModelIdentity(name="tiny", version=self.version),
            artifact=self.artifact,
            artifacts=tuple(
                Artifact(name=name, kind=kinds.get(name, "other"), sha256=sha256_bytes(data), size=len(data))
                for name, data in contents.items()
            ),
            input=InputSpec.for_encoder(self.statistics),
            output=OutputSpec.for_encoder(provenance),
            motif_head=motif_head(self.motifs),
            upstream={"onnx_model": sha256_bytes(b"onnx_model")},
            calibration=CalibrationRecord(
                origin="synthetic", windows=64, windows_sha256=sha256_bytes(b"windows"), strata={"rest": 64}
            ),
            toolchain=ToolchainRecord(
                id="hailo-dfc" if hardware else "emulator",
                hardware=hardware,
                tools={"onnxruntime": "1.32.0"},
                options={"integer_path": "u8s8"},
            ),
            parity=parity(contents[self.artifact], provenance),
            golden=GoldenRecord(
                file=GOLDEN,
                windows=4,
                full_precision_tolerance=1e-4,
                artifact_tolerance=self.tolerance,
                output=OutputQuantization(scale=1 / 32, zero_point=128),
                kernel_family=self.kernel_family,
            ),
        )
        return dataclasses.replace(manifest, **self.changes)

    def publish(self, root: Path, *channels: str, judged: bool = True) -> Release:
        """Publish into a store, through its gate, and point channels to the release.

        A canary has a verdict, and on a chip an acceptance report, unless it is not ``judged``.

        The HEF of a simulated release is a double's, which only a store made like this takes.
        """
        contents = self.contents()
        store = a_store(root, accepts_doubles=True)
        release = store.publish(self.manifest(contents), contents, BUILD)
        for channel in channels:
            store.point(channel, release, actor="test", reason="simulated", key=KEY_OF[channel])
        if judged and "canary" in channels:
            judged_well(store, release)
        return release

    def identifier(self) -> str:
        """What the release will be called."""
        return release_id(manifest_bytes(self.manifest(self.contents())))

    def place(self, root: Path) -> Release:
        """Write the release as somebody does who goes around the gate."""
        contents = self.contents()
        data = manifest_bytes(self.manifest(contents))
        directory = root / "releases" / release_id(data)
        directory.mkdir(parents=True)
        signed = {MANIFEST_NAME: data, SIGNATURE_NAME: sign_release(data, BUILD)}
        for name, content in {**contents, **signed}.items():
            (directory / name).write_bytes(content)
        return open_release(directory)


def parity(artifact: bytes, provenance: str = "emulated") -> ParityResult:
    """A passed parity about these bytes."""
    return ParityResult(
        artifact_sha256=sha256_bytes(artifact),
        provenance=provenance,
        windows=8,
        metrics={"mean_cosine": 0.999, "sqnr_db": 32.5},
        thresholds={"mean_cosine": 0.95},
        ceilings={},
        failures=(),
        passed=True,
    )


def calibration_statistics() -> CalibrationStatistics:
    """Of 256 windows of ``imu_windows`` and what the tiny encoder says to them."""
    windows = imu_windows(256, seed=8)
    return measure_calibration(
        normalize(windows, STATISTICS),
        reference_latents(TINY_ENCODER.read_bytes(), windows, STATISTICS),
        latent_step=1 / 32,
        windows_sha256=sha256_bytes(b"windows"),
    )


def flip_bit(path: Path, byte: int = 0, bit: int = 0) -> None:
    """Change one bit of a stored file, read-only or not."""
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


class FakeEngine(Engine):
    """An engine whose answer a test decides; sees what a real adapter sees."""

    def __init__(self, manifest: Manifest, answer: Callable[[FloatArray], FloatArray]) -> None:
        super().__init__(manifest)
        self._answer = answer
        self.closings = 0

    @property
    def kernel_family(self) -> str:
        return "fake"

    @property
    def program(self) -> str:
        return "fake 1"

    def _infer(self, tensor: FloatArray) -> FloatArray:
        return self._answer(tensor)

    def _close(self) -> None:
        self.closings += 1


def infer_body(window: Window) -> bytes:
    """The JSON body of ``POST /infer``."""
    return json.dumps({"x": window.tolist()}).encode()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now, and for a minute nobody gets who asks for just any port.

    A connection that ended there is in TIME_WAIT: servers name the port and set SO_REUSEADDR, so they may
    have it; the kernel hands it neither to another test that looks for one nor to a client.
    """
    with socket.socket() as listener, socket.socket() as peer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        peer.connect(listener.getsockname())
        listener.accept()[0].close()  # before its peer, so that TIME_WAIT is on this side
        port: int = listener.getsockname()[1]
    return port


def clean_environment() -> dict[str, str]:
    """This process's environment without any setting of the runtime."""
    settings = (
        "RELEASE_",
        "HAILO",
        "HEF_PATH",
        "NUM_MOTIFS",
        "TARGET",
        "TELEMETRY_",
        "HOST",
        "PORT",
        "LOG_LEVEL",
        "WEB_",
        "GUNICORN",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
    return {name: value for name, value in kept.items() if name != "STATE_DIR"}


class RuntimeServer:
    """The real server in a process of its own, on a free port; ended by its process id.

    ``python`` is the interpreter of another environment, ``settings`` another file for gunicorn.
    ``script`` is gunicorn's own, instead of ``-m gunicorn``: what ``-m`` started cannot start itself
    again on ``USR2``.
    """

    def __init__(
        self,
        logs: Path,
        *,
        python: str | Path = sys.executable,
        settings: str | Path = "runtime/gunicorn.conf.py",
        script: str = "",
        **environment: str,
    ) -> None:
        variables = {"PORT": str(free_port())} | environment
        self.url = f"http://127.0.0.1:{variables['PORT']}"
        self._paths = (logs / f"{variables['PORT']}.out", logs / f"{variables['PORT']}.err")
        gunicorn = [script] if script else ["-m", "gunicorn"]
        command = [str(python), *gunicorn, "-c", str(settings), "runtime.asgi:app"]
        with self._open(0) as out, self._open(1) as err:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=clean_environment() | variables,
                stdout=out,
                stderr=err,
            )

    @property
    def port(self) -> int:
        """The TCP port that it was told to listen on."""
        return int(self.url.rpartition(":")[2])

    def _open(self, index: int) -> IO[bytes]:
        return self._paths[index].open("wb")

    @property
    def stdout(self) -> str:
        """What it wrote so far to standard output."""
        return self._paths[0].read_text()

    @property
    def stderr(self) -> str:
        """What it wrote so far to standard error."""
        return self._paths[1].read_text()

    def wait_until_answering(self) -> Self:
        """Wait for ``/healthz`` to answer anything; RuntimeError where the process ends before."""

        def answers() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"ended with {self.process.returncode}: {self.stderr}")
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{self.url}/healthz")
                return True
            return False

        wait_for(answers, "an answer from /healthz")
        return self

    def wait_until_ended(self, seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for the process to end by itself; returns its exit code."""
        return self.process.wait(seconds)

    def children(self) -> list[int]:
        """Process ids of its workers."""
        listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listing.split()]

    def stop(self) -> int:
        """End it as an init system would; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@contextlib.contextmanager
def running_server(
    logs: Path,
    *,
    python: str | Path = sys.executable,
    settings: str | Path = "runtime/gunicorn.conf.py",
    script: str = "",
    **environment: str,
) -> Iterator[RuntimeServer]:
    """A server that answers, stopped at the end whatever happens."""
    server = RuntimeServer(logs, python=python, settings=settings, script=script, **environment)
    try:
        yield server.wait_until_answering()
    finally:
        server.stop()
