"""Runs Hailo's Dataflow Compiler (DFC) in the DFC's own Python; a file by itself, also for use by hand.

It imports nothing of this project and needs nothing but the DFC, whose pins contradict ours. What it says
goes to ``--events`` as JSON lines (without it, to stdout): ``fact`` while it works, then one ``done`` or
``failed``. What the DFC itself prints is no part of that. Run it in a folder of its own: the DFC leaves files
where it runs.

By hand::

    python dfc_worker.py versions
    python dfc_worker.py parse encoder.onnx --hw-arch hailo8 --shape 1,9,1,100 --input imu_window --har p.har
    python dfc_worker.py optimize p.har --hw-arch hailo8 --script s.alls --windows c.npy --har q.har
    python dfc_worker.py infer q.har --hw-arch hailo8 --windows w.npy --context SDK_QUANTIZED --out l.npz
    python dfc_worker.py compile q.har --hw-arch hailo8 --hef encoder.hef

Exit status: 0 with ``done``; ``FAILED`` with ``failed``; anything else is a crash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

FAILED = 3
OLDEST_PYTHON = (3, 10)
NET_NAME = "tcn_encoder"


class Events:
    """Writes what happens as JSON lines, each whole and at once.

    Args:
        path: The file; None for stdout.
        nonce: Of whoever started this, who thereby knows these lines from older ones.
    """

    def __init__(self, path: str | None, nonce: str) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if path else os.dup(1)
        self.nonce = nonce

    def say(self, event: str, **more: Any) -> None:
        """Write one line."""
        line = json.dumps({"event": event, "nonce": self.nonce, **more})
        os.write(self.descriptor, line.encode() + b"\n")

    def fact(self, name: str, value: object) -> None:
        """Something worth keeping, told as soon as it is known."""
        self.say("fact", name=name, value=str(value))


def end_with(descriptor: int) -> None:
    """Let a watcher end this whole process group when whoever holds the pipe's other end is gone.

    The DFC can be hours inside C++, where no signal handler of Python's runs, and has children of its own,
    which a parent-death signal would not reach.
    """
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        try:
            os.read(descriptor, 1)
        finally:
            os.killpg(0, signal.SIGKILL)
    os.close(descriptor)


def parse(arguments: argparse.Namespace, events: Events) -> list[str]:
    """ONNX to HAR; where windows are given, also what the DFC's float model makes of them."""
    from hailo_sdk_client import ClientRunner
    from hailo_sdk_client.exposed_definitions import Dims

    if arguments.windows and not arguments.out:
        raise ValueError("--windows needs --out")
    order = [Dims.BATCH, Dims.CHANNELS, Dims.HEIGHT, Dims.WIDTH]
    shape = [int(part) for part in arguments.shape.split(",")]
    runner = ClientRunner(hw_arch=arguments.hw_arch)
    runner.translate_onnx_model(
        arguments.source,
        arguments.net_name,
        net_input_shapes={arguments.input: shape},
        net_input_format={arguments.input: order},
        **({"end_node_names": arguments.end_node} if arguments.end_node else {}),
    )
    runner.save_har(arguments.har)
    if not arguments.windows:
        return [arguments.har]
    write_latents(runner, ["SDK_NATIVE"], arguments)
    return [arguments.har, arguments.out]


def optimize(arguments: argparse.Namespace, events: Events) -> list[str]:
    """HAR to quantized HAR, by a model script and calibration windows."""
    from hailo_sdk_client import ClientRunner

    runner = ClientRunner(har=arguments.source, hw_arch=arguments.hw_arch)
    if gpus() != "unknown":
        events.fact("gpus", gpus())  # before hours are spent without one
    runner.load_model_script(Path(arguments.script).read_text(encoding="utf-8"))
    windows = read_windows(arguments.windows)
    events.fact("calibration windows", len(windows))
    runner.optimize(windows)
    events.fact("gpus", gpus())
    runner.save_har(arguments.har)
    return [arguments.har]


def infer(arguments: argparse.Namespace, events: Events) -> list[str]:
    """What the DFC's own contexts make of windows."""
    from hailo_sdk_client import ClientRunner

    runner = ClientRunner(har=arguments.source, hw_arch=arguments.hw_arch)
    write_latents(runner, arguments.context, arguments)
    return [arguments.out]


def compile_hef(arguments: argparse.Namespace, events: Events) -> list[str]:
    """Quantized HAR to HEF."""
    from hailo_sdk_client import ClientRunner

    runner = ClientRunner(har=arguments.source, hw_arch=arguments.hw_arch)
    hef = runner.compile()
    if not isinstance(hef, bytes):
        raise TypeError(f"compile() gave {type(hef).__name__}, not bytes")
    with Path(arguments.hef).open("xb") as file:
        file.write(hef)
    return [arguments.hef]


def versions(arguments: argparse.Namespace, events: Events) -> list[str]:
    """The facts that every verb tells, and the GPUs."""
    events.fact("gpus", gpus())
    return []


VERBS = {"versions": versions, "parse": parse, "optimize": optimize, "infer": infer, "compile": compile_hef}


