"""The program audit-verify: what it says, and its exit status."""

import json
import os
import shutil
import subprocess

import pytest
from ledgerlib import attacker, audit_verify, key_pair, last_note, seal, write_key
from tiny_verifier import Note, proof_problems


@pytest.fixture
def signed(new_cluster):
    """A private cluster that signs, with a log; `.vkey`, `.kept`, `.dsn()`."""
    cluster = new_cluster()
    status, made = audit_verify(cluster, "keygen", "--name", "example.com/audit", "--out", cluster.folder / "made.key", check=0)
    key = (cluster.folder / "made.key").read_text()
    assert (cluster.folder / "made.key").stat().st_mode & 0o777 == 0o600
    cluster.vkey = made["checked"]["public key"]
    assert (cluster.folder / "made.key.vkey").read_text().strip() == cluster.vkey
    audit_verify(cluster, "keygen", "--name", "example.com/audit", "--out", cluster.folder / "made.key", check=2)
    cluster.configure(**{"audit.signing_key_file": write_key(cluster, key)})
    cluster.reload()
    conn = cluster.connect()
    conn.execute("CREATE EXTENSION audit_ext; CREATE TABLE t (id int PRIMARY KEY, v text)")
    conn.execute("SELECT audit.enable('t')")
    conn.execute("DO $$ BEGIN FOR i IN 1..300 LOOP INSERT INTO t VALUES (i, 'é \"q\" \\ ' || i); COMMIT; END LOOP; END $$")
    seal(conn)
    cluster.kept = cluster.folder / "kept.txt"
    cluster.kept.write_text(last_note(conn))
    conn.execute("UPDATE t SET v = 'new' WHERE id < 4")
    seal(conn)
    conn.execute("UPDATE t SET v = 'unsealed' WHERE id = 7")
    cluster.conn = conn
    return cluster


class Whole:
    """A cluster's default database, as the helpers want one."""

    def __init__(self, cluster):
        self.connect = cluster.connect


