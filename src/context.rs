//! The context: what the session says of its user. Read from the settings when a changeset begins.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use audit_core::canonical::{self, ContextRecord};
use audit_core::context::{check_string, parse_inet};
use audit_core::jsonb::Writer;

use crate::error::Error;
use crate::pg::guc::{self, CONTEXT_SETTINGS};
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

/// The settings' values, in the order of the keys. Empty ones are absent.
pub type Values = [Option<Vec<u8>>; CONTEXT_SETTINGS.len()];

/// The values in force.
pub fn current_values() -> Values {
    std::array::from_fn(|i| CONTEXT_SETTINGS[i].get())
}

/// The values in force, taken apart.
#[derive(Default)]
pub struct Context {
    values: Values,
    pub present: Keys,
    /// The address as an inet's payload, and as its text.
    pub ip_address: Option<(Vec<u8>, Vec<u8>)>,
    /// The further keys as JSONB, and as its text.
    pub further: Option<Writer>,
    /// These fields in the canonical text of a changeset.
    pub canonical: Vec<u8>,
}

impl PartialEq for Context {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

/// The session's context but for one key, and a generation of its own by which it is known.
#[derive(Clone)]
pub struct Derived {
    pub generation: u64,
    /// Generation of the context that it derives from.
    pub base: u64,
    pub context: Rc<Context>,
}

/// What was derived from the context of one generation.
#[derive(Default)]
struct Derivations {
    base: u64,
    /// Generations of derived contexts count down from the top, where those of the settings never come.
    count: u64,
    /// By value, for each key.
    made: [HashMap<Vec<u8>, Derived>; CONTEXT_SETTINGS.len()],
}

/// Derived contexts kept beyond a transaction. Within one there are as many as it has changesets.
const KEEP_DERIVED: usize = 1024;

thread_local! {
    static DERIVED: RefCell<Derivations> = RefCell::new(Derivations::default());
    static LAST: RefCell<Option<(u64, Rc<Context>)>> = const { RefCell::new(None) };
}

impl Context {
    /// What the settings say now. Read and taken apart again only when one of them changed.
    pub fn current() -> Result<Rc<Self>, Error> {
        let generation = guc::generation();
        let last = LAST.with_borrow(|last| last.as_ref().filter(|(of, _)| *of == generation).map(|(_, c)| c.clone()));
        if let Some(context) = last {
            return Ok(context);
        }
        let context = Rc::new(Context::of(current_values())?);
        LAST.with_borrow_mut(|last| *last = Some((generation, context.clone())));
        Ok(context)
    }

    /// The session's context with another value of one of its strings.
    pub fn with(key: Key, value: &[u8]) -> Result<Derived, Error> {
        let base = guc::generation();
        let known = DERIVED.with_borrow(|derived| {
            (derived.base == base).then(|| derived.made[key as usize].get(value).cloned()).flatten()
        });
        if let Some(known) = known {
            return Ok(known);
        }
        let current = Context::current()?;
        if current.get(key) == Some(value) {
            return Ok(Derived { generation: base, base, context: current });
        }
        check_string(value).map_err(Error::Context)?;
        let mut values = current_values();
        values[key as usize] = Some(value.to_vec());
        let context = Context::of(values)?;
        Ok(DERIVED.with_borrow_mut(|derived| derived.keep(base, key, value, context)))
    }

    /// What the settings of a session said.
    pub fn of(values: Values) -> Result<Self, Error> {
        let mut context = Context { values, ..Context::default() };
        for (_, key) in REQUIRABLE {
            if context.get(key).is_some() {
                context.present.add(key);
            }
        }
        if let Some(text) = context.get(Key::IpAddress) {
            let inet = parse_inet(&String::from_utf8_lossy(text)).map_err(Error::Context)?;
            let payload = session::inet_payload(inet.ip(), inet.bits);
            let text = session::inet_text(&payload);
            context.ip_address = Some((payload, text));
        }
        if let Some(json) = context.get(Key::Context) {
            let mut object = Writer::new();
            object.json(json)?;
            context.further = Some(object);
        }
        let mut text = Vec::new();
        canonical::context(&context.record(), &mut text)?;
        context.canonical = text;
        Ok(context)
    }

    fn record(&self) -> ContextRecord<'_> {
        ContextRecord {
            user_id: self.get(Key::UserId),
            tenant_id: self.get(Key::TenantId),
            request_id: self.get(Key::RequestId),
            session_id: self.get(Key::SessionId),
            ip_address: self.ip_address.as_ref().map(|(_, text)| text.as_slice()),
            user_agent: self.get(Key::UserAgent),
            reason: self.get(Key::Reason),
            context: self.further.as_ref().map(Writer::text),
        }
    }

    pub fn values(&self) -> &Values {
        &self.values
    }

    pub fn get(&self, key: Key) -> Option<&[u8]> {
        self.values[key as usize].as_deref()
    }
}

impl Derivations {
    fn keep(&mut self, base: u64, key: Key, value: &[u8], context: Context) -> Derived {
        if self.base != base {
            self.made.iter_mut().for_each(HashMap::clear);
            self.base = base;
        }
        self.count += 1;
        let derived = Derived { generation: u64::MAX - self.count, base, context: Rc::new(context) };
        self.made[key as usize].insert(value.to_vec(), derived.clone());
        derived
    }
}

/// The transaction has ended. Nothing here can fail.
pub fn forget_derived() {
    DERIVED.with_borrow_mut(|derived| {
        for made in derived.made.iter_mut().filter(|made| made.len() > KEEP_DERIVED) {
            *made = HashMap::new();
        }
    });
}
