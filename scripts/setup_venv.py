"""Make a virtual environment with the packages that the lock files name, at exactly those versions.

    python3 scripts/setup_venv.py --venv .venv --lock locks/build.txt --torch --editable

Quick when nothing changed; what an interruption left half done, the next run completes. What a lock no
longer names stays until `make clean`. Whatever goes wrong is said in one line, with exit code 2; pip's own
output is in setup.log inside the environment.

The syntax is Python 3.6's, and annotations are quoted, so that an old interpreter can say it is too old.
"""

import argparse
import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Mapping

OLDEST, TOO_NEW = (3, 11), (3, 14)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# torch has no hash pin: the CPU build, the CUDA build and a local wheel are three different files. What
# torch itself needs is pinned by hash in the locks (locks/torch-requires.in), and must not move.
TORCH = "2.13.0"

# Where pip may look and how it gets there is the user's to say; what it does and where to is ours. A
# PIP_DRY_RUN or PIP_PYTHON that is set for something else would leave the environment empty and call it made.
PIP_SETTINGS = (
    *("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX", "CONFIG_FILE", "CONSTRAINT", "USE_FEATURE"),
    *("CERT", "CLIENT_CERT", "TRUSTED_HOST", "PROXY", "KEYRING_PROVIDER"),
    *("TIMEOUT", "DEFAULT_TIMEOUT", "RETRIES", "CACHE_DIR", "NO_CACHE_DIR"),
)

STAMP, LOG = "setup.stamp", "setup.log"
NO_WHEEL = "the index has no wheel for this Python and machine"

# What pip wrote -> what it means. The first match wins, so causes come before their consequences.
CAUSES = (
    ("DO NOT MATCH THE HASHES", "a download does not match its hash; check the index or clear pip's cache"),
    ("No space left|quota exceeded", "the disk is full; free some space"),
    ("CERTIFICATE|ssl certificate", "the index's certificate is not trusted; set PIP_CERT to your CA file"),
    ("not a trusted or secure host", "pip does not trust the index; use https or set PIP_TRUSTED_HOST"),
    ("ProxyError", "the proxy refuses or cannot be reached; check http_proxy and https_proxy"),
    ("name resolution|Name or service", "no network: the package index's name is not found; check the DNS"),
    ("NewConnection|ConnectTimeout", "no network: the package index cannot be reached; check pip's index"),
    ("Read timed out|ReadTimeout", "the package index is too slow; try again or raise PIP_DEFAULT_TIMEOUT"),
    ("after connection broken by", "the connection to the package index broke; try again"),
    ("40[137] Client Error|HTTP error 40[137]", "the package index refuses; check pip's index setting"),
    ("50. Server Error|HTTP error 50.", "the package index has a fault; try again later"),
    ("No matching distribution found", NO_WHEEL),
    ("Permission denied", "a file may not be written; check who owns the environment"),
    ("package directory", "pyproject.toml lists a package whose folder does not exist"),
)


class SetupError(Exception):
    """What happened and what to do, in one line."""


def refusal(version: "tuple[int, ...]", platform: str, libc: str) -> "str | None":
    """Say in one line why this machine cannot run the project, or return None."""
    if not OLDEST <= version[:2] < TOO_NEW:
        need = "3.11, 3.12 or 3.13 is needed; try `make setup PYTHON=python3.11`"
        return "Python %s is not supported: %s" % (".".join(map(str, version[:3])), need)
    if not platform.startswith("linux"):
        return "%s is not supported: use Linux (a virtual machine or a container will do)" % platform
    if not libc.startswith("glibc"):
        return "this Linux has no glibc (Alpine?), and the wheels need it: use Debian, Ubuntu or Fedora"
    return None


def libc_name() -> str:
    """Return for instance `glibc 2.36`, or an empty string where the C library is another one."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    return ""


def fingerprint(options: argparse.Namespace) -> str:
    """Digest everything that decides what the environment holds."""
    facts = (os.path.realpath(options.venv), sys.version_info[:2], options.torch and TORCH, options.editable)
    digest = hashlib.sha256(repr(facts).encode())
    for path in options.lock + ([os.path.join(ROOT, "pyproject.toml")] if options.editable else []):
        try:
            with open(path, "rb") as f:
                digest.update(b"\0" + hashlib.sha256(f.read()).digest())
        except OSError as e:
            raise SetupError("%s: %s; run from the project's folder" % (path, e.strerror)) from None
    return digest.hexdigest()


def read_stamp(venv: str) -> "list[str]":
    """Return the finished environment's [fingerprint, torch build], or nothing."""
    with contextlib.suppress(OSError), open(os.path.join(venv, STAMP)) as f:
        return f.read().split()
    return []


