//! From claims to the context: which claim says which key.

use std::fmt;

use audit_core::context::{ContextError, check_context, check_string, parse_inet};
use serde_json::{Map, Value};

/// The keys of the context, in the order of their settings.
pub const KEYS: [&str; 8] =
    ["user_id", "tenant_id", "request_id", "session_id", "ip_address", "user_agent", "reason", "context"];

const IP_ADDRESS: usize = 4;
const CONTEXT: usize = 7;

/// The claims of a token, and of what is like one.
pub type Claims = Map<String, Value>;

/// Which claim says which key, unless a setting says otherwise.
pub const OF_TOKENS: &str = "user_id=sub, tenant_id=tenant_id, request_id=request_id, session_id=sid, \
    ip_address=ip_address, user_agent=user_agent, reason=reason, context=context";

/// What claims say of the context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said {
    /// The values, in the order of [`KEYS`]. None is empty.
    pub values: [Option<String>; KEYS.len()],
}

impl Said {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.values.iter().all(Option::is_none)
    }

    pub(crate) fn put(&mut self, key: usize, value: String) -> Result<(), ContextError> {
        if value.is_empty() {
            return Ok(());
        }
        match key {
            IP_ADDRESS => parse_inet(&value).map(|_| ())?,
            CONTEXT => check_context(value.as_bytes())?,
            _ => check_string(value.as_bytes())?,
        }
        if let Some(place) = self.values.get_mut(key) {
            *place = Some(value);
        }
        Ok(())
    }
}

/// Which claim says which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    claims: [Option<Claim>; KEYS.len()],
}

/// A claim by its name, or by the JSON pointer (RFC 6901) to it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim(String);

impl Claim {
    fn of<'a>(&self, claims: &'a Claims) -> Option<&'a Value> {
        let Some(pointer) = self.0.strip_prefix('/') else { return claims.get(&self.0) };
        let (first, rest) = pointer.split_at(pointer.find('/').unwrap_or(pointer.len()));
        claims.get(&first.replace("~1", "/").replace("~0", "~"))?.pointer(rest)
    }
}

/// What is wrong with a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MappingError {
    /// No `key=claim`.
    NoPair(String),
    /// A key that the context does not have.
    UnknownKey(String),
    /// A key that is mapped twice.
    Twice(String),
    /// No key at all.
    Empty,
}

impl fmt::Display for MappingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MappingError::NoPair(text) => write!(f, "\"{text}\" is not of the form key=claim."),
            MappingError::UnknownKey(key) => write!(f, "The context has no key \"{key}\"."),
            MappingError::Twice(key) => write!(f, "Key \"{key}\" is mapped twice."),
            MappingError::Empty => f.write_str("No key is mapped."),
        }
    }
}

impl std::error::Error for MappingError {}

/// What is wrong with a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimError {
    /// Name of the key that it is for.
    pub key: &'static str,
    /// What is wrong.
    pub problem: String,
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "The claim for {} cannot be used: {}", self.key, self.problem)
    }
}

impl std::error::Error for ClaimError {}

