//! What a DDL command is about, read from its parse tree: before it runs, and where event triggers do not see it.

use std::ffi::{CStr, c_char};

use pgrx::pg_sys::{self, NodeTag, ObjectType, Oid};

use super::catalog;
use super::relation::Opened;
use super::statement::elements;

/// A command's parse tree, while it lives.
#[derive(Clone, Copy)]
pub struct Command(*mut pg_sys::Node);

/// What a command does to auditing itself.
pub enum Intrusion {
    /// It disables, drops, renames or replaces an audit trigger.
    Trigger { resource: String, trigger: String, what: &'static str },
    /// It alters or drops something that belongs to the extension.
    Object { kind: &'static str, name: String, what: &'static str },
}

/// Event triggers of the extension: sql/90_rights.sql.
const EVENT_TRIGGERS: [&CStr; 4] =
    [c"audit_ddl_command_start", c"audit_ddl_command_end", c"audit_table_rewrite", c"audit_sql_drop"];

impl Command {
    /// # Safety
    /// The node lives as long as the result is used.
    pub unsafe fn of(node: *mut pg_sys::Node) -> Option<Self> {
        (!node.is_null()).then_some(Command(node))
    }

    fn tag(self) -> NodeTag {
        // SAFETY: a node begins with its tag.
        unsafe { (*self.0).type_ }
    }

    /// The command's name, such as ALTER TABLE.
    pub fn name(self) -> &'static str {
        // SAFETY: a node that is a utility statement.
        tag_name(unsafe { pg_sys::CreateCommandTag(self.0) })
    }

    pub fn is_alter_table(self) -> bool {
        self.tag() == NodeTag::T_AlterTableStmt
    }

    /// Whether it may concern tables or the extension.
    pub fn is_watched(self) -> bool {
        use NodeTag::*;
        matches!(
            self.tag(),
            T_AlterTableStmt
                | T_CreateStmt
                | T_CreateForeignTableStmt
                | T_CreateTableAsStmt
                | T_CreateTrigStmt
                | T_RenameStmt
                | T_DropStmt
                | T_AlterObjectSchemaStmt
                | T_AlterObjectDependsStmt
                | T_AlterEventTrigStmt
                | T_AlterExtensionStmt
                | T_AlterExtensionContentsStmt
                | T_CreateFunctionStmt
        )
    }

    /// Whether it is such that the extension's event triggers end it: all that is watched but what is about event triggers.
    pub fn has_event_triggers(self) -> bool {
        // SAFETY: the tag says what the node is.
        unsafe {
            match self.tag() {
                NodeTag::T_AlterEventTrigStmt | NodeTag::T_AlterObjectDependsStmt | NodeTag::T_CreateFunctionStmt => {
                    false
                }
                NodeTag::T_DropStmt => {
                    (*self.0.cast::<pg_sys::DropStmt>()).removeType != ObjectType::OBJECT_EVENT_TRIGGER
                }
                NodeTag::T_RenameStmt => {
                    (*self.0.cast::<pg_sys::RenameStmt>()).renameType != ObjectType::OBJECT_EVENT_TRIGGER
                }
                _ => true,
            }
        }
    }

