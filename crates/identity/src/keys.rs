//! The keys that tokens are checked with: a JWK Set (RFC 7517).
//!
//! A key says by itself what it is for. So a token's header only chooses among keys, and cannot have a public key taken for
//! the secret of an HMAC.

use std::fmt;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

/// Of RSA's modulus: 2048 bits.
const MIN_RSA_BYTES: usize = 256;
/// Of an HMAC's secret: as long as its hash (RFC 7518, section 3.2).
const MIN_SECRET_BYTES: usize = 32;

/// A set of keys.
#[derive(Debug)]
pub struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Why a text is no set of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeysError {
    /// Not `{"keys": […]}`.
    NoSet,
    /// A key lacks a part, or a part is not what it should be.
    Malformed {
        /// Its place in the set, from 0.
        at: usize,
    },
    /// A key that is too short to be safe.
    TooShort {
        /// Its place in the set, from 0.
        at: usize,
    },
    /// There are keys, but none that can be used here.
    NoneUsable,
}

impl fmt::Display for KeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeysError::NoSet => f.write_str("It is no JWK Set, a JSON object with an array \"keys\"."),
            KeysError::Malformed { at } => write!(f, "Key {at} of the set, counted from 0, is malformed."),
            KeysError::TooShort { at } => write!(
                f,
                "Key {at} of the set, counted from 0, is too short: RSA takes 2048 bits, HS256 a secret of 32 bytes."
            ),
            KeysError::NoneUsable => {
                f.write_str("It has no key for signatures with EdDSA (Ed25519), ES256, RS256 or HS256.")
            }
        }
    }
}

impl std::error::Error for KeysError {}

impl Keys {
    /// Reads a JWK Set. Keys of other kinds and for other uses are left out, as RFC 7517, section 5, has it.
    pub fn of_jwks(text: &[u8]) -> Result<Self, KeysError> {
        let set: Value = serde_json::from_slice(text).map_err(|_| KeysError::NoSet)?;
        let members = set.get("keys").and_then(Value::as_array).ok_or(KeysError::NoSet)?;
        let mut keys = Vec::new();
        for (at, member) in members.iter().enumerate() {
            keys.extend(Key::of(member, at)?);
        }
        if keys.is_empty() { Err(KeysError::NoneUsable) } else { Ok(Keys(keys)) }
    }

    /// The keys that can have made a signature with that algorithm: where the token names a key, that one alone.
    pub(crate) fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &DecodingKey> {
        let is_meant = move |key: &&Key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id);
        self.0.iter().filter(is_meant).map(|key| &key.key)
    }
}

impl Key {
    fn of(member: &Value, at: usize) -> Result<Option<Self>, KeysError> {
        // Before it is read whole: others may have members that this crate does not know.
        if !matches!(member["kty"].as_str(), Some("OKP" | "EC" | "RSA" | "oct")) {
            return Ok(None);
        }
        if matches!(member["crv"].as_str(), Some(curve) if !matches!(curve, "Ed25519" | "P-256")) {
            return Ok(None);
        }
        let malformed = |_| KeysError::Malformed { at };
        let jwk: Jwk = serde_json::from_value(member.clone()).map_err(|_| KeysError::Malformed { at })?;
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
            AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
            _ => return Err(KeysError::Malformed { at }),
        };
        let is_for = match jwk.common.key_algorithm {
            None => true,
            Some(KeyAlgorithm::EdDSA) => algorithm == Algorithm::EdDSA,
            Some(KeyAlgorithm::ES256) => algorithm == Algorithm::ES256,
            Some(KeyAlgorithm::RS256) => algorithm == Algorithm::RS256,
            Some(KeyAlgorithm::HS256) => algorithm == Algorithm::HS256,
            Some(_) => false,
        };
        let signs = jwk.common.public_key_use.as_ref().is_none_or(|r#use| *r#use == PublicKeyUse::Signature);
        let verifies = jwk.common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
        if !(is_for && signs && verifies) {
            return Ok(None);
        }
        let key = DecodingKey::from_jwk(&jwk).map_err(malformed)?;
        let length = match key.kind() {
            jsonwebtoken::DecodingKeyKind::SecretOrDer(bytes) => bytes.len(),
            jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } => n.len(),
        };
        match algorithm {
            Algorithm::RS256 if length < MIN_RSA_BYTES => Err(KeysError::TooShort { at }),
            Algorithm::HS256 if length < MIN_SECRET_BYTES => Err(KeysError::TooShort { at }),
            Algorithm::EdDSA if length != 32 => Err(KeysError::Malformed { at }),
            Algorithm::ES256 if length != 65 => Err(KeysError::Malformed { at }),
            _ => Ok(Some(Key { id: jwk.common.key_id, algorithm, key })),
        }
    }
}
