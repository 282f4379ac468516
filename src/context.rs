//! The context: what the session says of its user. Read from the settings when a changeset begins.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use audit_core::canonical::{self, ContextRecord, Trust};
use audit_core::context::{check_string, parse_inet};
use audit_core::jsonb::Writer;

use crate::error::Error;
use crate::gucs::{self, ContextPreset};
use crate::identity;
use crate::pg::guc::{self, CONTEXT_SETTINGS, Stamp};
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

/// A set of keys, and whether their values are verified.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Keys(u16);

const VERIFIED: u16 = 1 << CONTEXT_SETTINGS.len();

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

    pub fn add_verified(&mut self) {
        self.0 |= VERIFIED;
    }

    /// The keys of this set that `present` lacks.
    pub fn missing_from(self, present: Keys) -> Keys {
        Keys(self.0 & !present.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Why a change of the table is refused that lacks these.
    pub fn refusal(self, table: String) -> Error {
        match self.0 {
            VERIFIED => Error::UnverifiedContext { table },
            _ => Error::MissingContext { table, keys: self.names() },
        }
    }

    fn names(self) -> String {
        let names: Vec<&str> =
            REQUIRABLE.iter().filter(|(_, key)| self.0 & (1 << *key as u8) != 0).map(|(name, _)| *name).collect();
        names.join(", ")
    }
}

/// The settings' values, in the order of the keys. Empty ones are absent.
pub type Values = [Option<Vec<u8>>; CONTEXT_SETTINGS.len()];

/// What a session says of its user, and on what that rests.
#[derive(Clone, PartialEq, Eq)]
pub struct Said {
    pub values: Values,
    pub trust: Trust,
}

impl Said {
    pub fn nothing() -> Self {
        Said { values: Values::default(), trust: Trust::None }
    }

    /// What this session says now, without what cannot be read: where an error is of no use.
    pub fn now_or_less() -> Self {
        let (said, values, _) = Said::until();
        said.unwrap_or_else(|_| Said::of_values(values, None))
    }

    /// What this session says now; the values of our own settings alone; and until when the token that they are from is
    /// valid, if it counts.
    fn until() -> (Result<Self, Error>, Values, Option<i64>) {
        let own: Values = std::array::from_fn(|i| CONTEXT_SETTINGS[i].get());
        let token = token_in_force();
        let preset = gucs::context_preset();
        let said = if preset == ContextPreset::Off {
            Ok(Said::of_values(own.clone(), token))
        } else {
            identity::look(preset);
            identity::of_preset(preset).map(|of_preset| {
                // A key that the token leaves empty stays so.
                let is_open = |i: usize| token.is_none_or(|token| token.keys >> i & 1 == 0);
                let mut values = own.clone();
                for (i, (value, other)) in values.iter_mut().zip(of_preset).enumerate() {
                    if value.is_none() && is_open(i) {
                        *value = other;
                    }
                }
                Said::of_values(values, token)
            })
        };
        (said, own, token.map(|token| token.valid_until))
    }

    fn of_values(values: Values, token: Option<Stamp>) -> Self {
        let trust = match token {
            Some(_) => Trust::Verified,
            None if values.iter().any(Option::is_some) => Trust::Claimed,
            None => Trust::None,
        };
        Said { values, trust }
    }
}

/// The last token of which all keys still have the values that it gave them, unless it has expired. A key that was set by
/// other means since, to whatever value, is none of the token's any more.
fn token_in_force() -> Option<Stamp> {
    let stamps = guc::stamps();
    let last = stamps.iter().flatten().max_by_key(|stamp| stamp.serial).copied()?;
    let is_whole = (0..).zip(&stamps).all(|(i, stamp)| last.keys >> i & 1 == 0 || *stamp == Some(last));
    (is_whole && !has_expired(last.valid_until)).then_some(last)
}

/// By the time at which the client's statement began.
fn has_expired(valid_until: i64) -> bool {
    session::unix_usecs(session::statement_time()).div_euclid(1_000_000) >= valid_until
}

/// Changes whenever what the session says may have.
pub fn generation() -> u64 {
    let preset = gucs::context_preset();
    if preset != ContextPreset::Off {
        identity::look(preset);
    }
    guc::generation()
}

/// Has contexts made anew.
pub fn changed() {
    guc::next_generation();
}

/// What a session says, taken apart.
pub struct Context {
    said: Said,
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
        self.said == other.said
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

/// The context of a generation, and until when the token is valid that it is from.
struct Last {
    generation: u64,
    valid_until: Option<i64>,
    context: Rc<Context>,
}

thread_local! {
    static DERIVED: RefCell<Derivations> = RefCell::new(Derivations::default());
    static LAST: RefCell<Option<Last>> = const { RefCell::new(None) };
}

impl Context {
    /// What the settings say now. Read and taken apart again only when one of them changed.
    pub fn current() -> Result<Rc<Self>, Error> {
        let is_current = |last: &&Last| last.generation == generation();
        let found =
            LAST.with_borrow(|last| last.as_ref().filter(is_current).map(|l| (l.context.clone(), l.valid_until)));
        match found {
            Some((_, Some(valid_until))) if has_expired(valid_until) => changed(),
            Some((context, _)) => return Ok(context),
            None => {}
        }
        let (said, _, valid_until) = Said::until();
        let context = Rc::new(Context::of(said?)?);
        let last = Last { generation: guc::generation(), valid_until, context: context.clone() };
        LAST.with_borrow_mut(|known| *known = Some(last));
        Ok(context)
    }

    /// The session's context with another value of one of its strings.
    pub fn with(key: Key, value: &[u8]) -> Result<Derived, Error> {
        let current = Context::current()?;
        let base = guc::generation();
        let known = DERIVED.with_borrow(|derived| {
            (derived.base == base).then(|| derived.made[key as usize].get(value).cloned()).flatten()
        });
        if let Some(known) = known {
            return Ok(known);
        }
        if current.get(key) == Some(value) {
            return Ok(Derived { generation: base, base, context: current });
        }
        check_string(value).map_err(Error::Context)?;
        let mut said = current.said.clone();
        said.values[key as usize] = Some(value.to_vec());
        // A row's own tenant is nobody's claim.
        if key != Key::TenantId {
            said.trust = Trust::Claimed;
        }
        let context = Context::of(said)?;
        Ok(DERIVED.with_borrow_mut(|derived| derived.keep(base, key, value, context)))
    }

    /// What a session said.
    pub fn of(said: Said) -> Result<Self, Error> {
        let mut context =
            Context { said, present: Keys::default(), ip_address: None, further: None, canonical: Vec::new() };
        if context.trust() == Trust::Verified {
            context.present.add_verified();
        }
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
            context_trust: self.trust(),
        }
    }

    pub fn said(&self) -> &Said {
        &self.said
    }

    pub fn trust(&self) -> Trust {
        self.said.trust
    }

    pub fn get(&self, key: Key) -> Option<&[u8]> {
        self.said.values[key as usize].as_deref()
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
