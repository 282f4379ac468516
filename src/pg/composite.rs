//! Values of composite types within a row. Their layout is the type's own, which may change while a table that uses it
//! stays as it is; so plans are kept by the type cache's identifier of the layout, not by table.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use audit_core::error::Error as CoreError;
use audit_core::jsonb::{KeyBlock, Writer};
use pgrx::pg_sys;

use super::encode::Encoder;
use super::env::{self, Env};

/// A composite type's attributes in the order of their keys.
struct Plan {
    identifier: u64,
    keys: KeyBlock,
    attributes: Vec<(usize, Encoder)>,
    env: Env,
}

thread_local! {
    static PLANS: RefCell<HashMap<(u32, i32), Rc<Plan>>> = RefCell::new(HashMap::new());
}

/// What writing a value of this composite type needs of the environment, as the type is now.
pub fn env_of(type_id: pg_sys::Oid) -> Env {
    plan_of(type_id, -1).map_or(Env::Settings, |plan| plan.env)
}

/// PostgreSQL's word that casts may have changed.
pub fn forget() {
    PLANS.with(|plans| {
        // Borrowed only between calls into PostgreSQL, so it is free here.
        if let Ok(mut plans) = plans.try_borrow_mut() {
            plans.clear();
        }
    });
}

/// Appends the value as an object.
pub fn write(value: pg_sys::Datum, out: &mut Writer) -> Result<(), CoreError> {
    // SAFETY: the value is a composite: detoasting yields an aligned tuple whose header names its type.
    let (header, type_id, typmod, length) = unsafe {
        let header = pg_sys::pg_detoast_datum(value.cast_mut_ptr()).cast::<pg_sys::HeapTupleHeaderData>();
        let datum = (*header).t_choice.t_datum;
        (header, datum.datum_typeid, datum.datum_typmod, pgrx::varlena::varsize_4b(header.cast()))
    };
    let plan = plan_of(type_id, typmod)?;
    let _env = env::enter(plan.env);
    // SAFETY: the descriptor is that of the tuple's own type; the arrays have room for all its attributes; the
    // reference to the descriptor is given back (an ERROR in between gives it back through the resource owner).
    let (values, nulls) = unsafe {
        let descriptor = pg_sys::lookup_rowtype_tupdesc(type_id, typmod);
        let count = (*descriptor).natts as usize;
        let mut values = vec![pg_sys::Datum::from(0usize); count];
        let mut nulls = vec![true; count];
        let mut tuple = pg_sys::HeapTupleData { t_len: length as u32, t_data: header, ..Default::default() };
        pg_sys::heap_deform_tuple(&mut tuple, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
        release(descriptor);
        (values, nulls)
    };
    out.begin_object(&plan.keys)?;
    for (index, encoder) in &plan.attributes {
        if nulls.get(*index).copied().unwrap_or(true) {
            out.null()?;
        } else {
            encoder.write(values[*index], out)?;
        }
    }
    out.end_object()
}

fn plan_of(type_id: pg_sys::Oid, typmod: i32) -> Result<Rc<Plan>, CoreError> {
    // SAFETY: a type cache look-up.
    let identifier = unsafe { pg_sys::assign_record_type_identifier(type_id, typmod) };
    let key = (type_id.to_u32(), typmod);
    let cached = PLANS.with_borrow(|plans| plans.get(&key).cloned());
    if let Some(plan) = cached.filter(|plan| plan.identifier == identifier) {
        return Ok(plan);
    }
    let plan = Rc::new(build(type_id, typmod, identifier)?);
    PLANS.with_borrow_mut(|plans| plans.insert(key, plan.clone()));
    Ok(plan)
}

fn build(type_id: pg_sys::Oid, typmod: i32, identifier: u64) -> Result<Plan, CoreError> {
    // SAFETY: the descriptor stays pinned while its attributes are read.
    let attributes: Vec<(usize, Vec<u8>, pg_sys::Oid)> = unsafe {
        let descriptor = pg_sys::lookup_rowtype_tupdesc(type_id, typmod);
        let attributes = super::relation::attributes(descriptor)
            .map(|(index, attribute)| (index, super::relation::name_bytes(&attribute.attname), attribute.atttypid))
            .collect();
        release(descriptor);
        attributes
    };
    let names: Vec<&[u8]> = attributes.iter().map(|(_, name, _)| name.as_slice()).collect();
    let (keys, order) = KeyBlock::new(&names)?;
    // SAFETY: the context exists for the life of the process.
    let context = unsafe { pg_sys::CacheMemoryContext };
    let mut env = Env::Free;
    let attributes = order
        .into_iter()
        .map(|position| {
            let (index, _, attribute_type) = &attributes[position];
            let (encoder, needs) = Encoder::for_type(*attribute_type, context);
            env = env.max(needs);
            (*index, encoder)
        })
        .collect();
    Ok(Plan { identifier, keys, attributes, env })
}

/// Gives back a reference that `lookup_rowtype_tupdesc` took (the macro ReleaseTupleDesc).
unsafe fn release(descriptor: pg_sys::TupleDesc) {
    // SAFETY: the caller holds the reference; descriptors with a negative count are not counted.
    unsafe {
        if (*descriptor).tdrefcount >= 0 {
            pg_sys::DecrTupleDescRefCount(descriptor);
        }
    }
}