impl Mapping {
    /// Reads `key=claim, key=claim, …`: separated by commas or white space, a claim by its name, or by a JSON pointer
    /// where it begins with a slash.
    pub fn parse(text: &str) -> Result<Self, MappingError> {
        let mut claims: [Option<Claim>; KEYS.len()] = Default::default();
        let pairs = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|pair| !pair.is_empty());
        for pair in pairs {
            let (key, claim) = match pair.split_once('=') {
                Some((key, claim)) if !claim.is_empty() => (key, claim),
                _ => return Err(MappingError::NoPair(pair.to_owned())),
            };
            let place = KEYS.iter().position(|name| *name == key).and_then(|at| claims.get_mut(at));
            let Some(place) = place else { return Err(MappingError::UnknownKey(key.to_owned())) };
            if place.replace(Claim(claim.to_owned())).is_some() {
                return Err(MappingError::Twice(key.to_owned()));
            }
        }
        if claims.iter().all(Option::is_none) {
            return Err(MappingError::Empty);
        }
        Ok(Mapping { claims })
    }

    /// The keys that are mapped: a bit for each, the first of [`KEYS`] lowest.
    pub fn keys(&self) -> u8 {
        (0..).zip(&self.claims).filter(|(_, claim)| claim.is_some()).fold(0, |keys, (at, _)| keys | 1 << at)
    }

    /// What the claims say. A claim that is absent or null says nothing; one of another type than its key takes is an error.
    pub fn apply(&self, claims: &Claims) -> Result<Said, ClaimError> {
        let mut said = Said::default();
        for (at, claim) in self.claims.iter().enumerate() {
            let Some(value) = claim.as_ref().and_then(|claim| claim.of(claims)) else { continue };
            let wrong = |problem: String| ClaimError { key: KEYS[at], problem };
            let text = match value {
                Value::Null => continue,
                Value::Object(_) if at == CONTEXT => value.to_string(),
                _ if at == CONTEXT => return Err(wrong("it is no JSON object.".into())),
                Value::String(text) => text.clone(),
                Value::Number(number) if number.is_i64() || number.is_u64() => number.to_string(),
                _ => return Err(wrong("it is neither a string nor a whole number.".into())),
            };
            if text.contains('\0') {
                return Err(wrong("it has a null character, which PostgreSQL cannot hold.".into()));
            }
            said.put(at, text).map_err(|error| wrong(error.detail))?;
        }
        Ok(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(json: &str) -> Claims {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_standard_mapping() {
        let mapping = Mapping::parse(OF_TOKENS).unwrap();
        assert_eq!(mapping.keys(), 0xff);
        let said = mapping
            .apply(&claims(
                r#"{"sub": "ann", "tenant_id": 7, "sid": "s", "ip_address": "192.0.2.1", "reason": null, "user_agent": "",
                    "context": {"b": 1, "a": [1.5]}, "other": true}"#,
            ))
            .unwrap();
        let expected =
            [Some("ann"), Some("7"), None, Some("s"), Some("192.0.2.1"), None, None, Some(r#"{"a":[1.5],"b":1}"#)];
        // Members come in either order, as another crate of the build asks for.
        let as_json = |text: &Option<String>| text.as_deref().and_then(|text| serde_json::from_str::<Value>(text).ok());
        assert_eq!(as_json(&said.values[7]), as_json(&expected[7].map(str::to_owned)));
        assert_eq!(said.values[..7].iter().map(Option::as_deref).collect::<Vec<_>>(), expected[..7]);
    }

    #[test]
    fn nested_claims_by_pointer() {
        let mapping = Mapping::parse(
            "tenant_id=/app_metadata/tenants/1\nuser_id=/https:~1~1hasura.io~1jwt~1claims/x-hasura-user-id",
        )
        .unwrap();
        assert_eq!(mapping.keys(), 0b11);
        let said = mapping
            .apply(&claims(
                r#"{"app_metadata": {"tenants": ["a", "b"]}, "https://hasura.io/jwt/claims": {"x-hasura-user-id": "42"}}"#,
            ))
            .unwrap();
        assert_eq!(said.values[..2], [Some("42".to_owned()), Some("b".to_owned())]);
        assert!(mapping.apply(&claims("{}")).unwrap().is_empty());
    }

    #[test]
    fn a_name_with_a_dot_is_no_path() {
        let mapping = Mapping::parse("user_id=a.b").unwrap();
        assert_eq!(mapping.apply(&claims(r#"{"a": {"b": "x"}, "a.b": "y"}"#)).unwrap().values[0].as_deref(), Some("y"));
    }

    #[test]
    fn mappings_that_are_none() {
        for (text, error) in [
            ("user_id", MappingError::NoPair("user_id".into())),
            ("user_id=", MappingError::NoPair("user_id=".into())),
            ("name=sub", MappingError::UnknownKey("name".into())),
            ("user_id=sub user_id=name", MappingError::Twice("user_id".into())),
            (" , ", MappingError::Empty),
        ] {
            assert_eq!(Mapping::parse(text), Err(error));
        }
    }

    #[test]
    fn claims_of_another_type_are_refused() {
        let mapping = Mapping::parse(OF_TOKENS).unwrap();
        for json in [
            r#"{"sub": ["ann"]}"#,
            r#"{"sub": {"id": 1}}"#,
            r#"{"sub": true}"#,
            r#"{"sub": 1.5}"#,
            r#"{"sub": 100000000000000000000000}"#,
            r#"{"sub": "a\u0000b"}"#,
            r#"{"ip_address": "192.0.2"}"#,
            r#"{"context": "{}"}"#,
            r#"{"context": []}"#,
            r#"{"context": {"a": "\u0000"}}"#,
        ] {
            assert!(mapping.apply(&claims(json)).is_err(), "{json}");
        }
        let long = format!(r#"{{"sub": "{}"}}"#, "x".repeat(8193));
        assert_eq!(mapping.apply(&claims(&long)).unwrap_err().key, "user_id");
    }
}
