//! What the database itself knows of the session: roles, application name, client.

use std::cell::RefCell;
use std::rc::Rc;

use audit_core::canonical::{self, SessionRecord};

use crate::error::Error;
use crate::pg::session::{self, Roles};

/// The facts at one moment. Most sessions never have others, so they are kept ready for the next changeset.
pub struct Facts {
    roles: Roles,
    application_name: Vec<u8>,
    pub session_role: Rc<[u8]>,
    pub effective_role: Rc<[u8]>,
    /// An inet's payload; none over a Unix socket.
    pub client_addr: Option<Vec<u8>>,
    pub client_port: Option<i32>,
    /// These fields in the canonical text of a changeset.
    pub canonical: Vec<u8>,
}

thread_local! {
    static LAST: RefCell<Option<Rc<Facts>>> = const { RefCell::new(None) };
}

impl Facts {
    /// The session's facts now, with these roles.
    pub fn current(roles: Roles) -> Result<Rc<Self>, Error> {
        let application_name = session::application_name();
        let is_same = |facts: &&Rc<Facts>| facts.roles == roles && facts.application_name == application_name;
        if let Some(facts) = LAST.with_borrow(|last| last.as_ref().filter(is_same).cloned()) {
            return Ok(facts);
        }
        let facts = Rc::new(Facts::read(roles, application_name.to_vec())?);
        LAST.with_borrow_mut(|last| *last = Some(facts.clone()));
        Ok(facts)
    }

    fn read(roles: Roles, application_name: Vec<u8>) -> Result<Self, Error> {
        let client = session::client();
        let mut facts = Facts {
            roles,
            application_name,
            session_role: session::role_name(roles.session),
            effective_role: session::role_name(roles.effective),
            client_addr: client
                .map(|(address, _)| session::inet_payload(address, if address.is_ipv4() { 32 } else { 128 })),
            client_port: client.map(|(_, port)| i32::from(port)),
            canonical: Vec::new(),
        };
        let client_addr = facts.client_addr.as_deref().map(session::inet_text);
        let mut text = Vec::new();
        canonical::session(
            &SessionRecord {
                session_role: Some(&facts.session_role),
                effective_role: Some(&facts.effective_role),
                application_name: facts.application_name(),
                client_addr: client_addr.as_deref(),
                client_port: facts.client_port,
                backend_pid: session::backend_pid(),
            },
            &mut text,
        )?;
        facts.canonical = text;
        Ok(facts)
    }

    pub fn application_name(&self) -> Option<&[u8]> {
        Some(self.application_name.as_slice()).filter(|name| !name.is_empty())
    }
}

/// PostgreSQL's word that roles may have changed.
pub fn forget() {
    // Borrowed only between calls into PostgreSQL, so it is free here.
    LAST.with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = None;
        }
    });
}
