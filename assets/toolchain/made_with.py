"""What a target's artifacts are made with, told in milliseconds: no compiler is imported or started."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Final

from assets.toolchain import EMULATOR_TOOLS
from assets.toolchain.dfc_config import load_config, recorded
from runtime.contract.document import sha256_bytes, to_json

UNKNOWN: Final = "unknown"
_DFC_FOLDER: Final = re.compile(r"hailo_dataflow_compiler-(?P<version>[^-]+)\.(?:dist|egg)-info", re.I)


def made_with(target: str, *, dfc_python: str = "") -> str:
    """Digest of the versions and the configuration by which a target's long steps are made.

    Where it changes, what they made is out of date. How long a step may take is no part of it.

    Args:
        target: One of ``TARGETS``.
        dfc_python: The Python that has Hailo's Dataflow Compiler; only its folder is looked at.

    Raises:
        ManifestError: ``dfc_config.json`` is not right; names the field.
    """
    if target == "emulator":
        said = {name: metadata.version(name) for name in EMULATOR_TOOLS}
    else:
        said = {"dfc": installed_dfc(dfc_python), **recorded(load_config(), target)}
    return sha256_bytes(to_json(said))


def installed_dfc(dfc_python: str) -> str:
    """The version of the compiler that lies beside a Python in its environment; ``unknown`` where none does.

    It decides nothing but whether to build again: the compiler itself is asked when it is used.
    """
    environment = Path(dfc_python).parent.parent
    if "/" not in dfc_python:
        return UNKNOWN
    folders = environment.glob("lib/python3*/site-packages/*info")
    found = sorted({match["version"] for folder in folders if (match := _DFC_FOLDER.fullmatch(folder.name))})
    return ", ".join(found) or UNKNOWN