def test_db(signed):
    dsn, key = signed.dsn(), ["--key", signed.vkey]
    _, result = audit_verify(signed, "db", "--dsn", dsn, *key, "--checkpoint", signed.kept, check=0)
    assert result["result"] == "intact" and result["findings"] == []
    assert (result["checked"]["events"], result["checked"]["changesets"], result["checked"]["not sealed yet"]) == (304, 302, 1)
    _, other = key_pair("example.com/audit")
    _, result = audit_verify(signed, "db", "--dsn", dsn, "--key", other, check=1)
    assert {finding["finding"] for finding in result["findings"]} == {"checkpoint altered"}
    done = subprocess.run([signed.bin("audit-verify"), "db", "--dsn", dsn], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("intact\n")
    # An older state, and one of another ledger.
    signed.kept.write_text(signed.kept.read_text().replace("\n303\n", "\n400\n"))
    _, result = audit_verify(signed, "db", "--dsn", dsn, "--checkpoint", signed.kept, check=1)
    assert [finding["finding"] for finding in result["findings"]] == ["checkpoint inconsistent"]
    signed.kept.write_text("elsewhere\n1\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n")
    _, result = audit_verify(signed, "db", "--dsn", dsn, "--checkpoint", signed.kept, check=1)
    assert [finding["finding"] for finding in result["findings"]] == ["ledger removed"]


def test_what_cannot_be_checked(signed):
    for arguments in (
        ["db", "--dsn", "host=/nonexistent"],
        ["db", "--dsn", signed.dsn("template1")],
        ["db", "--dsn", signed.dsn(), "--key", "nonsense"],
        ["db", "--dsn", signed.dsn(), "--checkpoint", "/nonexistent"],
        ["proof", "/nonexistent", "--key", signed.vkey],
        ["dir", "/nonexistent"],
        ["checkpoint", "--old", signed.kept, "--new", signed.kept],
    ):
        _, result = audit_verify(signed, *arguments, check=2)
        assert result["result"] == "could not check" and result["error"]


def test_help(cluster):
    program = [cluster.bin("audit-verify")]
    run = lambda *words: subprocess.run([*program, *words], capture_output=True, text=True)
    whole = run("--help")
    assert whole.returncode == 0 and "Examples:" in whole.stdout and "2 could not check" in whole.stdout
    for command in ("db", "proof", "checkpoint", "export", "dir", "witness", "keygen"):
        assert f"audit-verify {command} " in whole.stdout
        assert run(command, "--help").returncode == 0
    assert run("nonsense").returncode == run("db", "--nonsense").returncode == 2


def test_progress_on_a_terminal(signed):
    command = [signed.bin("audit-verify"), "db", "--dsn", signed.dsn()]
    ours, theirs = os.openpty()
    shown = subprocess.run(command, stderr=theirs, capture_output=False, stdout=subprocess.PIPE, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    assert shown.returncode == 0 and b"checking" in os.read(ours, 4096)
    os.close(ours)
    assert subprocess.run(command, capture_output=True).stderr == b""


def test_proof(signed):
    changeset, seq = signed.conn.execute("SELECT changeset_id, seq FROM audit.event ORDER BY occurred_at LIMIT 1").fetchone()
    (text,) = signed.conn.execute("SELECT audit.prove(%s, %s)", [changeset, seq]).fetchone()
    _, result = audit_verify(signed, "proof", "-", "--key", signed.vkey, text=text, check=0)
    assert result["checked"]["event"][1] == str(changeset)
    assert result["checked"]["event"][13] == {"id": 1, "v": 'é "q" \\ 1'}
    _, other = key_pair("example.com/audit")
    _, result = audit_verify(signed, "proof", "-", "--key", other, text=text, check=1)
    assert [finding["finding"] for finding in result["findings"]] == ["checkpoint not signed"]
    for number, line in enumerate(text.splitlines()):
        if not line:
            continue
        for at in range(0, len(line), 11):
            lines = text.splitlines()
            lines[number] = line[:at] + ("B" if line[at] == "A" else "A") + line[at + 1 :]
            altered = "\n".join(lines) + "\n"
            status, _ = audit_verify(signed, "proof", "-", "--key", signed.vkey, text=altered)
            assert status in (1, 2), (number, at)
            assert proof_problems(altered, [signed.vkey]) != []


def test_checkpoint(signed):
    new = signed.folder / "new.txt"
    new.write_text(last_note(signed.conn))
    both = ["checkpoint", "--old", signed.kept, "--new", new, "--key", signed.vkey]
    audit_verify(signed, *both, "--dsn", signed.dsn(), check=0)
    size = Note(signed.kept.read_text()).size
    proof = signed.folder / "proof.txt"
    proof.write_text(signed.conn.execute("SELECT audit.prove_consistency(%s)", [size]).fetchone()[0])
    audit_verify(signed, *both, "--proof", proof, check=0)
    forged = signed.folder / "forged.txt"
    lines = signed.kept.read_text().split("\n")
    lines[2] = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="
    forged.write_text("\n".join(lines))
    for how in (["--dsn", signed.dsn()], ["--proof", proof]):
        _, result = audit_verify(signed, "checkpoint", "--old", forged, "--new", new, *how, check=1)
        assert [finding["finding"] for finding in result["findings"]] == ["checkpoint inconsistent"]
    audit_verify(signed, "checkpoint", "--old", new, "--new", signed.kept, "--dsn", signed.dsn(), check=2)


def test_export_and_dir(signed):
    folder = signed.folder / "export"
    key = ["--key", signed.vkey]
    audit_verify(signed, "export", "--dsn", signed.dsn(), "--dir", folder, check=0)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    size = Note((folder / "checkpoint").read_text()).size
    assert found == ["checkpoint", "tile/0/000", f"tile/0/001.p/{size - 256}", "tile/1/000.p/1", "tile/entries/000",
                     f"tile/entries/001.p/{size - 256}"]
    audit_verify(signed, "dir", folder, *key, "--checkpoint", signed.kept, check=0)
    for name in found:
        data = bytearray((folder / name).read_bytes())
        data[40 % len(data)] ^= 1
        shutil.copytree(folder, signed.folder / "copy")
        (signed.folder / "copy" / name).write_bytes(data)
        status, _ = audit_verify(signed, "dir", signed.folder / "copy", *key)
        assert status in (1, 2), name
        shutil.rmtree(signed.folder / "copy")
    # Later states go into the same directory.
    seal(signed.conn)
    audit_verify(signed, "export", "--dsn", signed.dsn(), "--dir", folder, check=0)
    audit_verify(signed, "dir", folder, *key, "--checkpoint", signed.kept, check=0)


def test_witness(signed):
    audit_verify(signed, "keygen", "--witness", "--name", "w.example.com", "--out", signed.folder / "witness.key", check=0)
    vkey = (signed.folder / "witness.key.vkey").read_text().strip()
    signed.configure(**{"audit.witness_keys": vkey})
    signed.reload()
    state = signed.folder / "state"
    run = ["witness", "--dsn", signed.dsn(), "--state", state, "--key", signed.folder / "witness.key", "--log-key", signed.vkey]
    _, result = audit_verify(signed, *run, "--submit", check=0)
    assert Note(result["checked"]["checkpoint"].strip() + "\n").signed_by(vkey)
    assert signed.conn.execute("SELECT key FROM audit.cosignature").fetchall() == [(vkey,)]
    seal(signed.conn)
    audit_verify(signed, *run, "--submit", check=0)
    audit_verify(signed, "db", "--dsn", signed.dsn(), check=0)
    saved = state.read_text()
    assert list(json.loads(saved).values())[0]["size"] == Note(last_note(signed.conn)).size
    # A fork: another root at the size that was seen; nothing is signed, nothing is forgotten.
    forged = json.loads(saved)
    for seen in forged.values():
        seen["root"] = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="
    state.write_text(json.dumps(forged))
    _, result = audit_verify(signed, *run, check=1)
    assert [finding["finding"] for finding in result["findings"]] == ["checkpoint inconsistent"]
    assert "checkpoint" not in result["checked"] and json.loads(state.read_text()) == forged
    # The newest entries removed.
    state.write_text(saved)
    attacker(Whole(signed)).execute(
        "DELETE FROM audit.checkpoint WHERE tree_size = (SELECT max(tree_size) FROM audit.checkpoint)"
    )
    _, result = audit_verify(signed, *run, check=1)
    assert [finding["finding"] for finding in result["findings"]] == ["checkpoint inconsistent"]


GO = """
package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func fail(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// proof KEY < tlog-proof; leaf: the changeset's checksum in hexadecimal as the second argument
func main() {
	verifier, err := note.NewVerifier(os.Args[1])
	fail(err)
	data, err := os.ReadFile(os.Args[3])
	fail(err)
	head, text, _ := strings.Cut(string(data), "\\n\\n")
	opened, err := note.Open([]byte(text), note.VerifierList(verifier))
	fail(err)
	lines := strings.Split(opened.Text, "\\n")
	var size, index, old int64
	fmt.Sscan(lines[1], &size)
	root, err := tlog.ParseHash(lines[2])
	fail(err)
	var hashes []tlog.Hash
	for _, line := range strings.Split(head, "\\n") {
		if strings.HasPrefix(line, "index ") {
			fmt.Sscanf(line, "index %d", &index)
		} else if strings.HasPrefix(line, "old ") {
			fmt.Sscanf(line, "old %d", &old)
		} else if hash, err := tlog.ParseHash(line); err == nil {
			hashes = append(hashes, hash)
		}
	}
	var entry []byte
	fmt.Sscanf(os.Args[2], "%x", &entry)
	if old > 0 {
		var oldRoot tlog.Hash
		copy(oldRoot[:], entry)
		fail(tlog.CheckTree(tlog.TreeProof(hashes), size, root, old, oldRoot))
	} else {
		fail(tlog.CheckRecord(tlog.RecordProof(hashes), size, root, index, tlog.RecordHash(entry)))
	}
	fmt.Println("ok", size)
}
"""


@pytest.fixture(scope="session")
def go_verifier(tmp_path_factory):
    """Go's own implementation of notes and tiled logs, as Debian packages it."""
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(GO)
    env = {**os.environ, "GOPATH": "/usr/share/gocode", "GO111MODULE": "off", "GOFLAGS": "", "GOCACHE": str(folder / "cache")}
    subprocess.run(["go", "build", "-o", "verifier", "main.go"], cwd=folder, env=env, check=True, capture_output=True)
    return folder / "verifier"


def test_go_agrees(signed, go_verifier):
    def go(expected, argument, text):
        (signed.folder / "text").write_text(text)
        done = subprocess.run([go_verifier, signed.vkey, argument.hex(), signed.folder / "text"], capture_output=True, text=True)
        assert (done.returncode == 0) == expected, done.stdout

    rows = signed.conn.execute(
        "SELECT e.changeset_id, e.checksum, audit.prove(e.changeset_id, (SELECT min(seq) FROM audit.event v WHERE"
        " v.changeset_id = e.changeset_id)) FROM audit.entry e WHERE changeset_id IS NOT NULL AND index % 29 = 0"
    ).fetchall()
    assert len(rows) > 5
    for _, entry, text in rows:
        go(True, entry, text)
        go(False, entry[::-1], text)
    checkpoints = signed.conn.execute("SELECT tree_size, root_hash FROM audit.checkpoint").fetchall()
    for size, root in checkpoints:
        (text,) = signed.conn.execute("SELECT audit.prove_consistency(%s)", [size]).fetchone()
        go(True, root, text)
        go(False, root[::-1], text)
