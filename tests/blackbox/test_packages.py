"""The packages of scripts/dist, installed where nothing of the build is: a tarball into a copy of a PostgreSQL that never had the
extension, the Debian package with dpkg into an overlay of this system whose checkout is empty, the image volume beside a
PostgreSQL that only has its path. There is no earlier release to upgrade from; the Debian package is installed again over itself,
with a log that must stay whole."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

import pytest

from cluster import Cluster, build_folder, pg_config_of

ROOT = Path(__file__).resolve().parents[2]
VERSION = os.environ["AUDIT_PG"]
NUMBER = re.search(r'^\[workspace.package\]\nversion = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)

WORK = """
    CREATE EXTENSION audit_ext;
    CREATE TABLE account (id int PRIMARY KEY, balance numeric);
    SELECT audit.enable('account');
    INSERT INTO account VALUES (1, 100.00);
    SELECT audit.seal();
"""
LOOK = "SELECT count(*) || ' ' || (SELECT count(*) FROM audit.verify()) FROM audit.log WHERE operation <> 'DDL'"


@pytest.fixture(scope="module")
def dist():
    with tempfile.TemporaryDirectory(prefix="pk.", dir=os.environ.get("AUDIT_TMP", "/tmp")) as made:
        environment = {**os.environ, "AUDIT_DIST": made}
        subprocess.run([ROOT / "scripts/dist", VERSION], env=environment, check=True, capture_output=True)
        yield Path(made)


@pytest.fixture
def folder():
    path = Path(tempfile.mkdtemp(prefix="pk.", dir=os.environ.get("AUDIT_TMP", "/tmp")))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def clean_tree(folder):
    """A copy of the PostgreSQL of the tests without the extension; its pg_config."""
    tree = build_folder() / "pg" / VERSION
    copy = folder / "pg"
    shutil.copytree(tree, copy, symlinks=True, ignore=shutil.ignore_patterns("audit_ext*", "audit-verify*", "include", "doc"))
    return copy / Path(pg_config_of(VERSION)).relative_to(tree)


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_tarball(dist, folder, clean_tree):
    before = listing(folder / "pg")
    (archive,) = dist.glob(f"audit_ext-{NUMBER}-pg{VERSION}-linux-*.tar.gz")
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    (unpacked,) = folder.glob("audit_ext-*")
    wrong = subprocess.run([unpacked / "install", "/bin/echo"], capture_output=True, text=True)
    assert wrong.returncode == 1 and f"PostgreSQL {VERSION}" in wrong.stderr
    subprocess.run([unpacked / "install", clean_tree], check=True)
    with Cluster(clean_tree) as cluster:
        cluster.psql(WORK)
        assert cluster.psql(LOOK) == "1 0"
        checked = cluster.run([cluster.bin("audit-verify"), "db", "--json", "--dsn", cluster.dsn("postgres")])
        assert json.loads(checked.stdout)["result"] == "intact", checked
        cluster.psql("DROP EXTENSION audit_ext CASCADE; DROP TABLE account")
    subprocess.run([unpacked / "remove", clean_tree], check=True)
    assert listing(folder / "pg") == before


def test_contents_of_the_debian_package(dist):
    (package,) = dist.glob(f"postgresql-{VERSION}-audit-ext_{NUMBER}-1_*.deb")
    field = lambda name: subprocess.check_output(["dpkg-deb", "-f", package, name], text=True).strip()  # noqa: E731
    assert field("Version") == f"{NUMBER}-1"
    assert field("Depends").startswith(f"postgresql-{VERSION}, ") and "libc6" in field("Depends")
    lines = subprocess.check_output(["dpkg-deb", "-c", package], text=True).splitlines()
    found = {line.split()[5] for line in lines}
    for name in [
        f"./usr/lib/postgresql/{VERSION}/lib/audit_ext.so",
        f"./usr/lib/postgresql/{VERSION}/bin/audit-verify",
        f"./usr/share/postgresql/{VERSION}/extension/audit_ext.control",
        f"./usr/share/postgresql/{VERSION}/extension/audit_ext--{NUMBER}.sql",
        f"./usr/share/postgresql/{VERSION}/man/man1/audit-verify.1.gz",
        f"./usr/share/doc/postgresql-{VERSION}-audit-ext/copyright",
    ]:
        assert name in found
    assert all(line.split()[1] == "root/root" for line in lines)
    assert not [name for name in found if str(ROOT) in name]


DEBIAN = r"""
set -eu
test -z "$(ls -A @ROOT@)"
places='/etc /usr /var/lib'
! find $places \( -name 'audit_ext*' -o -name 'audit-verify*' -o -name '*audit-ext*' \) | grep .
dpkg -i /package.deb >/dev/null
dpkg --verify @NAME@
test "$(audit-verify --version)" = "audit-verify @NUMBER@"
zcat "$(readlink -f /usr/share/man/man1/audit-verify.1.gz)" | grep -q 'Checks the log of audit_ext'
mkdir /cluster && chown postgres: /cluster
as() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
bin=/usr/lib/postgresql/15/bin
as $bin/initdb -D /cluster/data -A trust >/dev/null
start() { as $bin/pg_ctl -w -D /cluster/data -o "-k /cluster -c listen_addresses=" -l /cluster/log start >/dev/null; }
stop() { as $bin/pg_ctl -w -D /cluster/data -m fast stop >/dev/null; }
trap 'stop; cat /cluster/log' EXIT
psql() { as $bin/psql -XAtq -v ON_ERROR_STOP=1 -h /cluster "$@"; }
start
psql -c "@WORK@" >/dev/null
test "$(psql -c "@LOOK@")" = '1 0'
# Again over itself, while the server runs.
dpkg -i /package.deb >/dev/null
stop
start
psql -c "INSERT INTO account VALUES (2, 5)"
test "$(psql -c "@LOOK@")" = '2 0'
as audit-verify db --dsn 'host=/cluster dbname=postgres' >/dev/null
psql -c 'DROP EXTENSION audit_ext CASCADE'
psql -c "INSERT INTO account VALUES (3, 5)"
stop
trap - EXIT
dpkg --purge @NAME@ >/dev/null
rm -r /cluster
! find $places \( -name 'audit_ext*' -o -name 'audit-verify*' -o -name '*audit-ext*' \) | grep .
echo removed without a trace
"""


# Debian 12 has 15 alone; the other packages are made by the same lines.
if VERSION == "15":

    def test_debian_package(dist, folder):
        """With dpkg, on what is Debian 12: an overlay, so that the system itself stays as it is."""
        (package,) = dist.glob(f"postgresql-{VERSION}-audit-ext_{NUMBER}-1_*.deb")
        script = DEBIAN
        for name, value in {"ROOT": str(ROOT), "NAME": f"postgresql-{VERSION}-audit-ext", "NUMBER": NUMBER,
                            "WORK": WORK, "LOOK": LOOK}.items():  # fmt: skip
            script = script.replace(f"@{name}@", value)
        (folder / "script").write_text(script)
        for name in ("upper", "work", "root"):
            (folder / name).mkdir()
        outside = f"""
            set -eu
            mount -t overlay overlay -o lowerdir=/,upperdir={folder}/upper,workdir={folder}/work {folder}/root
            mount -t tmpfs tmpfs {folder}/root{ROOT}
            mount -t tmpfs -o mode=1777 tmpfs {folder}/root/tmp
            mount -t proc proc {folder}/root/proc
            mount --rbind /dev {folder}/root/dev
            cp {package} {folder}/root/package.deb
            cp {folder}/script {folder}/root/package.script
            chroot {folder}/root /bin/sh /package.script"""
        namespace = ["unshare", "--mount", "--pid", "--fork"] + (["--map-root-user"] if os.getuid() else [])
        done = subprocess.run([*namespace, "/bin/sh", "-c", outside], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.endswith("removed without a trace\n"), done.stdout + done.stderr


if int(VERSION) >= 18:

    def test_image_volume(dist, folder, clean_tree):
        """As CloudNativePG mounts it: nothing but two settings tells the server of it."""
        mounted = folder / "extensions" / "audit-ext"
        mounted.mkdir(parents=True)
        (archive,) = dist.glob(f"audit_ext-{NUMBER}-pg{VERSION}-image-volume.tar")
        subprocess.run(["tar", "-xf", archive, "-C", mounted], check=True)
        assert sorted(path.name for path in mounted.iterdir()) == ["lib", "licenses", "share"]
        conf = {
            "extension_control_path": f"$system:{mounted}/share",
            "dynamic_library_path": f"$libdir:{mounted}/lib",
            "shared_preload_libraries": "audit_ext",
        }
        with Cluster(clean_tree, conf=conf) as cluster:
            cluster.psql(WORK)
            assert cluster.psql(LOOK) == "1 0"


def test_meta_for_pgxn(dist):
    """META.json says what this is, and what it names is in the archive."""
    meta = json.loads((ROOT / "META.json").read_text())
    for field in ("name", "version", "abstract", "maintainer", "license", "provides", "meta-spec"):
        assert meta[field]
    assert meta["version"] == NUMBER and meta["provides"]["audit_ext"]["version"] == NUMBER
    assert meta["license"] == "postgresql" and meta["meta-spec"]["version"] == "1.0.0"
    with zipfile.ZipFile(dist / f"audit_ext-{NUMBER}.zip") as archive:
        names = {name.removeprefix(f"audit_ext-{NUMBER}/") for name in archive.namelist()}
    provided = meta["provides"]["audit_ext"]
    assert {provided["file"], provided["docfile"], "Makefile", "META.json", "LICENSE", "audit_ext.control"} <= names
    sums = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=dist, capture_output=True, text=True)
    assert sums.returncode == 0, sums.stderr
