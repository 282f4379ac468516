//! A condition over the old and the new row, as in a trigger's WHEN: parsed, checked, prepared and evaluated without SQL.
//!
//! Who writes a condition (an audit administrator) is not whose statement evaluates it, and that may be a superuser's. So it is
//! parsed and evaluated as a role without rights. And it can call nothing but PostgreSQL's own functions, none of them
//! volatile, and uses no types but PostgreSQL's own and those of the table's columns: no code of anybody else's runs in it
//! that does not run with every change of the table.

use std::cell::Cell;
use std::ffi::{CStr, c_void};

use pgrx::{pg_guard, pg_sys};

use super::attempt::{Failure, SqlState, attempt};
use super::env::{self, Env};
use super::relation::{Relation, Row, attributes};
use super::session::AsNobody;
use crate::error::Error;

/// Positions of the rows in the parser's range table.
const OLD: i32 = pg_sys::PRS2_OLD_VARNO as i32;
const NEW: i32 = pg_sys::PRS2_NEW_VARNO as i32;

/// Which rows there are.
#[derive(Clone, Copy)]
pub struct Rows {
    pub old: bool,
    pub new: bool,
}

/// A prepared condition. Lives in the memory of its table's layout.
pub struct Condition {
    state: *mut pg_sys::ExprState,
    context: *mut pg_sys::ExprContext,
    may_raise: bool,
    is_running: Cell<bool>,
}

impl Condition {
    /// Prepares a condition on rows of that table, in `memory`. Errors in it are PostgreSQL's or ours.
    ///
    /// Names resolve in pg_catalog, whoever the session belongs to.
    pub(super) fn prepare(
        relation: Relation,
        text: &[u8],
        rows: Rows,
        memory: pg_sys::MemoryContext,
    ) -> Result<Result<Self, Error>, Failure> {
        let _environment = env::enter(Env::Settings);
        attempt(|| {
            let _nobody = AsNobody::begin();
            // SAFETY: the relation is open; what is allocated lives in `memory`, or in that of the current statement after
            // an error.
            unsafe {
                let outer = pg_sys::MemoryContextSwitchTo(memory);
                let prepared = prepare(relation, text, rows);
                pg_sys::MemoryContextSwitchTo(outer);
                prepared
            }
        })
    }

    /// Whether a condition can be prepared.
    pub fn check(relation: Relation, text: &[u8], rows: Rows) -> Result<(), Error> {
        // SAFETY: the context is the statement's.
        let memory = unsafe { pg_sys::CurrentMemoryContext };
        match Condition::prepare(relation, text, rows, memory) {
            Ok(prepared) => prepared.map(|_| ()),
            Err(failure) => Err(Error::Condition(failure)),
        }
    }

    /// Whether the condition holds for the rows; not where it is NULL. A row that there is none of is all NULLs.
    pub fn holds(&self, old: Option<Row>, new: Option<Row>) -> Result<bool, SqlState> {
        if self.is_running.replace(true) {
            // Reached through a type's own code: the prepared state is in use.
            return Err(SqlState::RECURSION);
        }
        let _running = Running(&self.is_running);
        let _environment = env::enter(Env::Variables);
        if self.may_raise {
            // Within the sub-transaction, whose end puts back the user that it began with.
            attempt(|| self.evaluate(old, new)).map_err(|failure| failure.sqlstate())
        } else {
            Ok(self.evaluate(old, new))
        }
    }

    fn evaluate(&self, old: Option<Row>, new: Option<Row>) -> bool {
        let _nobody = AsNobody::begin();
        let slot = |row: Option<Row>| row.map_or(std::ptr::null_mut(), |row| row.slot);
        // SAFETY: state and context were prepared for this table, and refer to the rows that there are; the slots hold them.
        // The boundary turns an ERROR into a panic; nothing with a destructor lives inside it.
        unsafe {
            let (state, context) = (self.state, self.context);
            (*context).ecxt_innertuple = slot(old);
            (*context).ecxt_outertuple = slot(new);
            pg_sys::MemoryContextReset((*context).ecxt_per_tuple_memory);
            let outer = pg_sys::MemoryContextSwitchTo((*context).ecxt_per_tuple_memory);
            let mut is_null = false;
            let is_null_pointer = &raw mut is_null;
            let value = pg_sys::ffi::pg_guard_ffi_boundary(|| match (*state).evalfunc {
                Some(evaluate) => evaluate(state, context, is_null_pointer),
                None => pg_sys::Datum::from(false),
            });
            pg_sys::MemoryContextSwitchTo(outer);
            !is_null && value.value() as u8 != 0
        }
    }
}

