"""PgBouncer before a cluster of the tests: a real process, on a Unix socket of its own."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psycopg

from cluster import build_folder


class Pooler:
    """PgBouncer for all databases of a cluster. `server_connections` a database and user; use it as a context manager.

    .env            for subprocesses: PGHOST, PGPORT, PGUSER
    .connect(db)    a psycopg connection through it, with autocommit unless told otherwise
    """

    port = 6432

    def __init__(self, cluster, users=(), mode="transaction", server_connections=1):
        self.cluster = cluster
        self.program = build_folder() / "pgbouncer" / "usr" / "sbin" / "pgbouncer"
        if not self.program.exists():
            raise RuntimeError(f"no {self.program}: scripts/drivers gets it")
        self.folder = Path(tempfile.mkdtemp(prefix="pb.", dir=os.environ.get("AUDIT_TMP", "/tmp")))
        self.env = {"PGHOST": str(self.folder), "PGPORT": str(self.port), "PGUSER": cluster.user}
        (self.folder / "users").write_text("".join(f'"{user}" ""\n' for user in (cluster.user, *users)))
        (self.folder / "ini").write_text(f"""
[databases]
* = host={cluster.socket_dir} port={cluster.port}
[pgbouncer]
listen_port = {self.port}
unix_socket_dir = {self.folder}
auth_type = trust
auth_file = {self.folder}/users
pool_mode = {mode}
default_pool_size = {server_connections}
max_prepared_statements = 100
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
""")
        for path in (self.folder, *self.folder.iterdir()):
            if cluster.system_user is not None:
                os.chown(path, cluster.system_user.pw_uid, cluster.system_user.pw_gid)
            path.chmod(0o755)

    def __enter__(self) -> "Pooler":
        command = [self.program, self.folder / "ini"]
        if self.cluster.system_user is not None:
            ids = [f"--reuid={self.cluster.system_user.pw_uid}", f"--regid={self.cluster.system_user.pw_gid}"]
            command = ["setpriv", *ids, "--init-groups", "--", *command]
        self.log = open(self.folder / "log", "w", encoding="utf-8")  # noqa: SIM115 (closed at exit)
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.connect("postgres").close()
                return self
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.05)

    def __exit__(self, *_) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.log.close()
        subprocess.run(["rm", "-rf", self.folder], check=True)

    def connect(self, dbname, **kw) -> psycopg.Connection:
        own = {"host": str(self.folder), "port": self.port, "user": self.cluster.user, "dbname": dbname}
        return psycopg.connect(**{**own, "autocommit": True, **kw})