def wanted_torch(options: argparse.Namespace, stamp: "list[str]") -> str:
    """Return `none`, `cpu` or `cuda`; a choice once made stays until TORCH_CUDA says otherwise."""
    if not options.torch:
        return "none"
    asked = os.environ.get("TORCH_CUDA", "")
    if not asked and stamp[1:] in (["cpu"], ["cuda"]):
        return stamp[1]
    return "cpu" if asked in ("", "0") else "cuda"


def is_fresh(options: argparse.Namespace) -> bool:
    stamp = read_stamp(options.venv)
    python = os.path.join(options.venv, "bin", "python")  # a dangling link if its Python is gone
    return stamp == [fingerprint(options), wanted_torch(options, stamp)] and os.path.exists(python)


def is_usable(venv: str) -> bool:
    """Whether pip is installed there, for this Python, and the folder still lies where it was made."""
    try:
        with open(os.path.join(venv, "bin", "pip")) as f:
            made_in = re.search(r"""^(?:#!|'''exec' )"?(/.+?)/bin/python""", f.read(4096), re.MULTILINE)
        parts = (os.path.join(venv, "bin", "python"), os.path.join(library(venv), "pip"))
        return all(map(os.path.exists, parts)) and made_in is not None and os.path.samefile(made_in[1], venv)
    except (OSError, UnicodeDecodeError):
        return False


def library(venv: str) -> str:
    return os.path.join(venv, "lib", "python%d.%d" % sys.version_info[:2], "site-packages")


def drop_half_installed(venv: str) -> None:
    """Forget packages whose installation was interrupted: pip writes RECORD last, but never looks."""
    import shutil

    for name in os.listdir(library(venv)):
        metadata = os.path.join(library(venv), name)
        if name.endswith(".dist-info") and not os.path.exists(os.path.join(metadata, "RECORD")):
            shutil.rmtree(metadata)


def make_venv(venv: str) -> None:
    import shutil
    import subprocess

    try:
        __import__("venv"), __import__("ensurepip")
    except ImportError as e:
        name = "python%d.%d" % sys.version_info[:2]
        hint = "on Debian and Ubuntu: apt-get install %s-venv (or python3-venv)" % name
        raise SetupError("%s lacks its `%s` module; %s" % (name, e.name, hint)) from None
    if os.path.islink(venv) or os.path.isfile(venv):
        raise SetupError("%s is a link or a file, expected a folder; move it away" % venv)
    if os.path.isdir(venv) and os.listdir(venv) and not os.path.exists(os.path.join(venv, "pyvenv.cfg")):
        raise SetupError("%s holds other files and is no virtual environment; move it away" % venv)
    say("venv: %s (Python %s)" % (venv, sys.version.split()[0]))
    # The base interpreter, because the running one may be the very environment that goes away.
    base = getattr(sys, "_base_executable", None) or sys.executable
    shutil.rmtree(venv, ignore_errors=True)
    made = subprocess.run([base, "-m", "venv", venv], capture_output=True, text=True, check=False)
    if made.returncode:
        lines = (made.stdout + made.stderr).strip().splitlines() or ["no output"]
        raise SetupError("`%s -m venv %s` failed: %s" % (base, venv, explain(lines, lines[-1])))


def explain(lines: "list[str]", otherwise: str) -> str:
    """Name the likely cause of what pip or venv wrote, in plain words."""
    text = "\n".join(lines)
    cause = next((meaning for sign, meaning in CAUSES if re.search(sign, text)), otherwise)
    missing = re.findall("No matching distribution found for ([^ \n]*)", text)
    return "%s (%s)" % (cause, missing[-1]) if cause == NO_WHEEL and missing else cause


def pip_environment(environment: "Mapping[str, str]") -> "dict[str, str]":
    """Drop what would make pip do something else; PYTHONPATH would count foreign packages as installed."""
    return {
        key: value
        for key, value in environment.items()
        if key not in ("PYTHONPATH", "PYTHONHOME")
        and (not key.startswith("PIP_") or key[len("PIP_") :] in PIP_SETTINGS)
    }


