//! A trigger call, checked: whoever may create a trigger can attach a trigger function in any way, so nothing is taken
//! for granted.

use pgrx::pg_sys;

use super::relation::{Relation, Row};
use super::unguarded::{HeapTupleHeaderGetCmax, HeapTupleHeaderGetCmin};
use crate::error::Error;

/// What the trigger was called for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Insert,
    Update,
    Delete,
    Truncate,
}

pub struct Call {
    data: *mut pg_sys::TriggerData,
    function: pg_sys::Oid,
    kind: Kind,
}

impl Call {
    /// # Safety
    /// `fcinfo` is what PostgreSQL passed to a function.
    pub(super) unsafe fn from_fcinfo(fcinfo: pg_sys::FunctionCallInfo) -> Result<Self, Error> {
        // SAFETY: fcinfo is valid; its context, if any, is a node whose tag is read first (macro CALLED_AS_TRIGGER).
        unsafe {
            let context = (*fcinfo).context;
            if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
                return Err(Error::NotATrigger);
            }
            let data = context.cast::<pg_sys::TriggerData>();
            let event = (*data).tg_event;
            let kind = match (
                event & pg_sys::TRIGGER_EVENT_OPMASK,
                event & pg_sys::TRIGGER_EVENT_ROW != 0,
                event & pg_sys::TRIGGER_EVENT_TIMINGMASK == pg_sys::TRIGGER_EVENT_AFTER,
            ) {
                (pg_sys::TRIGGER_EVENT_INSERT, true, true) => Kind::Insert,
                (pg_sys::TRIGGER_EVENT_UPDATE, true, true) => Kind::Update,
                (pg_sys::TRIGGER_EVENT_DELETE, true, true) => Kind::Delete,
                (pg_sys::TRIGGER_EVENT_TRUNCATE, false, true) => Kind::Truncate,
                _ => return Err(Error::WrongTrigger),
            };
            let call = Call { data, function: (*(*fcinfo).flinfo).fn_oid, kind };
            let slots_present = match kind {
                Kind::Insert | Kind::Delete => !(*data).tg_trigslot.is_null(),
                Kind::Update => !(*data).tg_trigslot.is_null() && !(*data).tg_newslot.is_null(),
                Kind::Truncate => true,
            };
            if slots_present { Ok(call) } else { Err(Error::WrongTrigger) }
        }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn relation(&self) -> Relation {
        // SAFETY: the relation stays open while the trigger runs.
        Relation(unsafe { (*self.data).tg_relation })
    }

    /// The trigger function.
    pub fn function(&self) -> pg_sys::Oid {
        self.function
    }

    pub fn trigger(&self) -> pg_sys::Oid {
        // SAFETY: set for every trigger call.
        unsafe { (*(*self.data).tg_trigger).tgoid }
    }

    /// The row before, of UPDATE and DELETE.
    pub fn old_row(&self) -> Option<Row<'_>> {
        // SAFETY: `from_fcinfo` made sure of the slot; it holds the row while the trigger runs.
        matches!(self.kind, Kind::Update | Kind::Delete).then(|| unsafe { Row::of((*self.data).tg_trigslot) })
    }

    /// The row after, of INSERT and UPDATE.
    pub fn new_row(&self) -> Option<Row<'_>> {
        // SAFETY: as above.
        unsafe {
            match self.kind {
                Kind::Insert => Some(Row::of((*self.data).tg_trigslot)),
                Kind::Update => Some(Row::of((*self.data).tg_newslot)),
                _ => None,
            }
        }
    }

    /// The command that made the row version: cmin of the new tuple, cmax of a deleted one. Tuples that keep none (of
    /// foreign tables and other access methods) get the current command.
    pub fn command(&self, is_heap: bool) -> u32 {
        // SAFETY: for a heap the tuples that the executor passes are the stored ones, made by this transaction.
        unsafe {
            match self.kind {
                Kind::Insert if is_heap => HeapTupleHeaderGetCmin((*(*self.data).tg_trigtuple).t_data),
                Kind::Update if is_heap => HeapTupleHeaderGetCmin((*(*self.data).tg_newtuple).t_data),
                Kind::Delete if is_heap => HeapTupleHeaderGetCmax((*(*self.data).tg_trigtuple).t_data),
                _ => super::session::current_command(),
            }
        }
    }
}
