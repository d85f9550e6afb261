"""gunicorn's settings. Start from the repository's root:

``gunicorn -c runtime/gunicorn.conf.py runtime.asgi:app``
"""

from __future__ import annotations

import os
import resource
import socket
import sys

from gunicorn.arbiter import Arbiter

from runtime.config import RuntimeConfig
from runtime.contract.errors import ConfigError
from runtime.load_memory import MEMORY_FD
from runtime.worker import RuntimeWorker

FILES = 4096
"""Open files that connections and everything else may want; not all that are allowed: some programs that
are started from here walk through all of them."""

try:
    _config = RuntimeConfig.from_environment(os.environ)
except ConfigError as error:
    # Refused here, the arbiter itself ends: no worker is born to die.
    sys.exit(f"runtime: {error}")

bind = _config.bind
# One process owns the chip, so one worker, whatever WEB_CONCURRENCY says; concurrency is the
# event loop's.
workers = 1
# uvicorn's, on asyncio, with our own bounds: see ARCHITECTURE.md for what was measured.
worker_class = RuntimeWorker
# The engine is opened by the worker: a device handle or a thread pool does not survive a fork.
preload_app = False
# No keepalive: how long an idle connection is kept is Limits.idle_seconds, in protocol.py.
graceful_timeout = 10
# The worker's sign of life; the bound for requests is REQUEST_TIMEOUT.
timeout = 30
control_socket_disable = True
# What is accepted in one go, before the bound on connections is looked at: with three times that many on
# their way, all descriptors are fewer than 1024.
backlog = 100
loglevel = _config.log_level.lower()
errorlog = "-"
accesslog = None


def on_starting(server: Arbiter) -> None:
    """Refuse at once what cannot work, with one line each."""
    if server.cfg.workers != 1:
        sys.exit(f"runtime: {server.cfg.workers} workers asked for: one process owns the chip, use 1")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        allowed = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    # Where there is no STATE_DIR, a worker's successor learns from this what it was loading when it died.
    os.environ[MEMORY_FD] = str(os.memfd_create("loading"))
    inherited = "GUNICORN_FD" in os.environ or "LISTEN_FDS" in os.environ
    if not inherited:
        _check_free(_config.host, _config.port)


def nworkers_changed(server: Arbiter, new: int, old: int | None) -> None:
    """Take back what ``SIGTTIN`` asks for, before a second worker starts; 0 is the way to the end."""
    if old is not None and new > 1:
        server.log.warning("one process owns the chip: still 1 worker")
        server.num_workers = 1


def _check_free(host: str, port: int) -> None:
    """Try the address first: gunicorn itself would repeat for five seconds."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            sys.exit(f"runtime: cannot listen on {host}:{port}: {error.strerror}; set HOST and PORT")
