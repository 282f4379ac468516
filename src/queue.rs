//! Messages to the worker: what a session puts into them, and how the worker makes records of them.
//!
//! A message carries what its session knew: who, from where, why, and the events. The worker adds what a record is made
//! of in a transaction: changeset, numbers, checksums.

use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;

use audit_core::canonical::{Operation, Origin, Status, Trust};
use audit_core::jsonb;
use audit_core::message::{Malformed, Reader, Writer};
use pgrx::pg_sys::Oid;

use crate::context::{Context, Said};
use crate::error::Error;
use crate::facts::Author;
use crate::layouts::Table;
use crate::pg::session::{self, Roles};
use crate::transaction::{self, Changeset, Event, Image};
use crate::{deferred, failures, logins};

/// What a message holds after its head.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Events = 1,
    Failure = 2,
    Login = 3,
    Deferred = 4,
}

/// The session that makes a message, and when.
pub struct Head {
    pub kind: Kind,
    pub origin: Origin,
    /// PostgreSQL's microseconds.
    pub occurred_at: i64,
    pub author: Author,
    pub roles: Roles,
    pub context: Said,
    pub application_name: Vec<u8>,
    pub statement: Option<Vec<u8>>,
}

impl Head {
    /// Of this session, now.
    pub fn of_session(kind: Kind, origin: Origin) -> Self {
        let roles = session::roles();
        Head {
            kind,
            origin,
            occurred_at: session::clock(),
            author: Author::of_session(roles),
            roles,
            context: Said::now_or_less(),
            application_name: session::application_name().to_vec(),
            statement: if crate::gucs::log_statement() { session::statement() } else { None },
        }
    }

    /// Of this process, now, on nobody's account.
    pub fn of_nobody(kind: Kind, origin: Origin, client: Option<(IpAddr, u16)>) -> Self {
        Head {
            kind,
            origin,
            occurred_at: session::clock(),
            author: Author::of_nobody(client),
            roles: Roles { session: Oid::INVALID, effective: Oid::INVALID },
            context: Said::nothing(),
            application_name: Vec::new(),
            statement: None,
        }
    }

    pub fn put(&self, out: &mut Writer) -> Result<(), Error> {
        out.u8(self.kind as u8)?;
        out.u8(self.origin as u8)?;
        out.u64(self.occurred_at as u64)?;
        out.u64(self.author.position.unwrap_or(0))?;
        out.u32(self.author.backend_pid as u32)?;
        match self.author.client {
            None => out.optional(None)?,
            Some((address, port)) => {
                match address {
                    IpAddr::V4(address) => out.string(&address.octets())?,
                    IpAddr::V6(address) => out.string(&address.octets())?,
                }
                out.u32(u32::from(port))?;
            }
        }
        for (name, oid) in
            [(&self.author.session_role, self.roles.session), (&self.author.effective_role, self.roles.effective)]
        {
            out.optional(name.as_deref())?;
            out.u32(oid.to_u32())?;
        }
        out.u8(self.context.trust as u8)?;
        for value in &self.context.values {
            out.optional(value.as_deref())?;
        }
        out.string(&self.application_name)?;
        Ok(out.optional(self.statement.as_deref())?)
    }

    /// Of a changeset that this session began.
    pub fn of_changeset(changeset: &Changeset, position: u64) -> Self {
        let author = &changeset.facts.author;
        Head {
            kind: Kind::Events,
            origin: changeset.origin,
            occurred_at: changeset.occurred_at,
            author: Author {
                backend_pid: author.backend_pid,
                client: author.client,
                session_role: author.session_role.clone(),
                effective_role: author.effective_role.clone(),
                position: Some(position),
            },
            roles: changeset.roles,
            context: changeset.context.said().clone(),
            application_name: changeset.facts.application_name.clone(),
            statement: changeset.statement.clone(),
        }
    }

    pub fn read(message: &mut Reader) -> Result<Self, Error> {
        let kind = match message.u8()? {
            1 => Kind::Events,
            2 => Kind::Failure,
            3 => Kind::Login,
            _ => return Err(Malformed.into()),
        };
        let origin = *Origin::ALL.get(usize::from(message.u8()?)).ok_or(Malformed)?;
        let occurred_at = message.u64()? as i64;
        let position = Some(message.u64()?).filter(|&position| position != 0);
        let backend_pid = message.u32()? as i32;
        let client = match message.optional()? {
            None => None,
            Some(address) => Some((read_address(address)?, message.u32()? as u16)),
        };
        let mut role = || -> Result<_, Error> {
            let name = message.optional()?.map(Rc::from);
            let oid = Oid::from(message.u32()?);
            // A name that the session could not look up is looked up here; none at all where it had no role.
            let has_role = oid != Oid::INVALID;
            Ok((name.or_else(|| has_role.then(|| session::role_name(oid))), oid))
        };
        let (session_role, effective_role) = (role()?, role()?);
        let mut context = Said::nothing();
        context.trust = *Trust::ALL.get(usize::from(message.u8()?)).ok_or(Malformed)?;
        for value in &mut context.values {
            *value = message.optional()?.map(<[u8]>::to_vec);
        }
        Ok(Head {
            kind,
            origin,
            occurred_at,
            author: Author {
                backend_pid,
                client,
                session_role: session_role.0,
                effective_role: effective_role.0,
                position,
            },
            roles: Roles { session: session_role.1, effective: effective_role.1 },
            context,
            application_name: message.string()?.to_vec(),
            statement: message.optional()?.map(<[u8]>::to_vec),
        })
    }