def write_latents(runner: Any, contexts: list[str], arguments: argparse.Namespace) -> None:
    """Run windows in each context; float32 (N, numbers of one window), by the context's name."""
    import numpy as np
    from hailo_sdk_client.exposed_definitions import InferenceContext

    windows = read_windows(arguments.windows)
    found: dict[str, Any] = {}
    for name in contexts:
        with runner.infer_context(getattr(InferenceContext, name)) as context:
            given = runner.infer(context, windows, batch_size=arguments.batch)
        if isinstance(given, list):
            if len(given) != 1:
                raise ValueError(f"{name} gave {len(given)} outputs, expected one")
            given = given[0]
        # Axes of height and width stay in some versions.
        found[name] = np.asarray(given, np.float32).reshape(len(windows), -1)
    with Path(arguments.out).open("wb") as file:  # by a name alone numpy would add to it
        np.savez(file, **found)


def read_windows(path: str) -> Any:
    """Windows as the DFC takes them: float32 (N, 1, 100, 9), channels last whatever the ONNX has."""
    import numpy as np

    windows = np.load(path, allow_pickle=False)
    if windows.ndim == 3:
        windows = windows[:, None]
    return np.ascontiguousarray(windows, np.float32)


def gpus() -> str:
    """How many GPUs TensorFlow sees, where the DFC has loaded it; ``unknown`` else."""
    tensorflow = sys.modules.get("tensorflow")
    try:
        return str(len(tensorflow.config.list_physical_devices("GPU")))  # type: ignore[union-attr]
    except Exception:  # whatever TensorFlow raises: not knowing is an answer
        return "unknown"


def tell_versions(events: Events) -> None:
    """Import the DFC, and tell what shapes its output."""
    from importlib import metadata

    import hailo_sdk_client

    try:
        version = hailo_sdk_client.__version__
    except AttributeError:
        version = metadata.version("hailo-dataflow-compiler")
    events.fact("dfc", version)
    for name in ("tensorflow", "numpy", "onnx", "protobuf"):
        try:
            events.fact(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            continue


def digest(path: str) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="dfc_worker.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--events", help="file for JSON lines (default: stdout)")
    common.add_argument("--nonce", default="", help="repeated in every line")
    common.add_argument("--alive", type=int, help="descriptor of a pipe: at its end everything here ends")
    verbs = top.add_subparsers(dest="verb", required=True)
    verbs.add_parser("versions", parents=[common], help="import the DFC and say its version")
    for name, text in (("parse", "ONNX to HAR"), ("optimize", "HAR to quantized HAR")):
        each = verbs.add_parser(name, parents=[common], help=text)
        each.add_argument("--har", required=True, help="file to write")
        _add_source(each, windows=name == "optimize")
        if name == "optimize":
            each.add_argument("--script", required=True, help="model script (.alls)")
        else:
            each.add_argument("--net-name", default=NET_NAME)
            each.add_argument("--input", required=True, help="name of the graph's input")
            each.add_argument("--shape", required=True, help="its shape, NCHW: 1,9,1,100")
            each.add_argument("--end-node", action="append", help="stop there; may be repeated")
            each.add_argument("--out", help="npz to write SDK_NATIVE's latents to")
    each = verbs.add_parser("infer", parents=[common], help="run windows in the DFC's contexts")
    _add_source(each, windows=True)
    each.add_argument("--context", action="append", required=True, help="SDK_NATIVE, SDK_QUANTIZED, ...")
    each.add_argument("--out", required=True, help="npz to write")
    each = verbs.add_parser("compile", parents=[common], help="quantized HAR to HEF")
    _add_source(each, windows=False)
    each.add_argument("--hef", required=True, help="file to write; must not be there")
    return top


def _add_source(each: argparse.ArgumentParser, *, windows: bool) -> None:
    each.add_argument("source", help="file to read")
    each.add_argument("--hw-arch", required=True, help="hailo8 or hailo8l")
    each.add_argument("--windows", required=windows, help="npy, float32 (N, 100, 9) or (N, 1, 100, 9)")
    each.add_argument("--batch", type=int, default=1, help="windows at a time")


def main(argv: list[str] | None = None) -> int:
    """Do what the command line says, and tell."""
    arguments = parser().parse_args(argv)
    # Whoever started us may ignore them, and what is ignored is inherited.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if arguments.alive is not None:
        end_with(arguments.alive)
    events = Events(arguments.events, arguments.nonce)
    events.fact("python", platform.python_version())
    stage = "python"
    try:
        if sys.version_info < OLDEST_PYTHON:
            raise RuntimeError(f"Python {platform.python_version()} is older than 3.10")
        stage = "import"
        tell_versions(events)
        stage = arguments.verb
        files = VERBS[arguments.verb](arguments, events)
        events.say("done", files={path: digest(path) for path in files})
    except Exception as error:  # the DFC's exceptions share no base class; the other side sorts them
        kind = type(error)
        events.say(
            "failed",
            stage=stage,
            type=kind.__name__,
            bases=[base.__name__ for base in kind.__mro__],
            message=str(error),
        )
        traceback.print_exc()
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
