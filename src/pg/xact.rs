//! PostgreSQL's word on the life of the transaction, its sub-transactions and the relation cache, passed to
//! `transaction.rs` and the caches. At pre-commit and pre-prepare errors are allowed and abort the transaction; at all
//! other events nothing that can fail is done.

use std::ffi::c_void;

use pgrx::{pg_guard, pg_sys};

use super::{composite, log_table, publish, readers, report, session, statement};
use crate::{deferred, facts, failures, layouts, logins, modes, transaction};

/// Registers the callbacks, once per process.
pub fn init() {
    // SAFETY: the callbacks are functions of this library, which is never unloaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction), std::ptr::null_mut());
        pg_sys::CacheRegisterRelcacheCallback(Some(at_relation_change), pg_sys::Datum::from(0usize));
        let nothing = pg_sys::Datum::from(0usize);
        for cache in [pg_sys::SysCacheIdentifier::AUTHOID, pg_sys::SysCacheIdentifier::AUTHMEMMEMROLE] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(at_role_change), nothing);
        }
        for cache in [pg_sys::SysCacheIdentifier::NAMESPACEOID, pg_sys::SysCacheIdentifier::CASTSOURCETARGET] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(at_name_or_cast_change), nothing);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction(event: pg_sys::XactEvent::Type, _argument: *mut c_void) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT | XACT_EVENT_PRE_PREPARE => {
            report::ok(modes::timed_commit(|| {
                deferred::before_commit(event == XACT_EVENT_PRE_PREPARE)?;
                transaction::before_commit()
            }));
        }
        XACT_EVENT_COMMIT => {
            ended(transaction::End::Committed);
            publish::committed();
            failures::retry();
            if session::has_client() {
                logins::logged_in();
            }
        }
        XACT_EVENT_PREPARE => ended(transaction::End::Prepared),
        XACT_EVENT_ABORT => {
            failures::transaction_rolled_back(transaction::captured());
            ended(transaction::End::Aborted);
            publish::aborted();
            statement::transaction_aborted();
        }
        _ => {}
    }
}

fn ended(end: transaction::End) {
    deferred::ended(end);
    modes::transaction_ended(end);
    transaction::ended(end);
}

#[pg_guard]
unsafe extern "C-unwind" fn at_subtransaction(
    event: pg_sys::SubXactEvent::Type,
    id: pg_sys::SubTransactionId,
    parent: pg_sys::SubTransactionId,
    _argument: *mut c_void,
) {
    use pg_sys::SubXactEvent::*;
    match event {
        SUBXACT_EVENT_COMMIT_SUB => {
            modes::subtransaction_committed(id, parent);
            transaction::subtransaction_committed(id, parent);
            publish::subtransaction_committed(id, parent);
        }
        SUBXACT_EVENT_ABORT_SUB => {
            let captured = transaction::captured();
            modes::subtransaction_aborted(id);
            transaction::subtransaction_aborted(id);
            publish::subtransaction_aborted(id);
            failures::rolled_back(captured - transaction::captured());
            statement::subtransaction_aborted();
        }
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_relation_change(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    let relation = (relation != pg_sys::InvalidOid).then_some(relation);
    layouts::invalidate(relation);
    log_table::invalidate(relation);
}

#[pg_guard]
unsafe extern "C-unwind" fn at_role_change(_argument: pg_sys::Datum, _cache: std::ffi::c_int, _hash: u32) {
    facts::forget();
    readers::forget_plans();
}

/// A schema's name is part of each layout of its tables; a cast to json decides how a type is written.
#[pg_guard]
unsafe extern "C-unwind" fn at_name_or_cast_change(_argument: pg_sys::Datum, _cache: std::ffi::c_int, _hash: u32) {
    layouts::invalidate(None);
    composite::forget();
}