def pip(venv: str, *arguments: str) -> str:
    """Run the environment's pip, adding what it writes to the log; return its standard output."""
    import subprocess

    env = pip_environment(os.environ)
    env.setdefault("PIP_RETRIES", "1")  # without a network, say so soon
    if "PIP_TIMEOUT" not in env:
        env.setdefault("PIP_DEFAULT_TIMEOUT", "30")
    env.update(PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_PROGRESS_BAR="off")
    command = [os.path.join(venv, "bin", "python"), "-m", "pip", *arguments]
    with open(os.path.join(venv, LOG), "a+") as f:
        f.write("$ %s\n" % " ".join(command))
        f.flush()
        start = f.tell()
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=f, text=True, check=False)
        f.seek(0, os.SEEK_END)
        f.write(done.stdout)
        f.seek(start)
        lines = f.read().splitlines()
    if done.returncode:
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip wrote nothing"]
        raise SetupError("%s. pip's output: %s" % (explain(lines, errors[-1].rstrip(".")), f.name))
    return done.stdout


def pins(locks: "list[str]") -> "list[str]":
    """Return the locked `name==version ; marker` lines without extras and hashes.

    pip takes no extras in a constraint file, and a hash in one turns on its hash mode for everything.
    """
    found = {}  # type: dict[str, None]
    for lock in locks:
        with open(lock) as f:
            for line in f:
                if "==" in line and line[0] not in " #":
                    name, _, rest = line.rstrip(" \\\n").partition("==")
                    found[name.split("[")[0] + "==" + rest] = None
    return list(found)


def install_torch(venv: str, locks: "list[str]", build: str) -> None:
    import json

    import torch_source

    constraints, report = os.path.join(venv, "setup.constraints"), os.path.join(venv, "setup.report")
    with open(constraints, "w") as f:
        f.write("\n".join([*pins(locks), ""]))
    request = ["install", *torch_source.index_options(build), "-c", constraints, "torch==" + TORCH]
    pip(venv, *request, "--quiet", "--dry-run", "--report", report)
    with open(report) as f:
        downloads = json.load(f)["install"]
    os.remove(report)
    if downloads:
        say(torch_source.announcement(downloads))
        pip(venv, *request)


def set_up(options: argparse.Namespace) -> None:
    stamp = read_stamp(options.venv)
    torch = wanted_torch(options, stamp)
    done = "%s %s\n" % (fingerprint(options), torch)
    for name in (STAMP, LOG):
        with contextlib.suppress(OSError):
            os.remove(os.path.join(options.venv, name))
    if not is_usable(options.venv):
        make_venv(options.venv)
    drop_half_installed(options.venv)
    count = len({pin.split("==")[0] for pin in pins(options.lock)})
    say("packages: %d pinned from %s" % (count, ", ".join(options.lock)))
    # No source packages: building one would fetch and run build tools that no lock names.
    locks = [word for lock in options.lock for word in ("-r", lock)]
    pip(options.venv, "install", "--require-hashes", "--only-binary", ":all:", *locks)
    if torch != "none":
        if stamp[1:] not in ([], ["none"], [torch]):
            pip(options.venv, "uninstall", "--yes", "torch")  # both builds have the same version number
        install_torch(options.venv, options.lock, torch)
    if options.editable:
        say("releasectl: %s" % os.path.join(options.venv, "bin", "releasectl"))
        pip(options.venv, "install", "--no-deps", "--no-build-isolation", "-e", ROOT)
    with open(os.path.join(options.venv, STAMP), "w") as f:
        f.write(done)


def take_turn(folder: str) -> int:
    """Wait until no other setup works in a folder; the turn ends when the returned handle is closed."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another setup in %s" % folder)
        fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def parse(arguments: "list[str] | None") -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make a virtual environment from lock files.")
    parser.add_argument("--venv", required=True, help="the environment's folder")
    parser.add_argument("--lock", required=True, action="append", help="pins with hashes; repeatable")
    parser.add_argument("--torch", action="store_true", help="also torch; TORCH_CUDA=1: its CUDA build")
    parser.add_argument("--editable", action="store_true", help="also this project, for its commands")
    return parser.parse_args(arguments)


def say(line: str) -> None:
    print(line, flush=True)


def main(arguments: "list[str] | None" = None) -> int:
    options = parse(arguments)
    try:
        reason = refusal(tuple(sys.version_info[:3]), sys.platform, libc_name())
        if reason:
            raise SetupError(reason)
        if is_fresh(options):
            return 0
        import signal

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that pip is ended with us
        turn = take_turn(os.path.dirname(os.path.abspath(options.venv)))
        try:
            if not is_fresh(options):
                set_up(options)
        finally:
            os.close(turn)
    except (SetupError, OSError) as e:
        print("setup: %s" % e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("setup: interrupted; the next run completes it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
