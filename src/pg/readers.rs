//! What the current role may read of the log: everything, or what belongs to the tenants it is bound to.
//!
//! The view audit.log asks `tenant_visible` of each changeset and passes what it shows through `fenced`. Both are resolved
//! when a query is planned: for who may read everything they vanish, so that the plan is that of the bare tables; for a
//! tenant's reader the first becomes a comparison that an index can serve, and the second stays, so that conditions on what
//! the view shows find NULL in the rows of others, whenever they are tried: neither their result nor the numbers that EXPLAIN
//! prints depend on what others have. Such a plan holds for the role that it was made for.

use std::cell::Cell;

use pgrx::datum::{AnyElement, Internal};
use pgrx::prelude::*;
use pgrx::{PgMemoryContexts, pg_sys};

use super::args::Text;
use super::catalog::{self, Row};
use super::report;
use crate::error::Error;
use crate::store;

mod column {
    pub const ROLE: usize = 1;
    pub const TENANT_ID: usize = 2;
}

thread_local! {
    /// Whether plans of this session rest on what a role may read.
    static IS_PLANNED: Cell<bool> = const { Cell::new(false) };
}

#[pg_extern(stable, parallel_safe, support = simplify_reads_everything)]
fn reads_everything() -> bool {
    report::ok(is_free())
}

#[pg_extern(immutable, parallel_safe)]
fn simplify_reads_everything(request: Internal) -> Internal {
    report::ok(simplify(request, the_answer))
}

#[pg_extern(stable, parallel_safe, cost = 10, support = simplify_tenant_visible)]
fn tenant_visible(tenant_id: Option<Text>, fcinfo: pg_sys::FunctionCallInfo) -> bool {
    // SAFETY: PostgreSQL passed it; pgrx keeps nothing in it for functions that return one value.
    report::ok(unsafe { is_visible(tenant_id, fcinfo) })
}

#[pg_extern(immutable, parallel_safe)]
fn simplify_tenant_visible(request: Internal) -> Internal {
    report::ok(simplify(request, own_tenants_alone))
}

// The cost makes sure that the tenant is looked at first.
#[pg_extern(stable, parallel_safe, cost = 100, support = simplify_fenced)]
fn fenced(value: Option<AnyElement>, tenant_id: Option<Text>, fcinfo: pg_sys::FunctionCallInfo) -> Option<AnyElement> {
    // SAFETY: as above.
    value.filter(|_| report::ok(unsafe { is_visible(tenant_id, fcinfo) }))
}

#[pg_extern(immutable, parallel_safe)]
fn simplify_fenced(request: Internal) -> Internal {
    report::ok(simplify(request, value_alone))
}

/// Whether the current role may read the log's tables themselves, whatever the tenant.
fn is_free() -> Result<bool, Error> {
    let table = catalog::own_table(&store::CHANGESET)?;
    // SAFETY: look-ups in the catalog.
    let result =
        unsafe { pg_sys::pg_class_aclcheck(table, pg_sys::GetUserId(), pg_sys::ACL_SELECT as pg_sys::AclMode) };
    Ok(result == pg_sys::AclResult::ACLCHECK_OK)
}

/// The tenants that the current role, or one whose rights it has, is bound to.
fn bound_tenants() -> Result<Vec<Vec<u8>>, Error> {
    let mut bindings = Vec::new();
    catalog::scan_all(&store::TENANT_READER, |row: &Row| {
        bindings.extend(row.oid(column::ROLE).zip(row.bytes(column::TENANT_ID)));
    })?;
    // SAFETY: look-ups in the catalog; a role that is gone has no members.
    bindings.retain(|(role, _)| unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), *role) });
    Ok(bindings.into_iter().map(|(_, tenant)| tenant).collect())
}

/// The tenants that a role is bound to, looked up once per execution of a query.
struct Known {
    role: pg_sys::Oid,
    tenants: Vec<Vec<u8>>,
    array: pg_sys::Datum,
}

impl Known {
    /// # Safety
    /// PostgreSQL passed `fcinfo` to a function that keeps nothing else in fn_extra. The result stays for that call.
    unsafe fn of<'a>(fcinfo: pg_sys::FunctionCallInfo) -> Result<&'a Known, Error> {
        // SAFETY: fn_extra is null at first, or points to what was left there, in a memory context that lives as long.
        unsafe {
            let (info, role) = ((*fcinfo).flinfo, pg_sys::GetUserId());
            let known = (*info).fn_extra.cast::<Known>();
            if !known.is_null() && (*known).role == role {
                return Ok(&*known);
            }
            let tenants = bound_tenants()?;
            let mut memory = PgMemoryContexts::For((*info).fn_mcxt);
            let array = memory.switch_to(|_| super::heap::text_array(&tenants));
            let known = memory.leak_and_drop_on_delete(Known { role, tenants, array });
            (*info).fn_extra = known.cast();
            Ok(&*known)
        }
    }
}

