"""HailoRT's wheel and Debian package as doubles: names, what they ask for, where they put things."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Final

from tests.doubles.hailo import PLACE
from tests.image import ARCHITECTURE, run

# As in setup.py of HailoRT 4.20 to 4.23.
REQUIRES: Final = ("argcomplete", "contextlib2", "future", "netaddr", "netifaces", "numpy<2")
_AS_THE_REAL_ONE_IMPORTS: Final = """
import ctypes, os, netaddr, netifaces
os.environ.setdefault("HAILO_DOUBLE", "/nonexistent")
try:
    ctypes.CDLL("libhailort.so.{version}")
except OSError as error:
    # One that is found is only text, which no loader takes.
    if "No such file" in str(error):
        raise ImportError(str(error)) from None
"""


def wheel_name(version: str = "4.23.0") -> str:
    """As Hailo names it, for this machine."""
    return f"hailort-{version}-cp311-cp311-linux_{os.uname().machine}.whl"


def package_name(version: str = "4.23.0") -> str:
    """As Hailo names it, for this machine."""
    return f"hailort_{version}_{ARCHITECTURE}.deb"


def make_wheel(folder: Path, version: str = "4.23.0") -> Path:
    """A wheel with the double of ``hailo_platform``; it wants its library, as the compiled one does."""
    contents = {
        str(path.relative_to(PLACE)): path.read_text()
        for path in (PLACE / "hailo_platform").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    text, start = contents["hailo_platform/__init__.py"], _AS_THE_REAL_ONE_IMPORTS
    contents["hailo_platform/__init__.py"] = start.format(version=version) + text
    about = f"hailort-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {each}\n" for each in REQUIRES)
    contents[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: hailort\nVersion: {version}\n{needs}"
    tag = "cp311-cp311-linux_" + os.uname().machine
    contents[f"{about}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n"
    record = f"{about}/RECORD"
    contents[record] = "".join(f"{name},,\n" for name in [*contents, record])
    path = folder / wheel_name(version)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def make_package(folder: Path, version: str = "4.23.0", lib: str = "usr/lib", command: bool = True) -> Path:
    """A Debian package with a library that is text, what is the host's, and scripts that must not run.

    Args:
        folder: Where it is made.
        version: HailoRT's.
        lib: Where in it the library lies.
        command: Whether ``hailortcli`` is in it.
    """
    root = folder / "hailort-package"
    contents = {
        "DEBIAN/control": f"Package: hailort\nVersion: {version}\nArchitecture: {ARCHITECTURE}\n"
        "Maintainer: a test\nDescription: a double\n",
        "DEBIAN/postinst": "#!/bin/sh\nexit 1\n",
        f"{lib}/libhailort.so.{version}": "no library\n",
        "usr/include/hailo/hailort.h": "\n",
        "usr/lib/cmake/HailoRT/HailoRTConfig.cmake": "\n",
        "usr/lib/udev/rules.d/52-hailo.rules": "\n",
        "usr/local/bin/hailort_service": "#!/bin/sh\nexit 1\n",
        "lib/systemd/system/hailort.service": "[Service]\n",
        "lib/udev/rules.d/51-hailo-udev.rules": "\n",
        "etc/default/hailort_service": "\n",
    }
    if command:
        contents |= dict.fromkeys(("usr/bin/hailortcli", "usr/bin/another"), "#!/bin/sh\nexit 1\n")
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / lib / "libhailort.so").symlink_to(f"libhailort.so.{version}")
    for name, content in contents.items():
        if content.startswith("#!"):
            (root / name).chmod(0o755)
    path = folder / package_name(version)
    made = run("dpkg-deb", "--root-owner-group", "--build", root, path)
    assert made.returncode == 0, made.stderr
    return path
