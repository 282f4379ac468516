"""A private PostgreSQL cluster: made, started, crashed and removed by a test.

It listens on a Unix socket in its own folder and nowhere else. PostgreSQL refuses to run as root,
so root hands every server program to an unprivileged user; clients run as whoever calls. The
fixtures that tests use are described in conftest.py.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psycopg
from psycopg import sql

ROOT = Path(__file__).resolve().parents[2]

DEFAULTS = {
    "listen_addresses": "",
    "fsync": "off",  # nothing outlives the machine here; what kill -9 leaves behind needs no fsync
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "max_connections": "50",
    "shared_buffers": "64MB",
    "wal_level": "logical",
    "max_prepared_transactions": "20",
    # Tests of rows see the events of rows alone; coveragelib.py has the clusters of those that are about DDL and coverage.
    "audit.log_ddl": "off",
}


def build_folder() -> Path:
    """Where the project's scripts keep what they make: they decide, and tell."""
    given = os.environ.get("AUDIT_BUILD")
    if given:
        return Path(given)
    return Path(subprocess.check_output([ROOT / "scripts" / "build-dir"], text=True).strip())


def pg_config_of(version: str | int) -> Path:
    return build_folder() / "pg" / str(version) / "bin" / "pg_config"


class Cluster:
    """A cluster of its own, as the installation of `pg_config` makes it. Call start()."""

    user = "postgres"

    def __init__(self, pg_config: str | os.PathLike | None = None, conf: dict | None = None):
        self.pg_config = Path(pg_config or pg_config_of(os.environ.get("AUDIT_PG", "15")))
        self.bin_dir = Path(self._pg_config("--bindir"))
        self.version = int(self._pg_config("--version").split()[1].split(".")[0])
        self.port = 5432  # names the socket; no TCP port is opened
        self.system_user = _unprivileged_user()
        # A short path, as a socket's may have 107 bytes. The test runner's own folder, where there
        # is one, lets it sweep up after a test run that was killed.
        self.folder = Path(tempfile.mkdtemp(prefix="ax.", dir=os.environ.get("AUDIT_TMP", "/tmp")))
        self.socket_dir = self.folder
        self.data_dir = self.folder / "data"
        self.log_file = self.folder / "log"
        self.scratch = self.folder / "scratch"
        self._hand_over(self.folder)
        self.scratch.mkdir()
        self._hand_over(self.scratch)
        self.env = {
            "PGHOST": str(self.socket_dir),
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGDATABASE": "postgres",
        }
        self.run(
            [self.bin("initdb"), "-D", self.data_dir, "-A", "trust", "-U", self.user]
            + ["-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        )
        self.configure(**{**DEFAULTS, "unix_socket_directories": self.socket_dir, **(conf or {})})

    # Server

    def start(self, wait: bool = True) -> "Cluster":
        """Starts it and waits until it takes connections, through crash recovery if need be."""
        command = [self.bin("pg_ctl"), "start", "-D", self.data_dir, "-l", self.log_file]
        try:
            # No pipes: the server inherits them, and who reads them would wait for its end.
            self.run(command + (["-w", "-t", "120"] if wait else ["-W"]), capture=False)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"server does not start:\n{self.log[-4000:]}") from error
        return self

    def stop(self, mode: str = "fast") -> None:
        self.run([self.bin("pg_ctl"), "stop", "-D", self.data_dir, "-m", mode, "-w", "-t", "120"])

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    def await_ready(self) -> None:
        """Waits until it takes connections: after the crash of a backend it recovers by itself."""
        deadline = time.monotonic() + 120
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or not self.running:
                    raise
                time.sleep(0.05)

    def reload(self) -> None:
        self.run([self.bin("pg_ctl"), "reload", "-D", self.data_dir])

    def kill9(self) -> None:
        """kill -9 of the postmaster, then of what is left of its processes; back when all are gone."""
        postmaster = self.pid
        if postmaster is None:
            raise RuntimeError("server is not running")
        children = _children(postmaster)
        os.kill(postmaster, signal.SIGKILL)
        children |= _children(postmaster)
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while any(_alive(pid) for pid in children | {postmaster}):
            if time.monotonic() > deadline:
                raise RuntimeError("processes of the killed server do not go away")
            time.sleep(0.01)
        if _stat(postmaster) is not None:
            # A zombie, where the machine's first process reaps late or never. PostgreSQL would take
            # its process id, in the lock files, for a server that still runs.
            (self.data_dir / "postmaster.pid").unlink(missing_ok=True)
            (self.socket_dir / f".s.PGSQL.{self.port}.lock").unlink(missing_ok=True)

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, None if there is none alive."""
        try:
            pid = int((self.data_dir / "postmaster.pid").read_text().split("\n")[0])
        except (OSError, ValueError):
            return None
        return pid if _alive(pid) else None

    @property
    def running(self) -> bool:
        return self.pid is not None

    def remove(self) -> None:
        """Stops it whatever it does, and removes its files."""
        if self.running:
            # Where coverage is measured, processes must come to the exit that writes their counters.
            mode = "fast" if "LLVM_PROFILE_FILE" in os.environ else "immediate"
            with suppress(subprocess.CalledProcessError):
                self.stop(mode)
        if self.running:
            self.kill9()
        shutil.rmtree(self.folder, ignore_errors=True)

    def configure(self, **settings) -> None:
        """Appends to postgresql.conf, as name="value" or **{"audit.enabled": "off"}."""
        with open(self.data_dir / "postgresql.conf", "a", encoding="utf-8") as file:
            for name, value in settings.items():
                text = str(value).replace("'", "''")
                file.write(f"{name} = '{text}'\n")

    @property
    def log(self) -> str:
        """The server log so far."""
        try:
            return self.log_file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    # Clients

    def dsn(self, dbname: str = "postgres", **kw) -> str:
        kw = {"host": self.socket_dir, "port": self.port, "user": self.user, "dbname": dbname, **kw}
        return psycopg.conninfo.make_conninfo(**{key: str(value) for key, value in kw.items()})

    def connect(self, dbname: str = "postgres", **kw) -> psycopg.Connection:
        """A psycopg connection, with autocommit unless told otherwise."""
        own = {"host": str(self.socket_dir), "port": self.port, "user": self.user, "dbname": dbname}
        return psycopg.connect(**{**own, "autocommit": True, **kw})

    def psql(self, text: str, dbname: str = "postgres", user: str | None = None) -> str:
        """What `psql -X -A -t` prints for a script; raises on its first error."""
        command = [self.bin("psql"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]
        command += ["-d", dbname, "-U", user or self.user, "-f", "-"]
        done = subprocess.run(
            command, input=text, env={**os.environ, **self.env}, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"psql failed with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout.rstrip("\n")

    def create_db(self, name: str, template: str | None = None) -> None:
        query = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template:
            query += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        with self.connect() as connection:
            connection.execute(query)

    def drop_db(self, name: str) -> None:
        query = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        with self.connect() as connection:
            connection.execute(query)

    # Programs

    def bin(self, name: str) -> str:
        return str(self.bin_dir / name)

    def run(self, command: list, capture: bool = True, **kw) -> subprocess.CompletedProcess:
        """Runs a program as the server's user, with env pointing at this cluster."""
        command = [str(part) for part in command]
        if self.system_user is not None:
            ids = [f"--reuid={self.system_user.pw_uid}", f"--regid={self.system_user.pw_gid}"]
            command = ["setpriv", *ids, "--init-groups", "--", *command]
        where = subprocess.PIPE if capture else subprocess.DEVNULL
        options = {"cwd": self.folder, "env": {**os.environ, **self.env}, "check": True, "text": True}
        options |= {"stdout": where, "stderr": where}
        if "input" not in kw:
            options["stdin"] = subprocess.DEVNULL
        try:
            return subprocess.run(command, **{**options, **kw})
        except subprocess.CalledProcessError as error:
            error.add_note(f"{error.stdout or ''}{error.stderr or ''}")
            raise

    def _pg_config(self, what: str) -> str:
        try:
            return subprocess.check_output([self.pg_config, what], text=True).strip()
        except FileNotFoundError:
            raise RuntimeError(f"no {self.pg_config}: scripts/pg-versions and scripts/build make it") from None

    def _hand_over(self, folder: Path) -> None:
        if self.system_user is not None:
            os.chown(folder, self.system_user.pw_uid, self.system_user.pw_gid)
        folder.chmod(0o755)  # clients may be others than the server's user

    def __enter__(self) -> "Cluster":
        return self.start()

    def __exit__(self, *_) -> None:
        self.remove()


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Who runs the servers when root calls; None means the caller himself."""
    if os.geteuid() != 0:
        return None
    return pwd.getpwnam(os.environ.get("AUDIT_TEST_USER", "postgres"))


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on: state, parent, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _alive(pid: int) -> bool:
    fields = _stat(pid)
    return fields is not None and fields[0] != "Z"


def _children(pid: int) -> set[int]:
    entries = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return {child for child in entries if (fields := _stat(child)) and int(fields[1]) == pid}