    /// What it does to auditing itself, if anything.
    pub fn intrusion(self, capture: Oid) -> Option<Intrusion> {
        // SAFETY: the tag says what the node is; names are C strings.
        unsafe {
            match self.tag() {
                NodeTag::T_AlterTableStmt => {
                    let statement = self.0.cast::<pg_sys::AlterTableStmt>();
                    elements::<pg_sys::AlterTableCmd>((*statement).cmds).find_map(|command| {
                        let what = names_trigger((*command).subtype)?;
                        audit_trigger((*statement).relation, (*command).name, capture, what)
                    })
                }
                NodeTag::T_RenameStmt => {
                    let statement = self.0.cast::<pg_sys::RenameStmt>();
                    match (*statement).renameType {
                        ObjectType::OBJECT_TRIGGER => {
                            audit_trigger((*statement).relation, (*statement).subname, capture, "rename")
                        }
                        ObjectType::OBJECT_EVENT_TRIGGER => event_trigger(string((*statement).object), "rename"),
                        ObjectType::OBJECT_SCHEMA => own_schema((*statement).subname, "rename"),
                        _ => None,
                    }
                }
                NodeTag::T_AlterObjectDependsStmt => {
                    let statement = self.0.cast::<pg_sys::AlterObjectDependsStmt>();
                    if (*statement).objectType != ObjectType::OBJECT_TRIGGER || (*statement).remove {
                        return None;
                    }
                    let name = last_string((*statement).object.cast());
                    audit_trigger((*statement).relation, name, capture, "tie to an extension")
                }
                NodeTag::T_CreateTrigStmt => {
                    let statement = self.0.cast::<pg_sys::CreateTrigStmt>();
                    if !(*statement).replace {
                        return None;
                    }
                    audit_trigger((*statement).relation, (*statement).trigname, capture, "replace")
                }
                NodeTag::T_DropStmt => self.drop_intrusion(capture),
                NodeTag::T_AlterEventTrigStmt => {
                    let statement = self.0.cast::<pg_sys::AlterEventTrigStmt>();
                    let what = match (*statement).tgenabled as u8 {
                        pg_sys::TRIGGER_FIRES_ALWAYS => "enable",
                        pg_sys::TRIGGER_DISABLED => "disable",
                        _ => "enable otherwise than always",
                    };
                    event_trigger((*statement).trigname, what)
                }
                NodeTag::T_AlterExtensionStmt => {
                    extension((*self.0.cast::<pg_sys::AlterExtensionStmt>()).extname, "update")
                }
                NodeTag::T_AlterExtensionContentsStmt => {
                    extension((*self.0.cast::<pg_sys::AlterExtensionContentsStmt>()).extname, "change the members of")
                }
                NodeTag::T_CreateFunctionStmt => {
                    let statement = self.0.cast::<pg_sys::CreateFunctionStmt>();
                    let names: Vec<*const c_char> = elements((*statement).funcname).map(|name| string(name)).collect();
                    let [schema, name] = names[..] else { return None };
                    ((*statement).replace && CStr::from_ptr(schema) == catalog::SCHEMA).then(|| Intrusion::Object {
                        kind: "function",
                        name: format!("audit.{}", text(name)),
                        what: "replace",
                    })
                }
                _ => None,
            }
        }
    }

    unsafe fn drop_intrusion(self, capture: Oid) -> Option<Intrusion> {
        // SAFETY: the caller has looked at the tag.
        unsafe {
            let statement = self.0.cast::<pg_sys::DropStmt>();
            let objects = (*statement).objects;
            match (*statement).removeType {
                ObjectType::OBJECT_TRIGGER => elements::<pg_sys::List>(objects).find_map(|names| {
                    let trigger = last_string(names);
                    let table = table_of(names, 1)?;
                    trigger_of(table, trigger, capture, "drop")
                }),
                ObjectType::OBJECT_EVENT_TRIGGER => {
                    elements::<pg_sys::Node>(objects).find_map(|name| event_trigger(string(name), "drop"))
                }
                ObjectType::OBJECT_EXTENSION => {
                    elements::<pg_sys::Node>(objects).find_map(|name| extension(string(name), "drop"))
                }
                ObjectType::OBJECT_SCHEMA => {
                    elements::<pg_sys::Node>(objects).find_map(|name| own_schema(string(name), "drop"))
                }
                ObjectType::OBJECT_TABLE => elements::<pg_sys::List>(objects).find_map(|names| {
                    let table = table_of(names, 0)?;
                    let (schema, name) = catalog::table_name(table)?;
                    (schema == catalog::SCHEMA.to_bytes()).then(|| Intrusion::Object {
                        kind: "table",
                        name: format!("audit.{}", String::from_utf8_lossy(&name)),
                        what: "drop",
                    })
                }),
                _ => None,
            }
        }
    }

    /// The table of an ALTER TABLE that enables or disables triggers.
    pub fn switches_triggers(self) -> Option<Oid> {
        use pg_sys::AlterTableType as Kind;
        const SWITCHES: [Kind::Type; 8] = [
            Kind::AT_EnableTrig,
            Kind::AT_EnableAlwaysTrig,
            Kind::AT_EnableReplicaTrig,
            Kind::AT_DisableTrig,
            Kind::AT_EnableTrigAll,
            Kind::AT_DisableTrigAll,
            Kind::AT_EnableTrigUser,
            Kind::AT_DisableTrigUser,
        ];
        self.altered_table(|kind| SWITCHES.contains(&kind))
    }

