//! What the database itself knows of the session that makes events: roles, application name, client.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;

use audit_core::canonical::{self, SessionRecord};

use crate::error::Error;
use crate::pg::session::{self, Roles};

/// A session: this one, or another whose events are written here.
pub struct Author {
    pub backend_pid: i32,
    /// None over a Unix socket and in background workers.
    pub client: Option<(IpAddr, u16)>,
    pub session_role: Option<Rc<[u8]>>,
    pub effective_role: Option<Rc<[u8]>>,
    /// Of the transaction that made the events; of the one that writes them if there is none.
    pub position: Option<u64>,
}

impl Author {
    pub fn of_session(roles: Roles) -> Self {
        Author {
            backend_pid: session::backend_pid(),
            client: session::client(),
            session_role: Some(session::role_name(roles.session)),
            effective_role: Some(session::role_name(roles.effective)),
            position: None,
        }
    }

    /// This process, on nobody's account: the worker, or one that refuses a client.
    pub fn of_nobody(client: Option<(IpAddr, u16)>) -> Self {
        Author { backend_pid: session::backend_pid(), client, session_role: None, effective_role: None, position: None }
    }

    /// This session in the midst of an error: nothing is looked up.
    pub fn of_failing_session(roles: Roles) -> Self {
        Author {
            backend_pid: session::backend_pid(),
            client: session::client(),
            session_role: known_role_name(roles.session),
            effective_role: known_role_name(roles.effective),
            position: None,
        }
    }
}

/// The facts at one moment. Most sessions never have others, so they are kept ready for the next changeset.
pub struct Facts {
    pub author: Author,
    pub application_name: Vec<u8>,
    /// The client's address as an inet's payload.
    pub client_addr: Option<Vec<u8>>,
    /// These fields in the canonical text of a changeset.
    pub canonical: Vec<u8>,
}

thread_local! {
    static LAST: RefCell<Option<(Roles, Rc<Facts>)>> = const { RefCell::new(None) };
}

impl Facts {
    /// This session's facts now, with these roles.
    pub fn current(roles: Roles) -> Result<Rc<Self>, Error> {
        let application_name = session::application_name();
        let is_same = |last: &&(Roles, Rc<Facts>)| last.0 == roles && last.1.application_name == application_name;
        if let Some(facts) = LAST.with_borrow(|last| last.as_ref().filter(is_same).map(|(_, facts)| facts.clone())) {
            return Ok(facts);
        }
        let facts = Rc::new(Facts::of(Author::of_session(roles), application_name.to_vec())?);
        LAST.with_borrow_mut(|last| *last = Some((roles, facts.clone())));
        Ok(facts)
    }

    pub fn of(author: Author, application_name: Vec<u8>) -> Result<Self, Error> {
        let client_addr =
            author.client.map(|(address, _)| session::inet_payload(address, if address.is_ipv4() { 32 } else { 128 }));
        let mut facts = Facts { author, application_name, client_addr, canonical: Vec::new() };
        let client_text = facts.client_addr.as_deref().map(session::inet_text);
        let mut text = Vec::new();
        canonical::session(
            &SessionRecord {
                session_role: facts.author.session_role.as_deref(),
                effective_role: facts.author.effective_role.as_deref(),
                application_name: facts.application_name(),
                client_addr: client_text.as_deref(),
                client_port: facts.client_port(),
                backend_pid: facts.author.backend_pid,
            },
            &mut text,
        )?;
        facts.canonical = text;
        Ok(facts)
    }

    pub fn application_name(&self) -> Option<&[u8]> {
        Some(self.application_name.as_slice()).filter(|name| !name.is_empty())
    }

    pub fn client_port(&self) -> Option<i32> {
        self.author.client.map(|(_, port)| i32::from(port))
    }
}

/// A role's name if it was looked up before.
fn known_role_name(role: pgrx::pg_sys::Oid) -> Option<Rc<[u8]>> {
    LAST.with(|last| {
        let last = last.try_borrow().ok()?;
        let (roles, facts) = last.as_ref()?;
        match role {
            _ if role == roles.session => facts.author.session_role.clone(),
            _ if role == roles.effective => facts.author.effective_role.clone(),
            _ => None,
        }
    })
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
