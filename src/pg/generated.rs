//! Generated columns that are computed when read (PostgreSQL 18, VIRTUAL): a trigger's tuples lack them, so the row is
//! completed before it is recorded. Their expressions are immutable and call no user's code, as PostgreSQL demands.

use pgrx::pg_sys;

use super::relation::{Relation, Row};

/// A table's virtual columns: attribute index and prepared expression.
pub struct VirtualColumns {
    columns: Vec<(usize, *mut pg_sys::ExprState)>,
    context: *mut pg_sys::ExprContext,
}

/// A row with its virtual columns.
pub struct Completed {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
    slot: *mut pg_sys::TupleTableSlot,
}

impl Completed {
    pub fn row(&self) -> Row<'_> {
        Row { values: &self.values, nulls: &self.nulls, slot: self.slot }
    }
}

impl VirtualColumns {
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Prepares the expressions in `memory`, which must live as long as the result.
    #[cfg(feature = "pg18")]
    pub(super) fn of(relation: Relation, memory: pg_sys::MemoryContext) -> Self {
        use super::relation::attributes;

        unsafe extern "C-unwind" {
            // rewrite/rewriteHandler.h; not in pgrx's bindings.
            fn build_generation_expression(relation: pg_sys::Relation, number: std::ffi::c_int) -> *mut pg_sys::Node;
        }

        // SAFETY: the relation is open; expressions and their state are allocated in `memory`.
        unsafe {
            let indexes: Vec<usize> = attributes((*relation.0).rd_att)
                .filter(|(_, attribute)| attribute.attgenerated as u8 == pg_sys::ATTRIBUTE_GENERATED_VIRTUAL)
                .map(|(index, _)| index)
                .collect();
            if indexes.is_empty() {
                return VirtualColumns { columns: Vec::new(), context: std::ptr::null_mut() };
            }
            let outer = pg_sys::MemoryContextSwitchTo(memory);
            let columns = indexes
                .into_iter()
                .map(|index| {
                    let expression = pg_sys::ffi::pg_guard_ffi_boundary(|| {
                        build_generation_expression(relation.0, index as std::ffi::c_int + 1)
                    });
                    let planned = pg_sys::expression_planner(expression.cast());
                    (index, pg_sys::ExecInitExpr(planned, std::ptr::null_mut()))
                })
                .collect();
            let context = pg_sys::CreateStandaloneExprContext();
            pg_sys::MemoryContextSwitchTo(outer);
            VirtualColumns { columns, context }
        }
    }

    /// There are none before PostgreSQL 18.
    #[cfg(not(feature = "pg18"))]
    pub(super) fn of(_relation: Relation, _memory: pg_sys::MemoryContext) -> Self {
        VirtualColumns { columns: Vec::new(), context: std::ptr::null_mut() }
    }

    /// The row with the virtual columns computed, in the current memory context.
    pub fn complete(&self, row: Row) -> Completed {
        let mut completed = Completed { values: row.values.to_vec(), nulls: row.nulls.to_vec(), slot: row.slot };
        for &(index, state) in &self.columns {
            let mut is_null = false;
            // SAFETY: the state was prepared for this table; the row's slot holds a tuple of it. The boundary turns an
            // ERROR of the expression into a panic; nothing with a destructor lives inside it.
            let value = unsafe {
                (*self.context).ecxt_scantuple = row.slot;
                let context = self.context;
                let is_null = &raw mut is_null;
                pg_sys::ffi::pg_guard_ffi_boundary(|| match (*state).evalfunc {
                    Some(evaluate) => evaluate(state, context, is_null),
                    None => pg_sys::Datum::from(0usize),
                })
            };
            completed.values[index] = value;
            completed.nulls[index] = is_null;
        }
        completed
    }
}