/// The tenants that the current role is bound to, as text[].
///
/// # Safety
/// As for [`Known::of`].
pub(super) unsafe fn bound_tenants_array(fcinfo: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum, Error> {
    // SAFETY: the caller's word.
    unsafe { Known::of(fcinfo) }.map(|known| known.array)
}

/// Whether the current role may read what belongs to that tenant.
///
/// # Safety
/// As for [`Known::of`].
unsafe fn is_visible(tenant: Option<Text>, fcinfo: pg_sys::FunctionCallInfo) -> Result<bool, Error> {
    // SAFETY: the caller's word.
    let known = unsafe { Known::of(fcinfo) }?;
    Ok(tenant.is_some_and(|tenant| known.tenants.contains(&tenant.0)) || is_free()?)
}

/// In place of `reads_everything()`: what it would return.
unsafe fn the_answer(_: *mut pg_sys::FuncExpr, is_free: bool) -> *mut pg_sys::Node {
    // SAFETY: makes a node.
    unsafe { pg_sys::makeBoolConst(is_free, false) }
}

/// In place of `tenant_visible(tenant_id)`: true, or `tenant_id = ANY (audit.bound_tenants())`.
///
/// # Safety
/// The call is one of a function with an argument.
unsafe fn own_tenants_alone(call: *mut pg_sys::FuncExpr, is_free: bool) -> *mut pg_sys::Node {
    // SAFETY: the caller's word; the nodes made here live as long as the call's.
    unsafe {
        if is_free {
            return pg_sys::makeBoolConst(true, false);
        }
        let Some(function) = catalog::function_oid(c"bound_tenants") else { return std::ptr::null_mut() };
        let tenants = pg_sys::makeFuncExpr(
            function,
            pg_sys::TEXTARRAYOID,
            std::ptr::null_mut(),
            pg_sys::InvalidOid,
            pg_sys::InvalidOid,
            pg_sys::CoercionForm::COERCE_EXPLICIT_CALL,
        );
        let comparison = pg_sys::palloc0(size_of::<pg_sys::ScalarArrayOpExpr>()).cast::<pg_sys::ScalarArrayOpExpr>();
        (*comparison).xpr.type_ = pg_sys::NodeTag::T_ScalarArrayOpExpr;
        (*comparison).opno = TEXT_EQUAL;
        (*comparison).opfuncid = pg_sys::F_TEXTEQ.into();
        (*comparison).useOr = true;
        (*comparison).inputcollid = (*call).inputcollid;
        (*comparison).args = pg_sys::lappend(pg_sys::lappend(std::ptr::null_mut(), argument(call)), tenants.cast());
        (*comparison).location = -1;
        comparison.cast()
    }
}

/// In place of `fenced(value, tenant_id)`: the value, or the call as it is.
///
/// # Safety
/// As for [`own_tenants_alone`].
unsafe fn value_alone(call: *mut pg_sys::FuncExpr, is_free: bool) -> *mut pg_sys::Node {
    // SAFETY: the caller's word.
    if is_free { unsafe { argument(call) }.cast() } else { std::ptr::null_mut() }
}

/// `text = text`, from pg_operator.dat.
const TEXT_EQUAL: pg_sys::Oid = pg_sys::Oid::from_u32(pg_sys::TextEqualOperator);

/// The first argument of a call that has one.
unsafe fn argument(call: *mut pg_sys::FuncExpr) -> *mut std::ffi::c_void {
    // SAFETY: the caller's word.
    unsafe { (*(*(*call).args).elements).ptr_value }
}

/// Answers the planner's request to make something simpler of a call. A plan that rests on the answer is made anew when it
/// is used by another role, and when tables' rights or memberships of roles change.
fn simplify(
    mut request: Internal,
    answer: unsafe fn(*mut pg_sys::FuncExpr, bool) -> *mut pg_sys::Node,
) -> Result<Internal, Error> {
    let no_answer = || Internal::from(Some(pg_sys::Datum::from(0usize)));
    // SAFETY: PostgreSQL passes a node, whose tag is read before it is taken for a request of this kind.
    let (root, call) = unsafe {
        match request.get_mut::<pg_sys::SupportRequestSimplify>() {
            Some(request) if request.type_ == pg_sys::NodeTag::T_SupportRequestSimplify => {
                (request.root, request.fcall)
            }
            _ => return Ok(no_answer()),
        }
    };
    // SAFETY: a planner's state, where there is one, has its global part while it plans.
    unsafe {
        if root.is_null() || (*root).glob.is_null() {
            return Ok(no_answer());
        }
        (*(*root).glob).dependsOnRole = true;
    }
    IS_PLANNED.set(true);
    let is_free = is_free()?;
    // SAFETY: the functions that have this support have the arguments that their answers need.
    let node = unsafe { answer(call, is_free) };
    Ok(Internal::from(Some(pg_sys::Datum::from(node))))
}

/// PostgreSQL's word that roles or their memberships may have changed.
pub fn forget_plans() {
    if IS_PLANNED.get() {
        // SAFETY: marks plans as invalid, as PostgreSQL's own callbacks do at such words.
        unsafe { pg_sys::ResetPlanCache() };
    }
}