struct Running<'a>(&'a Cell<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// # Safety
/// The relation is open. An ERROR leaves what was allocated to the current memory context.
unsafe fn prepare(relation: Relation, text: &[u8], rows: Rows) -> Result<Condition, Error> {
    // SAFETY: nodes are PostgreSQL's own, made by its parser from a C string.
    unsafe {
        let text = super::relation::c_string(text);
        let source = parse(&text)?;
        let state = pg_sys::make_parsestate(std::ptr::null_mut());
        (*state).p_sourcetext = text.as_ptr();
        for name in [c"old", c"new"] {
            let alias = pg_sys::makeAlias(name.as_ptr(), std::ptr::null_mut());
            let lock = pg_sys::AccessShareLock as i32;
            let item = pg_sys::addRangeTableEntryForRelation(state, relation.0, lock, alias, false, false);
            pg_sys::addNSItemToQuery(state, item, false, true, true);
        }
        let expression = pg_sys::transformExpr(state, source, pg_sys::ParseExprKind::EXPR_KIND_TRIGGER_WHEN);
        let expression = pg_sys::coerce_to_boolean(state, expression, c"a condition".as_ptr());
        pg_sys::assign_expr_collations(state, expression);
        pg_sys::free_parsestate(state);

        Check::of(relation, rows).run(expression)?;
        let expression = with_generated_columns(expression, relation);
        pg_sys::ChangeVarNodes(expression, OLD, pg_sys::INNER_VAR, 0);
        pg_sys::ChangeVarNodes(expression, NEW, pg_sys::OUTER_VAR, 0);
        let planned = pg_sys::expression_planner(expression.cast());
        Ok(Condition {
            state: pg_sys::ExecInitExpr(planned, std::ptr::null_mut()),
            context: pg_sys::CreateStandaloneExprContext(),
            may_raise: may_raise(planned.cast(), std::ptr::null_mut()),
            is_running: Cell::new(false),
        })
    }
}

/// The one expression that a text is.
unsafe fn parse(text: &CStr) -> Result<*mut pg_sys::Node, Error> {
    // SAFETY: PL/pgSQL's way of parsing an expression: the parser takes `SELECT` for granted, and gives its statement.
    unsafe {
        let list = pg_sys::raw_parser(text.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_PLPGSQL_EXPR);
        let statement = (*first::<pg_sys::RawStmt>(list)).stmt.cast::<pg_sys::SelectStmt>();
        let select = &*statement;
        let lists = [
            select.distinctClause,
            select.fromClause,
            select.groupClause,
            select.windowClause,
            select.valuesLists,
            select.sortClause,
            select.lockingClause,
        ];
        let nodes = [select.whereClause, select.havingClause, select.limitOffset, select.limitCount];
        let is_expression = lists.iter().all(|list| list.is_null())
            && nodes.iter().all(|node| node.is_null())
            && select.intoClause.is_null()
            && select.withClause.is_null()
            && select.op == pg_sys::SetOperation::SETOP_NONE
            && !select.targetList.is_null()
            && (*select.targetList).length == 1;
        if !is_expression {
            return Err(Error::ConditionUses { what: "more than one expression".into() });
        }
        let target = first::<pg_sys::ResTarget>(select.targetList);
        if !(*target).name.is_null() || !(*target).indirection.is_null() {
            return Err(Error::ConditionUses { what: "a column alias".into() });
        }
        Ok((*target).val)
    }
}

