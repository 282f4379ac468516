//! `audit-verify witness`: remembers the last checkpoint that it saw of each ledger, cosigns a later one that continues it,
//! and refuses any other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use audit_ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use audit_ledger::keys::WitnessSigner;
use audit_ledger::proof::{decode, encode};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::database::Database;
use crate::report::Report;
use crate::{connection, files};

#[derive(Args)]
pub struct Arguments {
    /// How to connect, as libpq has it: "host=… dbname=…" or postgresql://…
    #[arg(long, env = "AUDIT_VERIFY_DSN")]
    dsn: String,
    /// File that holds what was seen last; made on the first run.
    #[arg(long)]
    state: PathBuf,
    /// File with the witness's private key, as keygen --witness makes it.
    #[arg(long)]
    key: PathBuf,
    /// Public key (vkey) of the log, or @FILE; one of those given must have signed.
    #[arg(long)]
    log_key: Vec<String>,
    /// Store the cosignature in the database, with audit.add_cosignature.
    #[arg(long)]
    submit: bool,
}

/// What was seen last of a ledger.
#[derive(Clone, Serialize, Deserialize)]
struct Seen {
    size: u64,
    root: String,
}

pub fn run(arguments: &Arguments) -> Result<Report> {
    let vkeys = files::keys(&arguments.log_key)?;
    let mut state: BTreeMap<String, Seen> = match arguments.state.exists() {
        true => serde_json::from_str(&files::text(&arguments.state)?).context("the state file is malformed")?,
        false => BTreeMap::new(),
    };
    let database = Database::connect(&arguments.dsn)?;
    let ledgers = database.ledgers()?;
    let mut report = Report::new("witness");
    // A ledger that is gone, or older than what was seen, is a fork or a loss as well.
    for origin in state.keys().filter(|origin| ledgers.iter().all(|ledger| ledger.origin != **origin)) {
        report.finding("ledger removed", None, None, format!("Ledger {origin} is not there any more."));
    }
    let mut cosigned = Vec::new();
    for ledger in &ledgers {
        let Some(mut head) = database.head(ledger.era)? else {
            if state.contains_key(&ledger.origin) {
                report.finding(
                    "checkpoint removed",
                    None,
                    None,
                    format!("Ledger {} has no checkpoint.", ledger.origin),
                );
            }
            continue;
        };
        match continues(&database, &head, state.get(&ledger.origin), &vkeys)? {
            Err(problem) => report.finding("checkpoint inconsistent", None, None, problem),
            Ok(()) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs();
                head.sign(&WitnessSigner::new(&files::text(&arguments.key)?, now)?)?;
                let root = encode(&head.checkpoint.root);
                state.insert(ledger.origin.clone(), Seen { size: head.checkpoint.size, root });
                report.fact(format!("ledger {}", ledger.origin), format!("{} entries", head.checkpoint.size));
                cosigned.push(head.text());
            }
        }
    }
    drop(database);
    // The state first: a witness must never sign what it does not remember.
    files::replace(&arguments.state, serde_json::to_string_pretty(&state)?.as_bytes())?;
    if arguments.submit {
        let mut client = connection::connect(&arguments.dsn)?;
        for note in &cosigned {
            client.execute("SELECT audit.add_cosignature($1)", &[note]).context("submitting the cosignature")?;
        }
    }
    if let Some(note) = cosigned.last() {
        report.fact("checkpoint", format!("\n{note}"));
    }
    Ok(report)
}

fn continues(
    database: &Database,
    head: &SignedCheckpoint,
    seen: Option<&Seen>,
    vkeys: &[String],
) -> Result<Result<(), String>> {
    let now = &head.checkpoint;
    if now.body()? != head.body() {
        return Ok(Err(format!("The checkpoint of ledger {} has lines that a witness does not sign.", now.origin)));
    }
    if !vkeys.is_empty()
        && let Err(error) = head.verify(vkeys)
    {
        return Ok(Err(format!("The checkpoint of ledger {}: {error}.", now.origin)));
    }
    let seen = match seen {
        Some(seen) => seen.clone(),
        None => Seen { size: 0, root: encode(&audit_core::checksum::sha256(b"")) },
    };
    if now.size < seen.size {
        return Ok(Err(format!(
            "Ledger {} has {} entries, and had {}: the newest were removed, or an older state was put back.",
            now.origin, now.size, seen.size
        )));
    }
    let root = decode(&seen.root).context("the state file is malformed")?;
    let old = Checkpoint { origin: now.origin.clone(), size: seen.size, root };
    let result = database.continues(&old, now)?;
    Ok(result.map_err(|error| {
        format!("Ledger {} does not continue what it was at {} entries: {error}.", now.origin, old.size)
    }))
}