    /// The table of an ALTER TABLE … OWNER TO.
    pub fn changes_owner(self) -> Option<Oid> {
        self.altered_table(|kind| kind == pg_sys::AlterTableType::AT_ChangeOwner)
    }

    fn altered_table(self, is_meant: impl Fn(pg_sys::AlterTableType::Type) -> bool) -> Option<Oid> {
        if !self.is_alter_table() {
            return None;
        }
        // SAFETY: the tag says what the node is.
        unsafe {
            let statement = self.0.cast::<pg_sys::AlterTableStmt>();
            let mut commands = elements::<pg_sys::AlterTableCmd>((*statement).cmds);
            commands
                .any(|command| is_meant((*command).subtype))
                .then(|| look_up((*statement).relation))
                .filter(is_valid)
        }
    }

    /// The tables that it names and that are there, now.
    pub fn tables(self) -> Vec<Oid> {
        // SAFETY: the tag says what the node is.
        unsafe {
            let name = match self.tag() {
                NodeTag::T_AlterTableStmt => {
                    let statement = self.0.cast::<pg_sys::AlterTableStmt>();
                    let partitions = elements::<pg_sys::AlterTableCmd>((*statement).cmds).filter_map(|command| {
                        let definition = (*command).def;
                        (!definition.is_null() && (*definition).type_ == NodeTag::T_PartitionCmd)
                            .then(|| (*definition.cast::<pg_sys::PartitionCmd>()).name)
                    });
                    let names = std::iter::once((*statement).relation).chain(partitions);
                    return names.filter(|name| !name.is_null()).map(|name| look_up(name)).filter(is_valid).collect();
                }
                NodeTag::T_CreateStmt => (*self.0.cast::<pg_sys::CreateStmt>()).relation,
                NodeTag::T_CreateForeignTableStmt => (*self.0.cast::<pg_sys::CreateForeignTableStmt>()).base.relation,
                NodeTag::T_CreateTableAsStmt => {
                    let into = (*self.0.cast::<pg_sys::CreateTableAsStmt>()).into;
                    if into.is_null() { std::ptr::null_mut() } else { (*into).rel }
                }
                NodeTag::T_CreateTrigStmt => (*self.0.cast::<pg_sys::CreateTrigStmt>()).relation,
                NodeTag::T_RenameStmt => (*self.0.cast::<pg_sys::RenameStmt>()).relation,
                NodeTag::T_AlterObjectSchemaStmt => (*self.0.cast::<pg_sys::AlterObjectSchemaStmt>()).relation,
                NodeTag::T_DropStmt => {
                    let statement = self.0.cast::<pg_sys::DropStmt>();
                    let without = match (*statement).removeType {
                        ObjectType::OBJECT_TABLE | ObjectType::OBJECT_FOREIGN_TABLE => 0,
                        ObjectType::OBJECT_TRIGGER => 1,
                        _ => return Vec::new(),
                    };
                    return elements::<pg_sys::List>((*statement).objects)
                        .filter_map(|names| table_of(names, without))
                        .collect();
                }
                _ => std::ptr::null_mut(),
            };
            if name.is_null() { Vec::new() } else { Some(look_up(name)).filter(is_valid).into_iter().collect() }
        }
    }
}

/// What a part of ALTER TABLE does to the trigger that it names.
fn names_trigger(kind: pg_sys::AlterTableType::Type) -> Option<&'static str> {
    use pg_sys::AlterTableType as Kind;
    match kind {
        Kind::AT_DisableTrig => Some("disable"),
        Kind::AT_EnableTrig | Kind::AT_EnableReplicaTrig => Some("enable otherwise than always"),
        _ => None,
    }
}

fn is_valid(oid: &Oid) -> bool {
    *oid != Oid::INVALID
}

