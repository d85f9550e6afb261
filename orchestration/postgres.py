"""A Postgres of our own, from Debian's package, for one machine: a cluster in a folder, on 127.0.0.1."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Final

from orchestration.processes import Child, Children
from runtime.contract.errors import PipelineError

HOST: Final = "127.0.0.1"
USER: Final = "dagster"
DATABASE: Final = "dagster"
DEBIAN: Final = Path("/usr/lib/postgresql")
START_SECONDS: Final = 60.0
_SERVES_AS: Final = ("postgres", "nobody")
"""Whom a server that root starts runs as, the first that there is: Postgres refuses to be root."""


class PostgresError(PipelineError):
    """Postgres is not there, or does not start."""

    code = "postgres"


def binaries(version: str = "", debian: Path = DEBIAN) -> Path:
    """The folder of a version's programs; of the newest one where none is named.

    Raises:
        PostgresError: It is not installed.
    """
    found = [path for path in debian.glob("*/bin") if (path / "postgres").exists()]
    found = [path for path in found if version in ("", path.parent.name)]
    if not found:
        raise PostgresError(
            f"Postgres {version} is not installed" if version else "Postgres is not installed",
            where=str(debian),
            hint=f"apt-get install postgresql{'-' + version if version else ''}",
        )
    return max(found, key=lambda path: [int(part) for part in path.parent.name.split(".") if part.isdigit()])


class Cluster:
    """Databases of one Dagster instance.

    Args:
        folder: Where it lies; made where it is not there. Where we are root, another user must get there.
        port: Where it listens.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.data = folder / "data"
        self._password = folder / "password"
        self._owner = _owner() if os.geteuid() == 0 else None

    @property
    def password(self) -> str:
        """Of ``USER``; made with the cluster, readable by its owner only."""
        return self._password.read_text()

    def _as_owner(self, *command: str | Path) -> list[str | Path]:
        if self._owner is None:
            return list(command)
        ids = ["--reuid", str(self._owner.pw_uid), "--regid", str(self._owner.pw_gid), "--clear-groups"]
        # A change of user takes away what ends a child with its parent.
        return ["setpriv", *ids, "--pdeathsig", "INT", "--", *command]

    def make(self) -> None:
        """Make the cluster where there is none yet.

        Raises:
            PostgresError: Postgres is not installed, cannot get at the folder, or says why not.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._hand_over(self.folder, 0o700)
        self._check_reachable()
        if (self.data / "PG_VERSION").exists():
            return
        fresh = self.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)  # of a start that was broken off
        self._password.write_text(secrets.token_urlsafe(24))
        self._hand_over(self._password, 0o600)
        options = ["-U", USER, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"]
        options += [f"--pwfile={self._password}", "-D", str(fresh)]
        made = subprocess.run(
            self._as_owner(binaries() / "initdb", *options),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise PostgresError(f"initdb failed: {made.stderr.strip()[-500:]}", where=str(self.folder))
        fresh.rename(self.data)

    def _hand_over(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        if self._owner:
            os.chown(path, self._owner.pw_uid, self._owner.pw_gid)

    def _check_reachable(self) -> None:
        test = self._as_owner("test", "-w", self.folder)
        if self._owner and subprocess.run(test, cwd="/", check=False).returncode:
            raise PostgresError(
                f"user {self._owner.pw_name} cannot get at this folder, and Postgres does not run as root",
                where=str(self.folder),
                hint="--folder somewhere below folders that everybody may pass, or do not be root",
            )

    def start(self, children: Children, log: Path) -> Child:
        """Start the server; returns when it answers and the database is there.

        Raises:
            PostgresError: It ended, or does not answer; with its last lines.
        """
        postgres = binaries((self.data / "PG_VERSION").read_text().strip()) / "postgres"
        settings = [f"port={self.port}", f"listen_addresses={HOST}", "unix_socket_directories="]
        options = [word for setting in settings for word in ("-c", setting)]
        child = children.start(
            "postgres",
            self._as_owner(postgres, "-D", self.data.resolve(), *options),
            environment={"LC_ALL": "C.UTF-8"},
            log=log,
        )
        if not child.wait_for(self.answers, START_SECONDS):
            raise PostgresError(f"does not answer\n{child.last_lines()}", where=f"{HOST}:{self.port}")
        self._make_database()
        return child

    def answers(self) -> bool:
        """Whether it takes connections."""
        import psycopg2

        try:
            psycopg2.connect(**self.settings("postgres")).close()
        except psycopg2.OperationalError:
            return False
        return True

    def settings(self, database: str = DATABASE) -> dict[str, str]:
        """What psycopg2 connects with."""
        return {
            "host": HOST,
            "port": str(self.port),
            "user": USER,
            "password": self.password,
            "dbname": database,
        }

    def _make_database(self) -> None:
        import psycopg2

        connection = psycopg2.connect(**self.settings("postgres"))
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                if cursor.fetchone() is None:
                    cursor.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            connection.close()


def _owner() -> pwd.struct_passwd:
    for name in _SERVES_AS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresError(
        f"no user {' or '.join(_SERVES_AS)}, and Postgres does not run as root",
        hint="apt-get install postgresql, or do not be root",
    )
