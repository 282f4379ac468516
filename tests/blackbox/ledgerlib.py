"""What the tests of the Merkle log share: keys, a log to work on, and all verifiers at once."""

import base64
import hashlib
import json
import os
import subprocess

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tiny_verifier import log_problems


def key_pair(name, kind=1):
    """A private key and its vkey, in the encoding of signed notes; kind 4 is a witness's."""
    key = Ed25519PrivateKey.generate()
    raw, encoding, no = serialization.Encoding.Raw, serialization.PublicFormat.Raw, serialization.NoEncryption()
    public = bytes([kind]) + key.public_key().public_bytes(raw, encoding)
    private = bytes([kind]) + key.private_bytes(raw, serialization.PrivateFormat.Raw, no)
    key_id = hashlib.sha256(f"{name}\n".encode() + public).hexdigest()[:8]
    return (
        f"PRIVATE+KEY+{name}+{key_id}+{base64.b64encode(private).decode()}",
        f"{name}+{key_id}+{base64.b64encode(public).decode()}",
    )


def write_key(cluster, private, name="signing.key", mode=0o600):
    """A key file of the server's user."""
    path = cluster.folder / name
    path.write_text(private + "\n")
    path.chmod(mode)
    if cluster.system_user is not None:
        os.chown(path, cluster.system_user.pw_uid, cluster.system_user.pw_gid)
    return path


def seal(conn):
    return conn.execute("SELECT audit.seal()").fetchone()[0]


def last_note(conn):
    return conn.execute("SELECT note FROM audit.checkpoint ORDER BY era DESC, tree_size DESC LIMIT 1").fetchone()[0]


def verify(conn, checkpoint=None):
    """The findings of audit.verify, each as (finding, changeset, seq, detail)."""
    return conn.execute(
        "SELECT finding, changeset_id::text, seq, detail FROM audit.verify(checkpoint => %s)", [checkpoint]
    ).fetchall()


def assert_intact(conn, checkpoint=None, keys=()):
    """All verifiers find nothing, in one snapshot."""
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        assert verify(conn, checkpoint) == []
        assert log_problems(conn, checkpoint, keys) == []


def audit_verify(cluster, *arguments, check=None, text=None):
    """Runs audit-verify; returns its exit status and its result. `check` is the expected status."""
    command = [cluster.bin("audit-verify"), *[str(argument) for argument in arguments], "--json"]
    done = subprocess.run(command, capture_output=True, text=True, input=text)
    result = json.loads(done.stdout)
    assert check is None or done.returncode == check, (done.returncode, result)
    return done.returncode, result


def attacker(db):
    """A superuser's session in which nothing keeps him from changing the log."""
    with db.connect() as conn:
        conn.execute("UPDATE pg_trigger SET tgenabled = 'D' WHERE tgfoid = 'audit.append_only()'::regprocedure")
    return db.connect()
