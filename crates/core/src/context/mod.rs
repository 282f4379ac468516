//! What a session may say of its user: limits, addresses, and the client behind proxies.
//!
//! A value that is none is refused where it is set; nothing is ever cut.

mod inet;
mod proxy;

pub use inet::{Family, Inet, parse_inet};
pub use proxy::client_ip;

use std::fmt;

use crate::error::Error;
use crate::jsonb;

/// Longest string, in bytes.
pub const MAX_STRING: usize = 8192;
/// Longest text of a context object, in bytes.
pub const MAX_CONTEXT: usize = 65536;

/// What is wrong with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextErrorKind {
    /// Longer than [`MAX_STRING`] or [`MAX_CONTEXT`].
    TooLong,
    /// No IP address.
    NotAnAddress,
    /// No JSON text, or one that `jsonb` can't hold.
    NotJson,
    /// JSON, but no object.
    NotAnObject,
    /// The allocator has nothing left.
    OutOfMemory,
}

/// Why a context value is refused, in the words of PostgreSQL's error fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextError {
    /// What is wrong, for those who tell by it.
    pub kind: ContextErrorKind,
    /// Primary message.
    pub message: &'static str,
    /// What exactly.
    pub detail: String,
    /// What to do.
    pub hint: &'static str,
}

impl fmt::Display for ContextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message, self.detail)
    }
}

impl std::error::Error for ContextError {}

fn check_length(length: usize, limit: usize) -> Result<(), ContextError> {
    if length <= limit {
        return Ok(());
    }
    Err(ContextError {
        kind: ContextErrorKind::TooLong,
        message: "context value is too long",
        detail: format!("The value has {length} bytes; at most {limit} are allowed."),
        hint: "Context values are never cut; pass a shorter one.",
    })
}

/// Checks a string value: user, tenant, request, session, user agent, reason.
pub fn check_string(value: &[u8]) -> Result<(), ContextError> {
    check_length(value.len(), MAX_STRING)
}

/// Checks a context object: JSON that `jsonb` can hold.
pub fn check_context(json: &[u8]) -> Result<(), ContextError> {
    check_length(json.len(), MAX_CONTEXT)?;
    let hint = "Pass a JSON object such as {\"ticket\": \"4711\"}.";
    match jsonb::check_json(json) {
        Ok(true) => Ok(()),
        Ok(false) => Err(ContextError {
            kind: ContextErrorKind::NotAnObject,
            message: "context is not a JSON object",
            detail: "The value is an array or a scalar.".to_owned(),
            hint,
        }),
        Err(Error::OutOfMemory) => Err(ContextError {
            kind: ContextErrorKind::OutOfMemory,
            message: "out of memory",
            // even a short text would need memory
            detail: String::new(),
            hint: "",
        }),
        Err(error) => Err(ContextError {
            kind: ContextErrorKind::NotJson,
            message: "context is not a JSON object",
            detail: format!("The value is refused: {error}."),
            hint,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_end_at_the_limit() {
        assert_eq!(check_string(&[b'x'; MAX_STRING]), Ok(()));
        let error = check_string(&[b'x'; MAX_STRING + 1]).unwrap_err();
        assert_eq!(error.kind, ContextErrorKind::TooLong);
        assert_eq!(error.to_string(), "context value is too long: The value has 8193 bytes; at most 8192 are allowed.");
    }

    #[test]
    fn a_context_is_an_object_that_jsonb_can_hold() {
        assert_eq!(check_context(b"{}"), Ok(()));
        assert_eq!(check_context(" {\"ä\": [1, {}]}\n".as_bytes()), Ok(()));
        let kind = |json: &[u8]| check_context(json).unwrap_err().kind;
        for scalar in [&b"[]"[..], b"1", b"null", b"\"{}\""] {
            assert_eq!(kind(scalar), ContextErrorKind::NotAnObject);
        }
        for text in [&b""[..], b"{", b"{a: 1}", b"{\"a\": \"\\u0000\"}", b"{\"a\": 1e131072}"] {
            assert_eq!(kind(text), ContextErrorKind::NotJson);
        }
        let large = format!("{{\"a\": \"{}\"}}", "x".repeat(MAX_CONTEXT));
        assert_eq!(kind(large.as_bytes()), ContextErrorKind::TooLong);
        assert_eq!(
            check_context(&large.as_bytes()[..0]).unwrap_err().hint,
            "Pass a JSON object such as {\"ticket\": \"4711\"}."
        );
    }
}
