//! What each parser of outside input must hold, whatever it is given: no panic, and what it takes it can say again.
//!
//! The cursor of `audit.get_logs` is read in SQL: tests/blackbox/test_fuzz.py.

use std::net::IpAddr;
use std::sync::LazyLock;

use audit_core::context::{check_context, client_ip, parse_inet};
use audit_core::jsonb::Writer;
use audit_core::message::Reader;
use audit_identity::claims::{Mapping, OF_TOKENS};
use audit_identity::keys::Keys;
use audit_identity::preset;
use audit_identity::token;
use audit_ledger::checkpoint::SignedCheckpoint;
use audit_ledger::proof::{ConsistencyProof, EventProof};
use serde::de::IgnoredAny;

/// The value of `audit.context`: an object in the eyes of another reader of JSON, too, and the same when it is read again.
pub fn context(input: &[u8]) {
    if check_context(input).is_err() {
        return;
    }
    // Databases of other encodings hold other bytes.
    if let Ok(text) = std::str::from_utf8(input) {
        assert!(text.trim_start().starts_with('{'));
        assert!(serde_json::from_str::<IgnoredAny>(text).is_ok(), "taken, and no JSON");
    }
    let mut first = Writer::new();
    first.json(input).expect("what was checked is written");
    let mut second = Writer::new();
    second.json(first.text()).expect("its text is JSON");
    assert_eq!((first.jsonb(), first.text()), (second.jsonb(), second.text()), "its text is another value");
}

/// An address, of `audit.ip_address` and of headers.
pub fn address(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(inet) = parse_inet(text) else { return };
    let again = parse_inet(&format!("{}/{}", inet.ip(), inet.bits)).expect("an address with its prefix");
    assert_eq!((again.ip(), again.bits), (inet.ip(), inet.bits));
}

/// The headers of proxies: the client is an address that is in one of them, or the connection's.
pub fn forwarded_for(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (forwarded, real) = text.split_once('\n').unwrap_or((text, ""));
    let remote = parse_inet("192.0.2.1").ok();
    let trusted: Vec<_> = ["192.0.2.0/24", "2001:db8::/32"].iter().filter_map(|text| parse_inet(text).ok()).collect();
    let connection: IpAddr = [192, 0, 2, 1].into();
    let direct = client_ip(Some(forwarded), Some(real), remote, &[]).expect("there is a connection");
    assert_eq!(direct.ip(), connection, "a proxy that nobody trusts was believed");
    client_ip(Some(forwarded), Some(real), remote, &trusted).expect("there is a connection");
    client_ip(Some(forwarded), Some(real), None, &trusted);
}

/// Claims and headers in settings of other software, and mappings.
pub fn claims(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (mapping, text) = text.split_once('\n').unwrap_or((OF_TOKENS, text));
    let Ok(mapping) = Mapping::parse(mapping) else { return };
    let Ok(mut said) = preset::claims(text, &mapping) else { return };
    let _ = preset::add_headers(&mut said, text);
    for value in said.values.into_iter().flatten() {
        assert!(!value.is_empty() && !value.contains('\0') && value.len() <= 65536);
    }
}

/// RFC 7515, appendix A.1; RFC 8037, appendix A.
static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    Keys::of_jwks(
        br#"{"keys": [{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"},
            {"kty":"OKP","crv":"Ed25519","kid":"ed","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
    )
    .expect("keys")
});
/// The one token signed by either that the seeds hold.
const SIGNED: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.";

/// A token: none but the one that was signed gets as far as its claims.
pub fn token(input: &[u8]) {
    use audit_identity::token::TokenError::{Audience, Claim, Expired, NotYet};
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(_) | Err(Audience | Claim(_) | Expired | NotYet) = token::verify(text, &KEYS, &["orders".into()], 0) {
        assert!(text.starts_with(SIGNED), "a token that nobody signed");
    }
}

/// A set of keys.
pub fn keys(input: &[u8]) {
    if let Ok(keys) = Keys::of_jwks(input) {
        let _ = token::verify(SIGNED, &keys, &[], 0);
    }
}

/// A checkpoint that somebody kept.
pub fn checkpoint(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(read) = SignedCheckpoint::parse(text) else { return };
    let again = SignedCheckpoint::parse(&read.text()).expect("its own text");
    assert_eq!(again.text(), read.text());
    assert_eq!(again.checkpoint, read.checkpoint);
    let _ = read.verify(&["PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".into()]);
}

/// The proof of an event.
pub fn proof(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(read) = EventProof::parse(text) else { return };
    let _ = read.check();
    let text = read.text().expect("what was read can be written");
    EventProof::parse(&text).expect("its own text");
}

/// The proof that one log is the beginning of another.
pub fn consistency(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(read) = ConsistencyProof::parse(text) else { return };
    let _ = read.check(&[0; 32]);
    let again = ConsistencyProof::parse(&read.text()).expect("its own text");
    assert_eq!((again.old_size, again.path), (read.old_size, read.path));
}

/// A message to the worker. Sessions write them, in shared memory: not outside input, and read as if it were.
pub fn message(input: &[u8]) {
    let mut reader = Reader::new(input);
    while !reader.is_at_end() {
        let Ok(kind) = reader.u8() else { return };
        let read = match kind % 4 {
            0 => reader.u32().map(|_| ()),
            1 => reader.u64().map(|_| ()),
            2 => reader.optional().map(|_| ()),
            _ => reader.string().map(|_| ()),
        };
        if read.is_err() {
            return;
        }
    }
}