unsafe fn first<T>(list: *mut pg_sys::List) -> *mut T {
    // SAFETY: the caller's list has an element of that type.
    unsafe { (*(*list).elements).ptr_value.cast() }
}

/// Virtual generated columns (PostgreSQL 18) are not in the rows: their expressions stand in for them.
#[cfg(feature = "pg18")]
unsafe fn with_generated_columns(expression: *mut pg_sys::Node, relation: Relation) -> *mut pg_sys::Node {
    // SAFETY: the relation is open, and the expression refers to it by these two numbers.
    unsafe {
        let expression = pg_sys::expand_generated_columns_in_expr(expression, relation.0, OLD);
        pg_sys::expand_generated_columns_in_expr(expression, relation.0, NEW)
    }
}

#[cfg(not(feature = "pg18"))]
unsafe fn with_generated_columns(expression: *mut pg_sys::Node, _relation: Relation) -> *mut pg_sys::Node {
    expression
}

#[cfg(feature = "pg15")]
mod walk {
    use super::{c_void, pg_sys};

    unsafe extern "C-unwind" {
        // nodes/nodeFuncs.h; not in pgrx's bindings for this version.
        fn expression_tree_walker(node: *mut pg_sys::Node, walker: super::Walker, context: *mut c_void) -> bool;
    }

    pub unsafe fn children(node: *mut pg_sys::Node, walker: super::Walker, context: *mut c_void) -> bool {
        // SAFETY: the caller's word. The boundary turns an ERROR into a panic; nothing with a destructor lives inside it.
        unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| expression_tree_walker(node, walker, context)) }
    }
}

#[cfg(not(feature = "pg15"))]
mod walk {
    use super::{c_void, pg_sys};

    pub unsafe fn children(node: *mut pg_sys::Node, walker: super::Walker, context: *mut c_void) -> bool {
        // SAFETY: the caller's word.
        unsafe { pg_sys::expression_tree_walker_impl(node, Some(walker), context) }
    }
}

type Walker = unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut c_void) -> bool;

/// Looks through an expression for what a condition must not use.
struct Check {
    rows: Rows,
    /// Types of the table's columns, and what these are made of.
    types: Vec<pg_sys::Oid>,
    found: Option<String>,
}

impl Check {
    unsafe fn of(relation: Relation, rows: Rows) -> Self {
        let mut types = Vec::new();
        // SAFETY: the relation is open; the rest are catalog look-ups.
        unsafe {
            for (_, attribute) in attributes((*relation.0).rd_att) {
                let base = pg_sys::getBaseType(attribute.atttypid);
                types.extend([attribute.atttypid, base, pg_sys::get_element_type(base), pg_sys::get_array_type(base)]);
            }
        }
        Check { rows, types, found: None }
    }

    unsafe fn run(mut self, expression: *mut pg_sys::Node) -> Result<(), Error> {
        // SAFETY: the expression is PostgreSQL's; the walker gets what it expects.
        unsafe { check_node(expression, (&raw mut self).cast()) };
        match self.found {
            Some(what) => Err(Error::ConditionUses { what }),
            None => Ok(()),
        }
    }

    /// PostgreSQL's own types but XML (its functions read tables) and the pseudo-types (input functions, which read any type
    /// that a text names, take and give them), and types of the table's columns.
    unsafe fn allows(&self, type_id: pg_sys::Oid) -> bool {
        // SAFETY: a catalog look-up.
        let is_plain = || unsafe { pg_sys::get_typtype(type_id) as u8 } != pg_sys::TYPTYPE_PSEUDO;
        let is_postgres = type_id.to_u32() < pg_sys::FirstNormalObjectId && type_id != pg_sys::XMLOID;
        self.types.contains(&type_id) || is_postgres && (is_plain() || type_id == pg_sys::RECORDOID)
    }

