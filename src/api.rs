//! The SQL functions with a Rust body: they take arguments, call, and report errors.

use audit_core::merkle;
use pgrx::datum::{Array, Inet};
use pgrx::prelude::*;

use crate::context::Key;
use crate::error::Error;
use crate::identity;
use crate::modes::Mode;
use crate::pg::args::{InetArray, InetText, JsonbText, RegClass, RegNamespace, Text};
use crate::pg::guc::CONTEXT_SETTINGS;
use crate::pg::report;
use crate::policies::{self, Options};

mod action_rules;
mod application;
mod partitions;
mod stats;

fn names(argument: &'static str, names: Option<Vec<Option<String>>>) -> Vec<String> {
    names.unwrap_or_default().into_iter().map(|name| required(argument, name)).collect()
}

pub fn required<T>(argument: &'static str, value: Option<T>) -> T {
    report::ok(value.ok_or(Error::NullArgument { argument }))
}

#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments)]
fn enable(
    target: Option<RegClass>,
    mode: default!(Option<String>, "'sync'"),
    sample_rate: default!(Option<f64>, "1.0"),
    exclude_columns: default!(Option<Vec<Option<String>>>, "NULL"),
    mask_columns: default!(Option<Vec<Option<String>>>, "NULL"),
    soft_delete_column: default!(Option<String>, "NULL"),
    require_context: default!(Option<Vec<Option<String>>>, "NULL"),
    skip_unchanged: default!(Option<bool>, "false"),
    snapshot: default!(Option<bool>, "false"),
    tenant_column: default!(Option<String>, "NULL"),
    require_verified_context: default!(Option<bool>, "false"),
) {
    let target = required("target", target);
    let options = Options {
        mode: report::ok(Mode::of_arguments(mode.as_deref().unwrap_or("sync"), sample_rate.unwrap_or(1.0))),
        exclude_columns: names("exclude_columns", exclude_columns),
        mask_columns: names("mask_columns", mask_columns),
        soft_delete_column,
        require_context: names("require_context", require_context),
        skip_unchanged: skip_unchanged.unwrap_or(false),
        snapshot: snapshot.unwrap_or(false),
        tenant_column,
        require_verified_context: require_verified_context.unwrap_or(false),
    };
    report::ok(policies::enable(target.0, &options));
}

#[pg_extern(volatile, parallel_unsafe)]
fn disable(target: Option<RegClass>) {
    report::ok(policies::disable(required("target", target).0));
}

#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments)]
fn enable_schema(
    schema: Option<RegNamespace>,
    include_future: default!(Option<bool>, "true"),
    mode: default!(Option<String>, "'sync'"),
    sample_rate: default!(Option<f64>, "1.0"),
    exclude_columns: default!(Option<Vec<Option<String>>>, "NULL"),
    mask_columns: default!(Option<Vec<Option<String>>>, "NULL"),
    soft_delete_column: default!(Option<String>, "NULL"),
    require_context: default!(Option<Vec<Option<String>>>, "NULL"),
    skip_unchanged: default!(Option<bool>, "false"),
    snapshot: default!(Option<bool>, "false"),
    tenant_column: default!(Option<String>, "NULL"),
    require_verified_context: default!(Option<bool>, "false"),
) -> i32 {
    let schema = required("schema", schema);
    let options = Options {
        mode: report::ok(Mode::of_arguments(mode.as_deref().unwrap_or("sync"), sample_rate.unwrap_or(1.0))),
        exclude_columns: names("exclude_columns", exclude_columns),
        mask_columns: names("mask_columns", mask_columns),
        soft_delete_column,
        require_context: names("require_context", require_context),
        skip_unchanged: skip_unchanged.unwrap_or(false),
        snapshot: snapshot.unwrap_or(false),
        tenant_column,
        require_verified_context: require_verified_context.unwrap_or(false),
    };
    report::ok(policies::enable_schema(schema.0, include_future.unwrap_or(true), &options))
}

#[pg_extern(volatile, parallel_unsafe)]
fn disable_schema(schema: Option<RegNamespace>) -> i32 {
    report::ok(policies::disable_schema(required("schema", schema).0))
}

#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments)]
fn set_context(
    user_id: default!(Option<Text>, "NULL"),
    tenant_id: default!(Option<Text>, "NULL"),
    request_id: default!(Option<Text>, "NULL"),
    session_id: default!(Option<Text>, "NULL"),
    ip_address: default!(Option<InetText>, "NULL"),
    user_agent: default!(Option<Text>, "NULL"),
    reason: default!(Option<Text>, "NULL"),
    context: default!(Option<JsonbText>, "NULL"),
    is_local: default!(Option<bool>, "true"),
) {
    let is_local = is_local.unwrap_or(true);
    let values = [
        (Key::UserId, user_id.map(|v| v.0)),
        (Key::TenantId, tenant_id.map(|v| v.0)),
        (Key::RequestId, request_id.map(|v| v.0)),
        (Key::SessionId, session_id.map(|v| v.0)),
        (Key::IpAddress, ip_address.map(|v| v.0)),
        (Key::UserAgent, user_agent.map(|v| v.0)),
        (Key::Reason, reason.map(|v| v.0)),
        (Key::Context, context.map(|v| v.0)),
    ];
    for (key, value) in values {
        if let Some(value) = value {
            CONTEXT_SETTINGS[key as usize].set(&value, is_local);
        }
    }
}

#[pg_extern(volatile, parallel_unsafe)]
fn set_context_token(token: Option<Text>, is_local: default!(Option<bool>, "true")) {
    report::ok(identity::set_context_token(&required("token", token).0, is_local.unwrap_or(true)));
}

#[pg_extern(volatile, parallel_unsafe)]
fn clear_context() {
    for setting in &CONTEXT_SETTINGS {
        // The session's value, and the transaction's, which may hide it.
        setting.set(b"", false);
        setting.set(b"", true);
    }
}

#[pg_extern(immutable, parallel_safe)]
fn client_ip(
    x_forwarded_for: Option<&str>,
    x_real_ip: Option<&str>,
    remote_addr: Option<InetText>,
    trusted_proxies: default!(Option<InetArray>, "'{}'"),
) -> Option<Inet> {
    let parse = |inet: &Vec<u8>| {
        report::ok(audit_core::context::parse_inet(&String::from_utf8_lossy(inet)).map_err(Error::Context))
    };
    let remote = remote_addr.as_ref().map(|inet| parse(&inet.0));
    let trusted: Vec<_> = trusted_proxies.map_or_else(Vec::new, |proxies| proxies.0).iter().map(parse).collect();
    let found = audit_core::context::client_ip(x_forwarded_for, x_real_ip, remote, &trusted)?;
    Some(Inet(found.ip().to_string()))
}

#[pg_extern(immutable, parallel_safe, strict)]
fn merkle_root(leaves: Array<&[u8]>) -> Vec<u8> {
    let leaves: Result<Vec<[u8; 32]>, Error> = leaves
        .iter()
        .map(|leaf| {
            leaf.and_then(|leaf| leaf.try_into().ok()).ok_or_else(|| Error::InvalidOption {
                message: "a leaf of the Merkle tree must be a SHA-256 checksum of 32 bytes".into(),
                hint: "Pass checksums in seq order.",
            })
        })
        .collect();
    report::ok(merkle::root(report::ok(leaves).into_iter()).map_err(Error::from)).to_vec()
}
