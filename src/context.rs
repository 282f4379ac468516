//! The context: what the session says of its user. Read from the settings when a changeset begins.

use audit_core::context::parse_inet;
use audit_core::jsonb::Writer;

use crate::error::Error;
use crate::pg::guc::CONTEXT_SETTINGS;
use crate::pg::session;

/// The keys of the context, in the order of their settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    UserId,
    TenantId,
    RequestId,
    SessionId,
    IpAddress,
    UserAgent,
    Reason,
    Context,
}

/// Keys that a policy may require, with their names.
pub const REQUIRABLE: [(&str, Key); 7] = [
    ("user_id", Key::UserId),
    ("tenant_id", Key::TenantId),
    ("request_id", Key::RequestId),
    ("session_id", Key::SessionId),
    ("ip_address", Key::IpAddress),
    ("user_agent", Key::UserAgent),
    ("reason", Key::Reason),
];

/// A set of keys.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Keys(u8);

impl Keys {
    pub fn of(names: &[Vec<u8>]) -> Self {
        let mut keys = Keys::default();
        for (name, key) in REQUIRABLE {
            if names.iter().any(|wanted| wanted == name.as_bytes()) {
                keys.add(key);
            }
        }
        keys
    }

    pub fn add(&mut self, key: Key) {
        self.0 |= 1 << key as u8;
    }

    /// The keys of this set that `present` lacks.
    pub fn missing_from(self, present: Keys) -> Keys {
        Keys(self.0 & !present.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn names(self) -> String {
        let names: Vec<&str> =
            REQUIRABLE.iter().filter(|(_, key)| self.0 & (1 << *key as u8) != 0).map(|(name, _)| *name).collect();
        names.join(", ")
    }
}

/// The values in force. Empty ones are absent.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Context {
    values: [Option<Vec<u8>>; CONTEXT_SETTINGS.len()],
}

impl Context {
    pub fn current() -> Self {
        Context { values: std::array::from_fn(|i| CONTEXT_SETTINGS[i].get()) }
    }

    pub fn get(&self, key: Key) -> Option<&[u8]> {
        self.values[key as usize].as_deref()
    }

    pub fn present(&self) -> Keys {
        let mut keys = Keys::default();
        for (_, key) in REQUIRABLE {
            if self.get(key).is_some() {
                keys.add(key);
            }
        }
        keys
    }

    /// The address as an inet's payload.
    pub fn ip_address(&self) -> Result<Option<Vec<u8>>, Error> {
        let Some(text) = self.get(Key::IpAddress) else { return Ok(None) };
        let inet = parse_inet(&String::from_utf8_lossy(text)).map_err(Error::Context)?;
        Ok(Some(session::inet_payload(inet.ip(), inet.bits)))
    }

    /// The further keys, as JSONB and as its text.
    pub fn further(&self) -> Result<Option<Writer>, Error> {
        let Some(json) = self.get(Key::Context) else { return Ok(None) };
        let mut object = Writer::new();
        object.json(json)?;
        Ok(Some(object))
    }
}
