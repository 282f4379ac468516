"""audit-verify connects with TLS as libpq does: sslmode, sslrootcert, sslcert, sslkey."""

import datetime
import ipaddress
import os
import socket

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from ledgerlib import audit_verify, seal

NO_ENCRYPTION = serialization.NoEncryption()


class Authority:
    """Signs certificates; files of each in a folder."""

    def __init__(self, folder, name):
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = folder / f"{name}.crt"
        certificate = self._sign(self.name, self.key, x509.BasicConstraints(ca=True, path_length=None))
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject, key, *extensions):
        now = datetime.datetime.now(datetime.timezone.utc)
        day = datetime.timedelta(days=1)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self.key, hashes.SHA256())

    def certify(self, name, *alternatives):
        key = ec.generate_private_key(ec.SECP256R1())
        extensions = [x509.SubjectAlternativeName(alternatives)] if alternatives else [x509.SubjectAlternativeName([x509.DNSName(name)])]
        certificate = self._sign(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, *extensions)
        files = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, NO_ENCRYPTION))
        files[1].chmod(0o600)
        return files


@pytest.fixture
def served(new_cluster):
    """A cluster that takes connections over TLS alone; `.authority`, `.other`, `.over(host, **settings)`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cluster = new_cluster()
    cluster.authority, cluster.other = (Authority(cluster.folder, name) for name in ("authority", "other"))
    certificate, key = cluster.authority.certify("server", x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    if cluster.system_user is not None:
        os.chown(key, cluster.system_user.pw_uid, cluster.system_user.pw_gid)
    cluster.configure(listen_addresses="127.0.0.1", ssl="on", ssl_cert_file=certificate, ssl_key_file=key,
                      ssl_ca_file=cluster.authority.file)
    hba = cluster.data_dir / "pg_hba.conf"
    hba.write_text("local all all trust\nhostssl all auditor all cert\nhostssl all all all trust\n")
    cluster.stop()
    cluster.configure(port=port)
    cluster.port = port
    cluster.env["PGPORT"] = str(port)
    cluster.start()
    with cluster.connect() as conn:
        conn.execute("CREATE EXTENSION audit_ext; CREATE TABLE t (id int PRIMARY KEY)")
        conn.execute("SELECT audit.enable('t')")
        conn.execute("INSERT INTO t VALUES (1); CREATE ROLE auditor LOGIN")
        conn.execute("SELECT audit.grant_reader('auditor')")
        seal(conn)
    cluster.over = lambda host="127.0.0.1", **settings: cluster.dsn(host=host, **settings)
    return cluster


def test_tls(served):
    root, other = served.authority.file, served.other.file
    intact = [
        served.over(),  # prefer
        served.over(sslmode="require"),
        served.over(sslmode="require", sslrootcert="/nonexistent"),
        served.over(sslmode="require", sslrootcert=root),
        served.over("localhost", sslmode="verify-ca", sslrootcert=root),
        served.over(sslmode="verify-full", sslrootcert=root),
        f"postgresql://postgres@127.0.0.1:{served.port}/postgres?sslmode=verify-full&sslrootcert={root}",
        served.dsn(),  # a socket has no TLS
    ]
    for dsn in intact:
        _, result = audit_verify(served, "db", "--dsn", dsn, check=0)
        assert result["checked"]["events"] == 1
    refused = [
        (served.over(sslmode="disable"), "no pg_hba.conf entry"),
        (served.over(sslmode="require", sslrootcert=other), "UnknownIssuer"),
        (served.over(sslmode="verify-ca", sslrootcert=other), "UnknownIssuer"),
        (served.over("localhost", sslmode="verify-full", sslrootcert=root), "not valid for name"),
        (served.over(sslmode="verify-full", sslrootcert="/nonexistent"), "/nonexistent"),
        (served.over(sslmode="verify-full", sslrootcert="system"), ""),
        (served.dsn() + " sslmode=nonsense", "sslmode nonsense is none of"),
    ]
    for dsn, why in refused:
        _, result = audit_verify(served, "db", "--dsn", dsn, check=2)
        assert why in result["error"], (dsn, result)


def test_the_client_shows_a_certificate(served):
    root = served.authority.file
    certificate, key = served.authority.certify("auditor")
    own = {"user": "auditor", "sslmode": "verify-full", "sslrootcert": root}
    audit_verify(served, "db", "--dsn", served.over(**own, sslcert=certificate, sslkey=key), check=0)
    audit_verify(served, "db", "--dsn", served.over(**own), check=2)
    certificate, key = served.authority.certify("somebody")
    audit_verify(served, "db", "--dsn", served.over(**own, sslcert=certificate, sslkey=key), check=2)


def test_settings_of_the_environment(served, monkeypatch):
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    monkeypatch.setenv("PGSSLROOTCERT", str(served.other.file))
    audit_verify(served, "db", "--dsn", served.over(), check=2)
    audit_verify(served, "db", "--dsn", served.over(sslrootcert=served.authority.file), check=0)
