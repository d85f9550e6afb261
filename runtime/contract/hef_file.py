"""Reads a HEF without HailoRT: for which chip, by which compiler, with which inputs and outputs.

HailoRT has no accessor for the first two, crashes on some files, and is not there on a build machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from runtime.contract.files import open_regular
from runtime.contract.hef_errors import (
    HefMalformedError,
    HefNoNetworkError,
    HefOverlongError,
    HefUnreadableError,
)
from runtime.contract.hef_header import MAX_HEF_BYTES, open_container
from runtime.contract.protobuf_wire import Message, WireError

ARCHITECTURES: Final = {
    0: "HAILO8",
    1: "HAILO8P",
    2: "HAILO8R",
    3: "HAILO8L",
    4: "HAILO15M",
    5: "HAILO10H",
    6: "HAILO15L",
    103: "HAILO15H",
}
"""Architecture in the file to its name. ``--hw-arch hailo8`` writes 1."""
ORDERS: Final = {0: "NHWC", 1: "NHCW", 2: "NC", 3: "FCR", 5: "NHW", 6: "NMS", 7: "F8CR"}
"""Order of a stream's elements on the device's side."""
DOUBLE_SDK_VERSION: Final = "0.0.0-double"
"""Compiler version of a HEF that a test double wrote; no chip runs it."""
MAX_STREAMS: Final = 1024
MAX_NETWORK_GROUPS: Final = 256
_VERSION: Final = re.compile(r"\d+\.\d+\.\d+[A-Za-z0-9.+-]*")
# ProtoHEFEdgeLayer: which of three messages describes the stream.
_LAYER_KINDS: Final = {3: "layer_info", 4: "layer_mux", 8: "layer_planes"}
_HOST_OPERATIONS: Final = {5: "nms", 6: "logits"}
_BOUNDARY: Final = 0


@dataclass(frozen=True, kw_only=True)
class HefStream:
    """One input or output at the border between host and chip.

    Args:
        name: As HailoRT names it.
        shape: Without batch: (height, width, features); (height, width) where the order is NHW;
            (features,) where it is NC.
        order: One of ``ORDERS``, or ``unknown (N)``.
        element_bytes: 1 for uint8, 2 for uint16.
        scale: Size of one step; 0.0 where the file does not say.
        zero_point: The integer that stands for 0.0.
        limits: Smallest and largest value that is not clipped.
        scales: One for each feature where they differ, else empty.
        zero_points: As ``scales``.
        original_names: Of the ONNX nodes that it stands for.
    """

    name: str
    shape: tuple[int, ...]
    order: str
    element_bytes: int
    scale: float
    zero_point: float
    limits: tuple[float, float]
    scales: tuple[float, ...]
    zero_points: tuple[float, ...]
    original_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HefNetworkGroup:
    """One network: what goes in and what comes out.

    Args:
        name: As HailoRT names it.
        contexts: Into how many parts it was cut; more than 1 means weights are loaded while it runs.
        bottleneck_fps: The compiler's own estimate; 0.0 where the file does not say.
        inputs: In the file's order.
        outputs: Sorted as HailoRT gives them.
        host_operations: What HailoRT computes on the host after the chip: ``nms``, ``logits``.
    """

    name: str
    contexts: int
    bottleneck_fps: float
    inputs: tuple[HefStream, ...]
    outputs: tuple[HefStream, ...]
    host_operations: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HefFile:
    """A HEF whose lengths and checksum are right.

    Args:
        size: Bytes.
        header_version: 0 to 3.
        checksum: ``md5``, ``crc32`` or ``xxh3``.
        architecture_code: As the file has it.
        sdk_version: Of the Dataflow Compiler, as the file has it.
        timestamp_ms: When it was compiled, ms since 1970; 0 where the file does not say.
        network_groups: At least one.
    """

    size: int
    header_version: int
    checksum: str
    architecture_code: int
    sdk_version: str
    timestamp_ms: int
    network_groups: tuple[HefNetworkGroup, ...]

    @property
    def architecture(self) -> str:
        """One of ``ARCHITECTURES``, or ``unknown (N)``."""
        return ARCHITECTURES.get(self.architecture_code, f"unknown ({self.architecture_code})")

    @property
    def dfc_version(self) -> str:
        """``3.32.0`` also where the file wraps it in other words; empty where it says none."""
        found = _VERSION.search(self.sdk_version)
        return found.group() if found else ""

    @property
    def compiled_at(self) -> str:
        """ISO 8601 in UTC; empty where the file says nothing that is a time."""
        try:
            moment = datetime.fromtimestamp(self.timestamp_ms / 1000, UTC)
        except (OverflowError, ValueError, OSError):
            return ""
        return moment.isoformat(timespec="seconds") if self.timestamp_ms else ""

    @property
    def is_double(self) -> bool:
        """Whether a test double wrote it."""
        return self.sdk_version == DOUBLE_SDK_VERSION


def read_hef(source: Path | str | bytes, where: str = "") -> HefFile:
    """Read a HEF.

    Args:
        source: A path, or the bytes.
        where: How errors name it; the path where none is given.

    Raises:
        HefError: It cannot be read or is no HEF; each kind its own (``hef_errors``). Nothing else:
            whatever the bytes are, within 2 s and 64 MB beyond them.
    """
    if isinstance(source, bytes):
        data, place = source, where or "HEF"
    else:
        place = where or str(source)
        data = _read(Path(source), place)
    container = open_container(data, place)
    try:
        return _describe(
            Message(container.description, ""), len(data), container.version, container.checksum, place
        )
    except WireError as error:
        inside = f", in {error.where}" if error.where else ""
        raise HefMalformedError(
            f"its description cannot be read: {error.what}{inside}",
            where=place,
            hint="the checksum is right, so it was written like this: compile it again",
        ) from error


def _read(path: Path, place: str) -> bytes:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_HEF_BYTES:
                raise HefOverlongError(f"has {size} bytes, at most {MAX_HEF_BYTES} are read", where=place)
            return file.read(size + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise HefUnreadableError(f"cannot be read: {reason}", where=place) from error


def _describe(root: Message, size: int, version: int, checksum: str, place: str) -> HefFile:
    header = root.message(1, "header")
    if root.count(2) > MAX_NETWORK_GROUPS:
        raise WireError(f"has more than {MAX_NETWORK_GROUPS} network groups", where=root.where)
    groups = tuple(_network_group(group) for group in root.messages(2, "network_groups"))
    if header is None or not groups:
        raise HefNoNetworkError(
            "holds no network group" if header else "does not say for which chip it is",
            where=place,
            hint="the compiler did not finish: compile it again",
        )
    return HefFile(
        size=size,
        header_version=version,
        checksum=checksum,
        architecture_code=header.integer(1),
        sdk_version=header.text(3),
        timestamp_ms=header.integer(2),
        network_groups=groups,
    )


def _network_group(group: Message) -> HefNetworkGroup:
    cores: list[Message] = []
    host: dict[str, None] = {}
    for operation in group.messages(8, "ops"):
        cores += filter(None, [operation.message(4, "core_op")])
        host |= {name: None for number, name in _HOST_OPERATIONS.items() if operation.has(number)}
    # Older files hold the network in the group itself; both kinds keep it in the first of several
    # layouts where the chip's clusters can be used in part (8L).
    networks = [_first_layout(network) for network in cores or [group]]
    metadata = [m for network in networks if (m := network.message(1, "network_group_metadata"))]
    names = (group.text(10), *(m.text(1) for m in metadata))
    contexts = [context for network in networks for context in network.messages(3, "contexts")]
    inputs, outputs = _streams(contexts)
    order = [name for network in networks for name in network.texts(4)]
    ranks = {name: rank for rank, name in reversed(list(enumerate(order)))}
    outputs.sort(key=lambda stream: ranks.get(stream.name, len(ranks)))
    return HefNetworkGroup(
        name=next(filter(None, names), ""),
        contexts=len(contexts),
        bottleneck_fps=metadata[0].float64(4) if metadata else 0.0,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        host_operations=tuple(host),
    )


def _first_layout(network: Message) -> Message:
    layout = next(network.messages(7, "layouts"), None)
    return (layout.message(1, "network") if layout else None) or network


def _streams(contexts: list[Message]) -> tuple[list[HefStream], list[HefStream]]:
    """Inputs and outputs; each once, in whichever context it comes first."""
    found: tuple[dict[str, HefStream], dict[str, HefStream]] = ({}, {})
    for context in contexts:
        for layer in _boundary_layers(context):
            direction = layer.integer(1)
            if direction > 1:
                raise WireError(f"has direction {direction}", where=layer.where)
            stream = _stream(layer)
            found[direction].setdefault(stream.name, stream)
            if len(found[0]) + len(found[1]) > MAX_STREAMS:
                raise WireError(f"has more than {MAX_STREAMS} streams", where=context.where)
    return list(found[0].values()), list(found[1].values())


def _boundary_layers(context: Message) -> Iterator[Message]:
    metadata = context.message(3, "metadata")
    for layer in metadata.messages(2, "edge_layers") if metadata else ():
        switch = layer.message(5, "context_switch_info")
        if switch is None or switch.integer(3) == _BOUNDARY:
            yield layer


def _stream(layer: Message) -> HefStream:
    kinds = [(number, kind) for number, kind in _LAYER_KINDS.items() if layer.has(number)]
    if len(kinds) != 1:
        raise WireError(f"is described {len(kinds)} times", where=layer.where)
    ((number, kind),) = kinds
    info = layer.message(number, kind)
    base = info.message(2, "edge_layer_base") if info and kind != "layer_planes" else info
    if info is None or base is None:
        raise WireError("has no shape", where=layer.where)
    if kind == "layer_planes":
        # The planes of one picture, each quantized by itself.
        return _bare_stream(info, tuple(base.integer(n) for n in (4, 5, 6)), "NHWC", 1)
    height, width, features = (base.integer(n) for n in (1, 3, 5))
    order = base.integer(7)
    shape = {2: (features,), 5: (height, width)}.get(order, (height, width, features))
    stream = _bare_stream(info, shape, ORDERS.get(order, f"unknown ({order})"), base.integer(12))
    if kind == "layer_mux":
        # Several outputs in one stream, each quantized by itself.
        return replace(stream, original_names=info.texts(6))
    return _quantized(stream, info)


def _bare_stream(info: Message, shape: tuple[int, ...], order: str, element_bytes: int) -> HefStream:
    return HefStream(
        name=info.text(1),
        shape=shape,
        order=order,
        element_bytes=element_bytes,
        scale=0.0,
        zero_point=0.0,
        limits=(0.0, 0.0),
        scales=(),
        zero_points=(),
        original_names=(),
    )


def _quantized(stream: HefStream, info: Message) -> HefStream:
    names = info.texts(5)
    numeric = info.message(3, "numeric_info")
    if numeric is None:
        return replace(stream, original_names=names)
    zero_points, scales = numeric.doubles(5), numeric.doubles(6)
    return replace(
        stream,
        # The numbers for all features together are going to be dropped from the format.
        zero_point=numeric.float32(1) if numeric.has(1) else _common(zero_points),
        scale=numeric.float32(2) if numeric.has(2) else _common(scales),
        limits=(numeric.float32(3), numeric.float32(4)),
        zero_points=_differing(zero_points),
        scales=_differing(scales),
        original_names=names,
    )


def _common(values: tuple[float, ...]) -> float:
    return values[0] if len(set(values)) == 1 else 0.0


def _differing(values: tuple[float, ...]) -> tuple[float, ...]:
    return values if len(set(values)) > 1 else ()