    /// What is wrong with the node itself.
    unsafe fn look_at(&self, node: *mut pg_sys::Node) -> Option<String> {
        // SAFETY: the node's tag says what it is.
        unsafe {
            if (*node).type_ == pg_sys::NodeTag::T_Var {
                let variable = &*node.cast::<pg_sys::Var>();
                let is_there = if variable.varno == OLD { self.rows.old } else { self.rows.new };
                return match variable.varattno {
                    _ if !is_there => Some(format!(
                        "{}, which the operation does not have",
                        if variable.varno == OLD { "the old row" } else { "the new row" }
                    )),
                    0 => Some("a whole row; name its columns".into()),
                    ..0 => Some("a system column".into()),
                    _ => None,
                };
            }
            if (*node).type_ == pg_sys::NodeTag::T_List {
                return None;
            }
            if (*node).type_ == pg_sys::NodeTag::T_SQLValueFunction && is_current_user(&*node.cast()) {
                return Some("current_user, since it is not evaluated as the writing user; use session_user".into());
            }
            let mut foreign = pg_sys::InvalidOid;
            if pg_sys::check_functions_in_node(node, Some(is_foreign), (&raw mut foreign).cast()) {
                let name = pg_sys::format_procedure(foreign);
                return Some(format!("function {}", CStr::from_ptr(name).to_string_lossy()));
            }
            if !self.allows(pg_sys::exprType(node)) {
                let type_id = pg_sys::exprType(node);
                let name = pg_sys::format_type_be(type_id);
                return Some(format!("type {}", CStr::from_ptr(name).to_string_lossy()));
            }
            None
        }
    }
}

fn is_current_user(function: &pg_sys::SQLValueFunction) -> bool {
    use pg_sys::SQLValueFunctionOp::*;
    matches!(function.op, SVFOP_CURRENT_ROLE | SVFOP_CURRENT_USER | SVFOP_USER)
}

#[pg_guard]
unsafe extern "C-unwind" fn check_node(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    // SAFETY: the context is the check that runs; the walker passes nodes, or null.
    unsafe {
        if node.is_null() {
            return false;
        }
        let check = context.cast::<Check>();
        if let Some(what) = (*check).look_at(node) {
            (*check).found = Some(what);
            return true;
        }
        walk::children(node, check_node, context)
    }
}

/// Not PostgreSQL's own, volatile, or such that it reads a type that a text names. The context takes the function.
#[pg_guard]
unsafe extern "C-unwind" fn is_foreign(function: pg_sys::Oid, context: *mut c_void) -> bool {
    // SAFETY: the context is an oid; the rest is a catalog look-up.
    unsafe {
        context.cast::<pg_sys::Oid>().write(function);
        function.to_u32() >= pg_sys::FirstNormalObjectId
            || pg_sys::func_volatile(function) as u8 == pg_sys::PROVOLATILE_VOLATILE
            || CStr::from_ptr(pg_sys::get_func_name(function)).to_bytes().starts_with(b"pg_input_")
    }
}

/// Whether an expression can raise an error for some value. One that is made of LEAKPROOF functions alone cannot: they
/// must not tell of their arguments in any way but by their result.
#[pg_guard]
unsafe extern "C-unwind" fn may_raise(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    use pg_sys::NodeTag::*;
    // SAFETY: the walker passes nodes, or null.
    unsafe {
        if node.is_null() {
            return false;
        }
        let is_known = matches!(
            (*node).type_,
            T_List
                | T_Var
                | T_Const
                | T_RelabelType
                | T_BoolExpr
                | T_NullTest
                | T_BooleanTest
                | T_CaseExpr
                | T_CaseWhen
                | T_CaseTestExpr
                | T_CoalesceExpr
                | T_OpExpr
                | T_FuncExpr
                | T_DistinctExpr
                | T_ScalarArrayOpExpr
        );
        !is_known
            || pg_sys::check_functions_in_node(node, Some(is_leaky), std::ptr::null_mut())
            || walk::children(node, may_raise, context)
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn is_leaky(function: pg_sys::Oid, _context: *mut c_void) -> bool {
    // SAFETY: a catalog look-up.
    unsafe { function.to_u32() != pg_sys::F_NOW && !pg_sys::get_func_leakproof(function) }
}