    /// Of this session in the midst of an error: nothing is looked up.
    pub fn of_failing_session(kind: Kind, origin: Origin) -> Self {
        let roles = session::roles();
        Head {
            kind,
            origin,
            occurred_at: session::clock(),
            author: Author::of_failing_session(roles),
            roles,
            context: Said::now_or_less(),
            application_name: session::application_name().to_vec(),
            statement: if crate::gucs::log_statement() { session::statement() } else { None },
        }
    }

    /// Begins the changeset for what the message holds, and says where it is.
    pub fn begin(self) -> Result<usize, Error> {
        let context = Context::of(self.context)?;
        transaction::begin_for(
            self.author,
            self.origin,
            self.occurred_at,
            context,
            self.application_name,
            self.statement,
        )
    }
}

fn read_address(octets: &[u8]) -> Result<IpAddr, Malformed> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Ok(octets.into());
    }
    <[u8; 16]>::try_from(octets).map(|octets| Ipv6Addr::from(octets).into()).map_err(|_| Malformed)
}

/// Appends an event.
pub fn put_event(event: &Event, out: &mut Writer) -> Result<(), Error> {
    out.u8(event.operation as u8)?;
    out.u8(event.status as u8)?;
    out.u32(event.command)?;
    match event.layout {
        None => out.optional(None)?,
        Some(table) => {
            out.string(table.canonical)?;
            out.u32(table.oid.to_u32())?;
            out.u32(table.relation_id as u32)?;
        }
    }
    for text in [event.action, event.resource, event.resource_id] {
        out.optional(text)?;
    }
    for image in [event.row_image, event.old_values, event.details] {
        out.optional(image.map(|image| image.jsonb))?;
    }
    Ok(())
}

/// What became of a message.
pub struct Written {
    pub made_at: i64,
    /// SQLSTATE of the failed statement that was recorded.
    pub failure: Option<String>,
    /// It was for a log that is gone.
    pub is_lost: bool,
}

impl Written {
    pub fn at(made_at: i64) -> Self {
        Written { made_at, failure: None, is_lost: false }
    }
}

/// Writes what a message holds in this transaction.
pub fn write(message: &[u8]) -> Result<Written, Error> {
    if message.first() == Some(&(Kind::Deferred as u8)) {
        return deferred::write(message);
    }
    let mut message = Reader::new(message);
    let head = Head::read(&mut message)?;
    let mut written = Written::at(head.occurred_at);
    match head.kind {
        Kind::Events => {
            head.begin()?;
            while !message.is_at_end() {
                read_event(&mut message, transaction::record)?;
            }
        }
        Kind::Failure => written.failure = failures::write(head, &mut message)?,
        Kind::Login => logins::write(head, &mut message)?,
        Kind::Deferred => return Err(Malformed.into()),
    }
    Ok(written)
}

/// Reads an event that [`put_event`] wrote, for `record` to record.
pub fn read_event(message: &mut Reader, record: impl FnOnce(&Event) -> Result<(), Error>) -> Result<(), Error> {
    let operation = *Operation::ALL.get(usize::from(message.u8()?)).ok_or(Malformed)?;
    let status = *Status::ALL.get(usize::from(message.u8()?)).ok_or(Malformed)?;
    let command = message.u32()?;
    let layout = match message.optional()? {
        None => None,
        Some(canonical) => {
            Some(Table { canonical, oid: Oid::from(message.u32()?), relation_id: message.u32()? as i32 })
        }
    };
    let (action, resource, resource_id) = (message.optional()?, message.optional()?, message.optional()?);
    let images = [message.optional()?, message.optional()?, message.optional()?];
    let mut texts: [jsonb::Writer; 3] = Default::default();
    for (image, text) in images.iter().zip(&mut texts) {
        if let Some(image) = image {
            text.container(image)?;
        }
    }
    let image = |i: usize| images[i].map(|jsonb| Image { jsonb, text: texts[i].text() });
    record(&Event {
        layout,
        operation,
        status,
        command,
        action,
        resource,
        resource_id,
        row_image: image(0),
        old_values: image(1),
        details: image(2),
    })
}
