"""In place of ssh: runs the remote command here, counts what it sends, and stops after so many bytes.

``python rsh.py [--log FILE] [--stop BYTES] [--at FOLDER] HOST COMMAND...``; with ``--at``, as an account
whose key allows nothing but ``rrsync -ro FOLDER``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log")
    parser.add_argument("--stop", type=int)
    parser.add_argument("--at")
    parser.add_argument("-l", dest="user")
    parser.add_argument("host")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    for descriptor in (0, 1):
        os.set_blocking(descriptor, True)  # rsync's are not
    command, environment = ["sh", "-c", " ".join(asked.command)], dict(os.environ)
    if asked.at:
        environment["SSH_ORIGINAL_COMMAND"] = " ".join(asked.command)
        command = ["rrsync", "-ro", asked.at]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as remote:
        assert remote.stdin is not None
        assert remote.stdout is not None
        sending = threading.Thread(target=forward, args=(0, remote.stdin.fileno()), daemon=True)
        sending.start()
        sent = 0
        while piece := os.read(remote.stdout.fileno(), 65536):
            if asked.stop is not None and sent >= asked.stop:
                sending.join()  # until rsync here has ended: as a line that is dead
                remote.kill()
                break
            os.write(1, piece)
            sent += len(piece)
        if asked.log:
            with open(asked.log, "a") as log:  # noqa: PTH123  starts faster
                log.write(f"{asked.host} {sent}\n")
    return remote.returncode


def forward(source: int, to: int) -> None:
    while piece := os.read(source, 65536):
        os.write(to, piece)
    os.close(to)


if __name__ == "__main__":
    sys.exit(main())
