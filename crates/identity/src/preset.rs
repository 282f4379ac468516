//! What other software leaves in settings: PostgREST (and with it Supabase) and Hasura. Nobody has signed that.

use std::fmt;

use audit_core::context::client_ip;
use serde_json::Value;

use crate::claims::{ClaimError, Claims, Mapping, Said};

/// Which claim of `request.jwt.claims` says which key, unless a setting says otherwise.
pub const OF_POSTGREST: &str = "user_id=sub, tenant_id=tenant_id, session_id=session_id";
/// Which session variable of `hasura.user` says which key, unless a setting says otherwise.
pub const OF_HASURA: &str = "user_id=x-hasura-user-id, tenant_id=x-hasura-tenant-id";

const REQUEST_ID: usize = 2;
const IP_ADDRESS: usize = 4;
const USER_AGENT: usize = 5;

/// Why a setting is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresetError {
    /// Neither empty nor a JSON object.
    NoObject,
    /// A member of it cannot be used.
    Claim(ClaimError),
}

impl fmt::Display for PresetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PresetError::NoObject => f.write_str("It is no JSON object."),
            PresetError::Claim(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PresetError {}

/// What a setting with claims says. The empty text and JSON's null say nothing.
pub fn claims(text: &str, mapping: &Mapping) -> Result<Said, PresetError> {
    match object(text)? {
        Some(claims) => mapping.apply(&claims).map_err(PresetError::Claim),
        None => Ok(Said::default()),
    }
}

/// Adds what `request.headers` says where the claims say nothing: request, client and user agent. The client sends these
/// headers as it likes, so what cannot be used is left out.
pub fn add_headers(said: &mut Said, text: &str) -> Result<(), PresetError> {
    let Some(headers) = object(text)? else { return Ok(()) };
    let header = |name: &str| headers.get(name).and_then(Value::as_str).filter(|value| !value.contains('\0'));
    let client = client_ip(header("x-forwarded-for"), header("x-real-ip"), None, &[]);
    let found = [
        (REQUEST_ID, header("x-request-id").map(str::to_owned)),
        (IP_ADDRESS, client.map(|client| client.ip().to_string())),
        (USER_AGENT, header("user-agent").map(str::to_owned)),
    ];
    for (key, value) in found {
        if let Some(value) = value
            && said.values[key].is_none()
        {
            // Longer than it may be: left out.
            let _ = said.put(key, value);
        }
    }
    Ok(())
}

fn object(text: &str) -> Result<Option<Claims>, PresetError> {
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(text).map_err(|_| PresetError::NoObject)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn postgrest(claims_text: &str, headers: &str) -> [Option<String>; 8] {
        let mut said = claims(claims_text, &Mapping::parse(OF_POSTGREST).unwrap()).unwrap();
        add_headers(&mut said, headers).unwrap();
        said.values
    }

    fn texts(values: &[Option<String>; 8]) -> [Option<&str>; 8] {
        std::array::from_fn(|i| values[i].as_deref())
    }

    #[test]
    fn claims_and_headers_of_postgrest() {
        let values = postgrest(
            r#"{"role": "authenticated", "sub": "8f1c", "session_id": "s1", "aud": "authenticated"}"#,
            r#"{"user-agent": "curl/8", "x-forwarded-for": "198.51.100.7, 192.0.2.1", "x-request-id": "r1", "x-real-ip": "10.0.0.1"}"#,
        );
        let expected = [Some("8f1c"), None, Some("r1"), Some("s1"), Some("192.0.2.1"), Some("curl/8"), None, None];
        assert_eq!(texts(&values), expected);
        assert_eq!(postgrest("", ""), <[Option<String>; 8]>::default());
        assert_eq!(postgrest("null", "null"), <[Option<String>; 8]>::default());
    }

    #[test]
    fn headers_that_cannot_be_used_are_left_out() {
        let long = "x".repeat(8193);
        let headers =
            format!(r#"{{"user-agent": "{long}", "x-forwarded-for": "nonsense", "x-request-id": "a\u0000"}}"#);
        assert_eq!(postgrest("{}", &headers), <[Option<String>; 8]>::default());
    }

    #[test]
    fn session_variables_of_hasura() {
        let said =
            claims(r#"{"x-hasura-role": "user", "x-hasura-user-id": "42"}"#, &Mapping::parse(OF_HASURA).unwrap());
        assert_eq!(said.unwrap().values[0].as_deref(), Some("42"));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let mapping = Mapping::parse(OF_POSTGREST).unwrap();
        for text in ["[]", "ann", "{", "1", "\"ann\""] {
            assert_eq!(claims(text, &mapping), Err(PresetError::NoObject), "{text}");
            assert_eq!(add_headers(&mut Said::default(), text), Err(PresetError::NoObject));
        }
        assert!(matches!(claims(r#"{"sub": ["ann"]}"#, &mapping), Err(PresetError::Claim(_))));
    }
}
