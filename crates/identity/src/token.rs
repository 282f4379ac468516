//! Signed tokens: JSON Web Tokens (RFC 7519) in the compact form of RFC 7515.
//!
//! Accepted are EdDSA with Ed25519, ES256, RS256 and HS256. The signature is checked first, by a key whose own algorithm it
//! is, and the claims are read once: what is checked is what is used.

use std::fmt;

use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde_json::Value;

use crate::claims::Claims;
use crate::keys::Keys;

/// How far clocks may be apart, in seconds.
pub const LEEWAY: i64 = 30;
/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 65536;
/// 9999-12-31, in seconds since the Unix epoch.
const MAX_TIME: f64 = 253_402_300_799.0;

/// A token that holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// What it says.
    pub claims: Claims,
    /// Until when, in seconds since the Unix epoch, leeway included.
    pub valid_until: i64,
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// Longer than [`MAX_TOKEN`].
    TooLong,
    /// No JWT in compact form, or its claims are no JSON object.
    Malformed,
    /// An algorithm that is not accepted, `none` among them.
    Algorithm,
    /// Its header has critical members that this code does not know.
    Critical,
    /// There is no key for it.
    UnknownKey,
    /// The signature is not by that key.
    Signature,
    /// A claim is missing, or not of its type.
    Claim(&'static str),
    /// `exp` is past.
    Expired,
    /// `nbf` is still to come.
    NotYet,
    /// It is for somebody else.
    Audience,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TokenError::TooLong => write!(f, "It is longer than {MAX_TOKEN} bytes."),
            TokenError::Malformed => f.write_str("It is no signed JSON Web Token in compact form."),
            TokenError::Algorithm => f.write_str("Its algorithm is none of EdDSA, ES256, RS256 and HS256."),
            TokenError::Critical => f.write_str("Its header has critical members, which are not supported."),
            TokenError::UnknownKey => f.write_str("No key of that id and algorithm is known."),
            TokenError::Signature => f.write_str("Its signature does not hold."),
            TokenError::Claim(name) => {
                write!(f, "Its claim \"{name}\" is missing or not of the type that it should be.")
            }
            TokenError::Expired => f.write_str("It has expired."),
            TokenError::NotYet => f.write_str("It is not valid yet."),
            TokenError::Audience => f.write_str("It is for another audience."),
        }
    }
}

impl std::error::Error for TokenError {}

/// Checks a token: its signature, its times at `now` (seconds since the Unix epoch), and that it is for one of the audiences.
pub fn verify(token: &str, keys: &Keys, audiences: &[String], now: i64) -> Result<Token, TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError::TooLong);
    }
    let claims = signed_claims(token, keys)?;
    let expiry = time(&claims, "exp")?.ok_or(TokenError::Claim("exp"))?;
    if now >= expiry.saturating_add(LEEWAY) {
        return Err(TokenError::Expired);
    }
    if time(&claims, "nbf")?.is_some_and(|begin| begin > now.saturating_add(LEEWAY)) {
        return Err(TokenError::NotYet);
    }
    let is_meant = |name: &Value| name.as_str().is_some_and(|name| audiences.iter().any(|audience| audience == name));
    let is_for_us = match claims.get("aud") {
        Some(name @ Value::String(_)) => is_meant(name),
        Some(Value::Array(names)) if names.iter().all(Value::is_string) => names.iter().any(is_meant),
        _ => return Err(TokenError::Claim("aud")),
    };
    if !is_for_us {
        return Err(TokenError::Audience);
    }
    Ok(Token { claims, valid_until: expiry.saturating_add(LEEWAY) })
}

fn signed_claims(token: &str, keys: &Keys) -> Result<Claims, TokenError> {
    if token.split('.').count() != 3 {
        return Err(TokenError::Malformed);
    }
    let header = decode_header(token).map_err(of_header)?;
    if !matches!(header.alg, Algorithm::EdDSA | Algorithm::ES256 | Algorithm::RS256 | Algorithm::HS256) {
        return Err(TokenError::Algorithm);
    }
    if header.crit.is_some() {
        return Err(TokenError::Critical);
    }
    // Times and audience are checked by `verify`, at a given time.
    let mut validation = Validation::new(header.alg);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    let mut error = TokenError::UnknownKey;
    for key in keys.candidates(header.kid.as_deref(), header.alg) {
        match decode::<Claims>(token, key, &validation) {
            Ok(token) => return Ok(token.claims),
            Err(refused) => error = of_decoding(refused),
        }
    }
    Err(error)
}

fn of_header(error: jsonwebtoken::errors::Error) -> TokenError {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        // A name that the library does not know.
        ErrorKind::Json(json) if json.is_data() => TokenError::Algorithm,
        ErrorKind::InvalidAlgorithmName | ErrorKind::UnsupportedAlgorithm => TokenError::Algorithm,
        _ => TokenError::Malformed,
    }
}

fn of_decoding(error: jsonwebtoken::errors::Error) -> TokenError {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::Json(_) | ErrorKind::Utf8(_) | ErrorKind::Base64(_) => TokenError::Malformed,
        _ => TokenError::Signature,
    }
}

/// A NumericDate (RFC 7519, section 2), in whole seconds. None where there is none.
fn time(claims: &Claims, name: &'static str) -> Result<Option<i64>, TokenError> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => match number.as_f64() {
            Some(seconds) if (0.0..=MAX_TIME).contains(&seconds) => Ok(Some(seconds as i64)),
            _ => Err(TokenError::Claim(name)),
        },
        Some(_) => Err(TokenError::Claim(name)),
    }
}
