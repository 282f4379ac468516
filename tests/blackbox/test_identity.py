"""Verified identity: context from signed tokens, what it takes to stay verified, and the presets of other software.

The tokens are made by Python's cryptography, which shares nothing with what checks them."""

import base64
import hashlib
import hmac
import json
import os
import time

import psycopg
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils

from auditlib import check_integrity, sqlstate
from cluster import Cluster
from pooler import Pooler
from queuelib import PRELOAD, until

ORDER = "ORDER BY era, position NULLS LAST, command, seq"
AUDIENCE = "orders"


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def number(value):
    return b64(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class Signer:
    """Keys of each algorithm, and tokens signed with them."""

    def __init__(self):
        self.ed = ed25519.Ed25519PrivateKey.generate()
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.secret = os.urandom(32)

    def ed_public(self):
        return self.ed.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)

    def jwks(self):
        point = self.ec.public_key().public_numbers()
        modulus = self.rsa.public_key().public_numbers()
        return [
            {"kty": "OKP", "crv": "Ed25519", "kid": "EdDSA", "x": b64(self.ed_public())},
            {"kty": "EC", "crv": "P-256", "kid": "ES256", "x": b64(point.x.to_bytes(32, "big")),
             "y": b64(point.y.to_bytes(32, "big"))},
            {"kty": "RSA", "kid": "RS256", "alg": "RS256", "use": "sig", "n": number(modulus.n), "e": number(modulus.e)},
            {"kty": "oct", "kid": "HS256", "k": b64(self.secret)},
        ]  # fmt: skip

    def signature(self, algorithm, data):
        if algorithm == "EdDSA":
            return self.ed.sign(data)
        if algorithm == "ES256":
            r, s = utils.decode_dss_signature(self.ec.sign(data, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        if algorithm == "RS256":
            return self.rsa.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return hmac.new(self.secret, data, hashlib.sha256).digest()

    def token(self, algorithm="EdDSA", header=None, sign=None, **claims):
        now = int(time.time())
        claims = {"aud": AUDIENCE, "exp": now + 3600, "nbf": now, **claims}
        claims = {name: value for name, value in claims.items() if value is not None}
        header = {"alg": algorithm, "kid": algorithm, "typ": "JWT"} if header is None else header
        data = ".".join(b64(json.dumps(part).encode()) for part in (header, claims)).encode()
        return f"{data.decode()}.{b64((sign or (lambda data: self.signature(algorithm, data)))(data))}"


def write_keys(cluster, jwks, name="context_keys.json", mode=0o600):
    path = cluster.folder / name
    path.write_text(jwks if isinstance(jwks, str) else json.dumps({"keys": jwks}))
    path.chmod(mode)
    if cluster.system_user is not None:
        os.chown(path, cluster.system_user.pw_uid, cluster.system_user.pw_gid)
    return path


@pytest.fixture(scope="module")
def signer():
    return Signer()


@pytest.fixture(scope="module")
def trusting(signer):
    """A server that takes the signer's tokens."""
    with Cluster(conf=PRELOAD) as cluster:
        keys = write_keys(cluster, signer.jwks())
        cluster.configure(**{"audit.context_keys_file": str(keys), "audit.context_audience": f"billing, {AUDIENCE}"})
        cluster.reload()
        cluster.create_db("template")
        with cluster.connect("template") as conn:
            conn.execute("CREATE EXTENSION audit_ext")
            conn.execute("CREATE TABLE t (id int PRIMARY KEY, v text, tenant text); SELECT audit.enable('t')")
            conn.execute("CREATE ROLE app LOGIN; GRANT ALL ON t TO app")
        yield cluster


class Session:
    """A superuser's connection to read the log, an ordinary user's to work."""

    def __init__(self, cluster, name):
        self.cluster, self.name = cluster, name
        self.admin = cluster.connect(name)
        self.app = cluster.connect(name, user="app", autocommit=False)
        self.id = 0

    def show(self, token, is_local=True):
        self.app.execute("SELECT audit.set_context_token(%s, %s)", [token, is_local])

    def write(self, connection=None):
        """Writes a row; returns its id."""
        self.id += 1
        (connection or self.app).execute("INSERT INTO t VALUES (%s)", [self.id])
        return self.id

    def trust(self, columns="context_trust, user_id"):
        return self.admin.execute(f"SELECT {columns} FROM audit.log WHERE operation <> 'FAILURE' {ORDER}").fetchall()


_numbers = iter(range(1, 10_000))


@pytest.fixture
def session(trusting):
    name = f"identity{next(_numbers)}"
    trusting.create_db(name, "template")
    session = Session(trusting, name)
    yield session
    session.app.rollback()
    check_integrity(session.admin)
    session.app.close()
    session.admin.close()
    trusting.drop_db(name)


@pytest.fixture
def configured(trusting):
    """Other settings for one test."""

    def configure(**settings):
        trusting.configure(**settings)
        trusting.reload()
        (name, value), *_ = settings.items()
        with trusting.connect("template") as conn:
            conn.execute("SELECT audit.clear_context()")  # loads the library, which checks the value
            until(lambda: conn.execute("SELECT current_setting(%s)", [name]).fetchone() == (value,))

    before = (trusting.data_dir / "postgresql.conf").read_text(), (trusting.data_dir / "postgresql.auto.conf").read_text()
    yield configure
    (trusting.data_dir / "postgresql.conf").write_text(before[0])
    (trusting.data_dir / "postgresql.auto.conf").write_text(before[1])
    trusting.reload()
    with trusting.connect("template") as conn:
        until(lambda: conn.execute(
            "SELECT current_setting('audit.context_claims', true), current_setting('audit.context_preset', true)"
            " FROM audit.clear_context()").fetchone() == ("", "off"))  # fmt: skip


def applied(session, name, value):
    """Waits until the worker's session has a setting that was reloaded."""
    until(lambda: session.app.execute("SELECT current_setting(%s)", [name]).fetchone() == (value,))
    session.app.rollback()


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256", "HS256"])
def test_each_algorithm(session, signer, algorithm):
    session.show(signer.token(
        algorithm, sub="ann", tenant_id="acme", sid="s-1", request_id="r-1", ip_address="192.0.2.7", user_agent="curl",
        reason="x", context={"ticket": 4711}))  # fmt: skip
    session.write()
    session.app.commit()
    assert session.trust("context_trust, user_id, tenant_id, session_id, request_id, host(ip_address), user_agent, reason,"
                         " context") == [
        ("verified", "ann", "acme", "s-1", "r-1", "192.0.2.7", "curl", "x", {"ticket": 4711})]  # fmt: skip


def test_none_claimed_verified(session, signer):
    session.write()
    session.app.commit()
    session.app.execute("SELECT audit.set_context(user_id => 'ann')")
    session.write()
    session.app.commit()
    session.show(signer.token(sub="ann"))
    session.write()
    session.app.commit()
    assert session.trust() == [("none", None), ("claimed", "ann"), ("verified", "ann")]
    # It is part of what is hashed.
    session.admin.execute("SET session_replication_role = replica")
    forms = session.admin.execute(f"SELECT audit.canonical(changeset_id) FROM audit.log {ORDER}").fetchall()
    assert [json.loads(form)[14] for (form,) in forms] == ["none", "claimed", "verified"]


def test_a_token_counts_for_its_transaction(session, signer):
    session.show(signer.token(sub="ann"))
    session.write()
    session.app.commit()
    session.write()
    session.app.commit()
    session.show(signer.token(sub="bob"))
    session.app.rollback()
    session.write()
    session.app.commit()
    assert session.trust() == [("verified", "ann"), ("none", None), ("none", None)]


def test_a_token_for_the_session(session, signer):
    session.show(signer.token(sub="ann"), is_local=False)
    session.app.commit()
    session.write()
    session.app.commit()
    session.show(signer.token(sub="bob"))
    session.write()
    session.app.commit()
    session.write()
    session.app.commit()
    session.app.execute("RESET ALL")
    session.write()
    session.app.commit()
    assert session.trust() == [("verified", "ann"), ("verified", "bob"), ("verified", "ann"), ("none", None)]


def test_nothing_is_left_of_what_was_set_before(session, signer):
    """A token that names no tenant is no proof of the tenant that the session named."""
    session.app.execute("SELECT audit.set_context(user_id => 'x', tenant_id => 'acme', reason => 'y', context => '{\"a\": 1}')")
    session.show(signer.token(sub="ann"))
    session.write()
    session.app.commit()
    assert session.trust("context_trust, user_id, tenant_id, reason, context") == [("verified", "ann", None, None, None)]


CHANGES = [
    "SET LOCAL audit.user_id = 'eve'",
    "SET audit.user_id = 'eve'",
    "SELECT set_config('audit.user_id', 'eve', true)",
    "SELECT audit.set_context(user_id => 'eve')",
    # The value of the token, by other means: nobody says that it is from the token.
    "SELECT audit.set_context(user_id => 'ann')",
    "SET LOCAL audit.user_id = 'ann'",
    "SET LOCAL audit.tenant_id = 'acme'",
    "SET LOCAL audit.session_id = 's'",
    "SET LOCAL audit.request_id = 'r'",
    "SET LOCAL audit.ip_address = '192.0.2.1'",
    "SET LOCAL audit.user_agent = 'x'",
    "SET LOCAL audit.reason = 'x'",
    "SET LOCAL audit.context = '{\"a\": 1}'",
    "RESET audit.tenant_id",
    "SET LOCAL audit.tenant_id TO DEFAULT",
    "UPDATE pg_settings SET setting = 'eve' WHERE name = 'audit.user_id'",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_by_other_means_ends_it(session, signer, change):
    session.show(signer.token(sub="ann"))
    session.write()
    session.app.execute(change)
    session.write()
    session.app.commit()
    rows = session.trust()
    assert rows[0] == ("verified", "ann")
    assert rows[1][0] == "claimed"


def test_what_is_undone_is_undone(session, signer):
    """A savepoint, and a function with settings of its own, give back the values and what they rest on."""
    session.app.execute("CREATE FUNCTION pg_temp.as_eve(id int) RETURNS void LANGUAGE sql SET audit.user_id = 'eve'"
                        " AS 'INSERT INTO t VALUES (id)'")  # fmt: skip
    session.show(signer.token(sub="ann"))
    session.app.execute("SAVEPOINT s; SET LOCAL audit.user_id = 'eve'")
    session.write()
    session.app.execute("ROLLBACK TO s")
    session.write()
    session.app.execute("SELECT pg_temp.as_eve(100)")
    session.write()
    session.app.execute("SAVEPOINT s")
    session.show(signer.token(sub="bob"))
    session.write()
    session.app.execute("ROLLBACK TO s")
    session.write()
    session.app.commit()
    by_seq = session.admin.execute("SELECT context_trust, user_id FROM audit.log ORDER BY seq").fetchall()
    assert by_seq == [("verified", "ann"), ("claimed", "eve"), ("verified", "ann"), ("verified", "ann")]


def test_two_tokens_do_not_mix(session, signer):
    """Part of one token and part of another are nobody's word."""
    session.app.execute("SAVEPOINT a")
    session.show(signer.token(sub="ann", tenant_id="acme"))
    session.show(signer.token(sub="bob", tenant_id="other"))
    session.write()
    session.app.commit()
    session.show(signer.token(sub="ann", tenant_id="acme"), is_local=False)
    session.app.commit()
    session.show(signer.token(sub="bob", tenant_id="other"))
    session.app.execute("SELECT audit.clear_context()")
    session.write()
    session.app.commit()
    assert session.trust("context_trust, user_id, tenant_id") == [("verified", "bob", "other"), ("none", None, None)]


def test_settings_from_before_the_library(session, signer):
    """A session's options can hold the context's values, but not say that they are verified."""
    with session.cluster.connect(session.name, user="app", options="-c audit.user_id=ann") as connection:
        connection.execute("INSERT INTO t VALUES (1)")
    assert session.trust() == [("claimed", "ann")]


def test_a_login_names_another_user(session, signer):
    """Who reports the login of another user than the token's claims that."""
    session.show(signer.token(sub="ann"))
    session.app.execute("SELECT audit.log_login('bob')")
    session.app.execute("SELECT audit.log_login('ann')")
    session.app.execute("SELECT audit.log_event('user.invited')")
    session.app.commit()
    rows = session.admin.execute("SELECT context_trust, user_id, action FROM audit.log ORDER BY seq").fetchall()
    assert rows == [("claimed", "bob", "auth.login"), ("verified", "ann", "auth.login"), ("verified", "ann", "user.invited")]


def test_rows_that_name_their_tenant(session, signer):
    session.admin.execute("SELECT audit.enable('t', tenant_column => 'tenant', require_verified_context => true)")
    session.show(signer.token(sub="ann"))
    session.app.execute("INSERT INTO t VALUES (1, 'x', 'acme'), (2, 'x', 'other')")
    session.app.commit()
    assert sorted(session.trust("tenant_id, context_trust")) == [("acme", "verified"), ("other", "verified")]


def test_written_by_the_worker(session, signer):
    """async tables and isolated events keep what their session's context rests on."""
    session.admin.execute("SELECT audit.enable('t', 'async', require_verified_context => true)")
    session.show(signer.token(sub="ann"))
    session.write()
    session.app.execute("SELECT audit.log_event('report.read', isolated => true)")
    session.app.execute("SAVEPOINT s")
    with pytest.raises(psycopg.errors.NotNullViolation):
        session.app.execute("INSERT INTO t VALUES (NULL)")
    session.app.execute("ROLLBACK TO s")
    session.app.commit()
    rows = until(lambda: (found := session.admin.execute(
        "SELECT operation, context_trust, user_id FROM audit.log ORDER BY 1").fetchall()) and len(found) == 3 and found)
    assert rows == [(what, "verified", "ann") for what in ("APPLICATION", "FAILURE", "INSERT")]


# --- tokens that are refused -----------------------------------------------------------------------------------------


def refused(session, token):
    with pytest.raises(psycopg.Error) as caught:
        session.show(token)
    session.app.rollback()
    session.write()
    session.app.commit()
    assert session.trust()[-1] == ("none", None)
    assert caught.value.diag.message_hint
    return caught.value


def test_forged_tokens(session, signer):
    now = int(time.time())
    other = Signer()
    public = json.dumps(signer.jwks()[2]).encode()
    for name, token in {
        "alg none": signer.token("none", sub="ann", sign=lambda _: b""),
        "alg none of a known key": signer.token(header={"alg": "none", "kid": "EdDSA"}, sub="ann", sign=lambda _: b""),
        "no signature": signer.token(sub="ann", sign=lambda _: b""),
        "public key as a secret": signer.token(
            header={"alg": "HS256", "kid": "RS256"}, sub="ann", sign=lambda d: hmac.new(public, d, hashlib.sha256).digest()),
        "public key's bytes as a secret": signer.token(
            header={"alg": "HS256", "kid": "EdDSA"}, sub="ann",
            sign=lambda d: hmac.new(signer.ed_public(), d, hashlib.sha256).digest()),
        "another key": other.token(sub="ann"),
        "unknown key": signer.token(header={"alg": "EdDSA", "kid": "x"}, sub="ann"),
        "other algorithm of a known key": signer.token(header={"alg": "ES256", "kid": "EdDSA"}, sub="ann"),
        "key in the header": other.token(header={"alg": "EdDSA", "jwk": other.jwks()[0]}, sub="ann"),
        "altered": signer.token(sub="ann").replace(".ey", ".eyJ", 1),
        "expired": signer.token(sub="ann", exp=now - 60),
        "not yet": signer.token(sub="ann", nbf=now + 600),
        "eternal": signer.token(sub="ann", exp=None),
        "other audience": signer.token(sub="ann", aud="shipping"),
        "no audience": signer.token(sub="ann", aud=None),
        "nothing": "",
        "no token": "ann",
        "no ASCII": "é.é.é",
    }.items():  # fmt: skip
        error = refused(session, token)
        assert (error.sqlstate, error.diag.message_primary) == ("28000", "context token is refused"), name
        assert error.diag.message_detail, name


def test_an_audience_among_others(session, signer):
    session.show(signer.token(sub="ann", aud=["x", "billing"]))
    session.write()
    session.app.commit()
    assert session.trust() == [("verified", "ann")]


def test_claims_that_do_not_fit(session, signer):
    for claims in ({"sub": "ann", "tenant_id": ["x"]}, {"sub": "x" * 8193}, {"sub": "a\0b"}, {"sub": "ann", "ip_address": "none"},
                   {"sub": "ann", "context": []}, {"name": "ann"}):  # fmt: skip
        assert refused(session, signer.token(**claims)).sqlstate == "22023", claims
    with sqlstate("22004"):
        session.admin.execute("SELECT audit.set_context_token(NULL)")


def test_a_token_expires_in_the_session(session, signer):
    """The session's context goes on, and is a claim from then on: once within a transaction, too."""
    session.show(signer.token(sub="ann", exp=int(time.time()) - 25), is_local=False)
    session.write()
    session.app.commit()

    def is_claimed():
        session.write()
        session.app.commit()
        return session.trust()[-1] == ("claimed", "ann")

    until(is_claimed)
    assert session.trust()[0] == ("verified", "ann")


# --- where it is required --------------------------------------------------------------------------------------------


def test_required(session, signer):
    session.admin.execute("SELECT audit.enable('t', require_context => '{tenant_id}', require_verified_context => true)")
    assert session.admin.execute("SELECT require_verified_context FROM audit.policy").fetchone() == (True,)
    session.app.execute("SAVEPOINT s")
    for prepare, message in [
        ("SELECT", "require an audit context"),
        ("SELECT audit.set_context(user_id => 'ann', tenant_id => 'acme')", "require a verified audit context"),
    ]:
        session.app.execute(prepare)
        for statement in ("INSERT INTO t VALUES (1)", "TRUNCATE t"):
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=message) as caught:
                session.app.execute(statement)
            assert "audit.set_context" in caught.value.diag.message_hint
            session.app.execute("ROLLBACK TO s")
            session.app.execute(prepare)
    session.show(signer.token(sub="ann", tenant_id="acme"))
    session.write()
    session.app.execute("SAVEPOINT s; SET LOCAL audit.reason = 'x'")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        session.write()
    session.app.execute("ROLLBACK TO s")
    session.write()
    session.app.commit()
    assert session.trust() == [("verified", "ann")] * 2


def test_required_in_a_schema(session, signer):
    session.admin.execute("CREATE SCHEMA shop; SELECT audit.enable_schema('shop', require_verified_context => true)")
    session.admin.execute("CREATE TABLE shop.item (id int) PARTITION BY RANGE (id)")
    session.admin.execute("CREATE TABLE shop.item_1 PARTITION OF shop.item FOR VALUES FROM (0) TO (10)")
    rows = session.admin.execute("SELECT target::text FROM audit.policy WHERE require_verified_context ORDER BY 1").fetchall()
    assert rows == [("shop.item",), ("shop.item_1",)]
    with sqlstate("55000"):
        session.admin.execute("INSERT INTO shop.item VALUES (1)")


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_mapping_of_ones_own(session, signer, configured):
    """Keys that are not mapped are not the token's: they stay as they are, and can be set at any time."""
    mapping = "user_id=email, tenant_id=/app_metadata/tenant"
    configured(**{"audit.context_claims": mapping})
    applied(session, "audit.context_claims", mapping)
    session.app.execute("SELECT audit.set_context(user_id => 'x', tenant_id => 'y', request_id => 'r-1')")
    session.show(signer.token(sub="1", email="ann@example.com", app_metadata={"tenant": "acme"}))
    session.write()
    session.app.execute("SET LOCAL audit.reason = 'monthly'")
    session.write()
    session.app.execute("SET LOCAL audit.tenant_id = 'other'")
    session.write()
    session.app.commit()
    assert session.trust("context_trust, user_id, tenant_id, request_id, reason") == [
        ("verified", "ann@example.com", "acme", "r-1", None),
        ("verified", "ann@example.com", "acme", "r-1", "monthly"),
        ("claimed", "ann@example.com", "other", "r-1", "monthly"),
    ]


def test_no_session_chooses_what_it_is_checked_by(session):
    for setting in ("context_keys_file", "context_audience", "context_claims", "context_preset"):
        for connection in (session.app, session.admin):
            with pytest.raises(psycopg.errors.CantChangeRuntimeParam):
                connection.execute(f"SET audit.{setting} = 'postgrest'")
            connection.rollback()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.app.execute("SHOW audit.context_keys_file")
    session.app.rollback()


def test_no_connection_undoes_the_mapping(new_cluster, signer):
    """Without the library preloaded, an option of the connection hides what the configuration says: then no token counts."""
    server = new_cluster()
    keys = write_keys(server, signer.jwks())
    server.configure(**{"audit.context_keys_file": str(keys), "audit.context_audience": AUDIENCE,
                        "audit.context_claims": "user_id=email"})  # fmt: skip
    server.reload()
    with server.connect() as conn:
        conn.execute("CREATE EXTENSION audit_ext")
    token = signer.token(sub="x", email="ann")
    for options in ("", "-c audit.context_claims=user_id=sub", "-c audit.context_claims="):
        with server.connect(options=options, autocommit=False) as conn:
            if options:
                with sqlstate("55000"):
                    conn.execute("SELECT audit.set_context_token(%s)", [token])
                continue
            conn.execute("SELECT audit.set_context_token(%s)", [token])
            assert conn.execute("SELECT current_setting('audit.user_id')").fetchone() == ("ann",)


def test_files_of_keys(session, signer, trusting, configured):
    """Read anew when it changes; refused when others could read it or when it is none."""
    path = trusting.folder / "context_keys.json"
    token = signer.token(sub="ann")
    session.show(token)
    session.app.commit()
    whole = path.read_text()
    try:
        for text, mode in [
            (whole, 0o640), (whole, 0o604), (whole, 0o606), ("", 0o600), ("{}", 0o600), ('{"keys": []}', 0o600),
            (json.dumps({"keys": [{"kty": "oct", "k": "c2hvcnQ"}]}), 0o600), (" " * 1_100_000, 0o600),
        ]:  # fmt: skip
            path.chmod(0o600)
            path.write_text(text)
            path.chmod(mode)
            error = refused(session, token)
            assert error.sqlstate == "F0000", (text[:50], mode)
            assert str(path) not in str(error), "who may not read the setting learns it from the error"
        path.chmod(0o600)
        path.write_text(json.dumps({"keys": signer.jwks()[1:]}))
        assert refused(session, token).sqlstate == "28000"
        path.unlink()
        assert refused(session, token).sqlstate == "F0000"
    finally:
        write_keys(trusting, whole)
    session.show(token)
    session.app.commit()


def test_tokens_are_not_taken_unasked(conn):
    """Where neither keys nor audience are set, as it is by default."""
    with sqlstate("55000"):
        conn.execute("SELECT audit.set_context_token('x')")


# --- presets ---------------------------------------------------------------------------------------------------------


def test_settings_of_postgrest(session, signer, configured):
    session.app.execute("SELECT set_config('request.jwt.claims', '{\"sub\": \"ann\"}', true)")
    session.write()
    session.app.commit()
    configured(**{"audit.context_preset": "postgrest"})
    applied(session, "audit.context_preset", "postgrest")
    headers = {"user-agent": "curl/8", "x-forwarded-for": "198.51.100.7, 192.0.2.9", "x-request-id": "r-7"}
    for user in ("ann", "bob"):
        claims = {"role": "authenticated", "sub": user, "session_id": "s-1", "tenant_id": "acme"}
        session.app.execute("SELECT set_config('request.jwt.claims', %s, true)", [json.dumps(claims)])
        session.app.execute("SELECT set_config('request.headers', %s, true)", [json.dumps(headers)])
        session.write()
    # Our own settings come first, and a token counts for more.
    session.app.execute("SELECT audit.set_context(user_id => 'eve')")
    session.write()
    session.app.commit()
    session.write()
    session.app.execute("SELECT set_config('request.jwt.claims', '{\"sub\": \"ann\", \"tenant_id\": \"acme\"}', true)")
    session.show(signer.token(sub="cyd"))
    session.write()
    session.app.commit()
    columns = "context_trust, user_id, tenant_id, session_id, request_id, host(ip_address), user_agent"
    of_headers = ("acme", "s-1", "r-7", "192.0.2.9", "curl/8")
    assert session.trust(columns) == [
        ("none", *[None] * 6),
        ("claimed", "ann", *of_headers),
        ("claimed", "bob", *of_headers),
        ("claimed", "eve", *of_headers),
        ("none", *[None] * 6),
        ("verified", "cyd", *[None] * 5),
    ]


def test_users_by_turns_in_one_statement(session, configured):
    """Nothing is kept of what the settings held a row ago."""
    configured(**{"audit.context_preset": "hasura"})
    applied(session, "audit.context_preset", "hasura")
    session.app.execute(
        """DO $$ BEGIN
             FOR i IN 1..6 LOOP
               PERFORM set_config('hasura.user', format('{"x-hasura-user-id": "u%s"}', i % 2), true);
               INSERT INTO t VALUES (i);
             END LOOP; END $$""")
    session.app.commit()
    rows = session.admin.execute("SELECT resource_id, user_id, context_trust FROM audit.log ORDER BY seq").fetchall()
    assert rows == [(str(i), f"u{i % 2}", "claimed") for i in range(1, 7)]


@pytest.mark.parametrize("claims", ["[]", "ann", '{"sub": ["ann"]}'])
def test_a_preset_that_cannot_be_read(session, configured, claims):
    """Who made the change is not left open without a word."""
    configured(**{"audit.context_preset": "postgrest"})
    applied(session, "audit.context_preset", "postgrest")
    session.app.execute("SELECT set_config('request.jwt.claims', %s, true)", [claims])
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="request.jwt.claims"):
        session.write()
    session.app.rollback()


# --- behind a pooler -------------------------------------------------------------------------------------------------


def test_behind_pgbouncer(session, signer):
    """One server connection by turns: a token counts for the transaction that showed it."""
    with Pooler(session.cluster, ["app"], "transaction", 1) as pooler:
        ann, bob = (pooler.connect(session.name, user="app", autocommit=False) for _ in range(2))
        for connection, user in [(ann, "ann"), (bob, "bob"), (bob, None), (ann, "ann"), (bob, None)]:
            if user:
                connection.execute("SELECT audit.set_context_token(%s)", [signer.token(sub=user)])
            session.write(connection)
            connection.commit()
        ann.close(), bob.close()
    assert session.trust() == [
        ("verified", "ann"), ("verified", "bob"), ("none", None), ("verified", "ann"), ("none", None)]  # fmt: skip
