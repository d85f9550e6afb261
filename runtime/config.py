"""The environment, read once: every setting of the runtime, checked before anything starts."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from runtime.contract.channels import CHANNELS
from runtime.contract.errors import ConfigError
from runtime.contract.release import TARGETS
from runtime.contract.trust import DEFAULT_TRUST_ROOT
from runtime.contract.version import VERSION as VERSION

DEFAULT_STORE: Final = "artifacts/releases"
LOG_LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
CANARY_MODES: Final = ("off", "shadow")
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig:
    """Settings of one runtime process.

    Args:
        release_store: Directory of the release store (``RELEASE_STORE``).
        release_channel: ``canary`` or ``stable`` (``RELEASE_CHANNEL``).
        hef_path: A release directory or the artifact in one, instead of a channel (``HEF_PATH``).
        num_motifs: How many motifs the clients expect; None accepts any (``NUM_MOTIFS``).
        target: One of ``TARGETS``; None takes the store's only one (``TARGET``).
        host: Address to listen on (``HOST``).
        port: TCP port to listen on, 1 to 65535 (``PORT``).
        hailo_lock_dir: Folder of the lock that lets one process on the chip; None for the usual ones
            (``HAILO_LOCK_DIR``).
        trust_root: The root of trust: whose signatures count (``TRUST_ROOT``).
        state_dir: Small and writable: what was seen of the store is remembered in it; None for this process
            alone (``STATE_DIR``).
        request_timeout: Seconds from a request's first byte to its last, 1 to 3600 (``REQUEST_TIMEOUT``).
        canary_mode: ``off``, or ``shadow``: canary runs beside stable on the same windows (``CANARY_MODE``).
        telemetry_dir: Where windows are kept that are uncertain or unusual; None keeps none
            (``TELEMETRY_DIR``).
        telemetry_max_mb: Size of all of them together, 1 to 100000 (``TELEMETRY_MAX_MB``).
        telemetry_per_minute: How many a minute each reason lets in, 1 to 60000 (``TELEMETRY_PER_MINUTE``).
        telemetry_margin: A first motif that leads by less is uncertain, 0 to 1 (``TELEMETRY_MARGIN``).
        telemetry_distance: A latent farther out than so many times the rim of calibration is unusual, 0.1 to
            1000 (``TELEMETRY_DISTANCE``).
        log_level: One of ``LOG_LEVELS`` (``LOG_LEVEL``).
    """

    release_store: Path = Path(DEFAULT_STORE)
    release_channel: str = "stable"
    hef_path: Path | None = None
    num_motifs: int | None = None
    target: str | None = None
    host: str = "127.0.0.1"
    port: int = 9000
    hailo_lock_dir: Path | None = None
    trust_root: Path = Path(DEFAULT_TRUST_ROOT)
    state_dir: Path | None = None
    request_timeout: int = 30
    canary_mode: str = "off"
    telemetry_dir: Path | None = None
    telemetry_max_mb: int = 64
    telemetry_per_minute: int = 10
    telemetry_margin: float = 0.2
    telemetry_distance: float = 1.25
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> RuntimeConfig:
        """Read the settings; an empty value counts as unset, foreign variables are ignored.

        Raises:
            ConfigError: At least one value does not parse; names every such variable, its value
                and what is allowed.
        """
        reader = _Reader(environment)
        config = cls(
            release_store=reader.read("RELEASE_STORE", Path, Path(DEFAULT_STORE)),
            release_channel=reader.read("RELEASE_CHANNEL", _one_of(CHANNELS), "stable"),
            hef_path=reader.read("HEF_PATH", Path, None),
            num_motifs=reader.read("NUM_MOTIFS", _integer(1, 999_999), None),
            target=reader.read("TARGET", _one_of(TARGETS), None),
            host=reader.read("HOST", _host, "127.0.0.1"),
            port=reader.read("PORT", _integer(1, 65535), 9000),
            hailo_lock_dir=reader.read("HAILO_LOCK_DIR", Path, None),
            trust_root=reader.read("TRUST_ROOT", Path, Path(DEFAULT_TRUST_ROOT)),
            state_dir=reader.read("STATE_DIR", Path, None),
            request_timeout=reader.read("REQUEST_TIMEOUT", _integer(1, 3600), 30),
            canary_mode=reader.read("CANARY_MODE", _one_of(CANARY_MODES), "off"),
            telemetry_dir=reader.read("TELEMETRY_DIR", Path, None),
            telemetry_max_mb=reader.read("TELEMETRY_MAX_MB", _integer(1, 100_000), 64),
            telemetry_per_minute=reader.read("TELEMETRY_PER_MINUTE", _integer(1, 60_000), 10),
            telemetry_margin=reader.read("TELEMETRY_MARGIN", _number(0, 1), 0.2),
            telemetry_distance=reader.read("TELEMETRY_DISTANCE", _number(0.1, 1000), 1.25),
            log_level=reader.read("LOG_LEVEL", lambda text: _one_of(LOG_LEVELS)(text.upper()), "INFO"),
        )
        if config.canary_mode == "shadow" and (config.hef_path or config.release_channel != "stable"):
            reader.problems.append("CANARY_MODE='shadow': needs RELEASE_CHANNEL=stable, and no HEF_PATH")
        if reader.problems:
            raise ConfigError("; ".join(reader.problems))
        return config

    @property
    def bind(self) -> str:
        """``HOST:PORT`` as gunicorn takes it; IPv6 addresses in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.problems: list[str] = []

    def read(self, name: str, parse: Callable[[str], T], default: T) -> T:
        text = self._environment.get(name, "")
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self.problems.append(f"{name}={text[:80]!r}: {error}")
            return default


def _one_of(allowed: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return parse


def _integer(smallest: int, largest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() would also take "1_000", " 9000 " and the digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,9}", text) or not smallest <= int(text) <= largest:
            raise ValueError(f"must be a whole number from {smallest} to {largest}")
        return int(text)

    return parse


def _number(smallest: float, largest: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        # float() would also take "nan", "1_0" and the digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) or not smallest <= float(text) <= largest:
            raise ValueError(
                f"must be a number from {smallest:g} to {largest:g}, such as {largest:g} or 0.25"
            )
        return float(text)

    return parse


def _host(text: str) -> str:
    if ":" in text:
        try:
            return str(ipaddress.IPv6Address(text))
        except ValueError:
            raise ValueError("must be an address or a host name, without a port") from None
    if not _HOST_NAME.fullmatch(text):
        raise ValueError("must be an address or a host name, such as 127.0.0.1 or 0.0.0.0")
    return text