unsafe fn text(name: *const c_char) -> String {
    // SAFETY: the caller's word: a C string.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

/// The text of a String node.
unsafe fn string(node: *mut pg_sys::Node) -> *const c_char {
    // SAFETY: the caller's word: a node.
    unsafe {
        if node.is_null() || (*node).type_ != NodeTag::T_String {
            return c"".as_ptr();
        }
        (*node.cast::<pg_sys::String>()).sval
    }
}

unsafe fn last_string(names: *mut pg_sys::List) -> *const c_char {
    // SAFETY: the caller's word: a list of String nodes.
    unsafe { elements(names).last().map_or(c"".as_ptr(), |node| string(node)) }
}

/// The table of a qualified name of which the last parts are of something else.
unsafe fn table_of(names: *mut pg_sys::List, others: usize) -> Option<Oid> {
    // SAFETY: the caller's word: a list of String nodes.
    unsafe {
        let names: Vec<*const c_char> = elements(names).map(|node| string(node)).collect();
        let parts = &names[..names.len().checked_sub(others)?];
        let table = *parts.last()?;
        let schema = parts.len().checked_sub(2).map_or(std::ptr::null(), |at| parts[at]);
        Some(relation_of(schema, table)).filter(is_valid)
    }
}

/// The relation of that name, found as the command will find it, but without a lock and without asking for rights.
unsafe fn relation_of(schema: *const c_char, name: *const c_char) -> Oid {
    // SAFETY: the caller's word: C strings, the first may be null.
    unsafe {
        if name.is_null() {
            Oid::INVALID
        } else if schema.is_null() {
            pg_sys::RelnameGetRelid(name)
        } else {
            match pg_sys::get_namespace_oid(schema, true) {
                Oid::INVALID => Oid::INVALID,
                schema => pg_sys::get_relname_relid(name, schema),
            }
        }
    }
}

unsafe fn look_up(name: *mut pg_sys::RangeVar) -> Oid {
    // SAFETY: the caller's word: a name of a relation.
    unsafe { relation_of((*name).schemaname, (*name).relname) }
}

unsafe fn audit_trigger(
    table: *mut pg_sys::RangeVar,
    trigger: *const c_char,
    capture: Oid,
    what: &'static str,
) -> Option<Intrusion> {
    // SAFETY: the caller's word: a name of a relation, and a C string or null.
    unsafe {
        if table.is_null() || trigger.is_null() {
            return None;
        }
        trigger_of(look_up(table), trigger, capture, what)
    }
}

/// The trigger, if it is one of ours.
unsafe fn trigger_of(table: Oid, trigger: *const c_char, capture: Oid, what: &'static str) -> Option<Intrusion> {
    let opened = Opened::with_lock(table, pg_sys::AccessShareLock)?;
    let relation = opened.relation();
    // SAFETY: the caller's word: a C string.
    let name = unsafe { CStr::from_ptr(trigger) }.to_bytes();
    relation.has_trigger_on(capture, name).then(|| Intrusion::Trigger {
        resource: String::from_utf8_lossy(&relation.resource()).into_owned(),
        trigger: String::from_utf8_lossy(name).into_owned(),
        what,
    })
}

unsafe fn event_trigger(name: *const c_char, what: &'static str) -> Option<Intrusion> {
    // SAFETY: the caller's word: a C string.
    let is_ours = EVENT_TRIGGERS.contains(&unsafe { CStr::from_ptr(name) });
    // SAFETY: as above.
    is_ours.then(|| Intrusion::Object { kind: "event trigger", name: unsafe { text(name) }, what })
}

unsafe fn extension(name: *const c_char, what: &'static str) -> Option<Intrusion> {
    // SAFETY: the caller's word: a C string.
    let is_ours = unsafe { CStr::from_ptr(name) } == catalog::EXTENSION;
    is_ours.then(|| Intrusion::Object { kind: "extension", name: "audit_ext".into(), what })
}

unsafe fn own_schema(name: *const c_char, what: &'static str) -> Option<Intrusion> {
    // SAFETY: the caller's word: a C string.
    let is_ours = unsafe { CStr::from_ptr(name) } == catalog::SCHEMA;
    is_ours.then(|| Intrusion::Object { kind: "schema", name: "audit".into(), what })
}

/// Whether the extension is being made: by its own script, or object by object, by pg_upgrade.
pub fn is_being_made() -> bool {
    // SAFETY: reads of backend variables.
    unsafe { pg_sys::creating_extension || pg_sys::IsBinaryUpgrade }
}

/// Name of a command tag, such as ALTER TABLE.
pub fn tag_name(tag: pg_sys::CommandTag::Type) -> &'static str {
    // SAFETY: PostgreSQL's names of tags are constants.
    unsafe { CStr::from_ptr(pg_sys::GetCommandTagName(tag)) }.to_str().unwrap_or_default()
}
