//! `audit-verify`: checks the log of audit_ext from outside, and trusts nobody: not the database's administrator, not
//! the extension. It reads the tables with SELECT alone, recomputes every checksum from their columns by the rules of
//! docs/format.md, and shares nothing with the writer but the hash and the Merkle tree.
//!
//! Exit status: 0 intact, 1 tampered with, 2 could not check.

#![forbid(unsafe_code)]

mod check;
mod connection;
mod contents;
mod copy;
mod database;
mod directory;
mod files;
mod groups;
mod ledgers;
mod records;
mod report;
mod witness;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use audit_ledger::checkpoint::SignedCheckpoint;
use audit_ledger::keys::{self, Use};
use audit_ledger::proof::{ConsistencyProof, EventProof};
use clap::{Args, CommandFactory, Parser, Subcommand};

use report::Report;

const EXAMPLES: &str = "Examples:
  audit-verify db --dsn 'host=db.example.com user=auditor dbname=bank' --key @audit.vkey --checkpoint kept.txt
  audit-verify proof event.tlog-proof --key 'example.com/audit+1a2b3c4d+AR…'
  audit-verify checkpoint --old kept.txt --new latest.txt --dsn 'host=/run/postgresql dbname=bank'
  audit-verify export --dsn 'dbname=bank' --dir /srv/log && audit-verify dir /srv/log --key @audit.vkey
  audit-verify keygen --name example.com/audit --out signing.key
  audit-verify witness --dsn 'dbname=bank' --state bank.state --key witness.key --log-key @audit.vkey --submit

Exit status: 0 intact, 1 tampered with, 2 could not check.";

#[derive(Parser)]
#[command(name = "audit-verify", version, about = "Checks the log of audit_ext from outside.", after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print the result as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Read all tables of the log and recompute everything.
    Db(Db),
    /// Check the proof of an event, as audit.prove makes it. Needs no database.
    Proof {
        /// The proof; - for standard input.
        file: PathBuf,
        /// Public key (vkey) of the log or of a witness, or @FILE; one of those given must have signed.
        #[arg(long, required = true)]
        key: Vec<String>,
    },
    /// Check that one checkpoint continues another.
    Checkpoint(CheckpointArguments),
    /// Write the current ledger as a static tlog-tiles directory.
    Export {
        #[command(flatten)]
        connection: Connection,
        /// The directory; made if it is not there.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Check a tlog-tiles directory.
    Dir {
        /// The directory.
        dir: PathBuf,
        /// Public key (vkey) of the log or of a witness, or @FILE; one of those given must have signed.
        #[arg(long)]
        key: Vec<String>,
        /// A checkpoint that was kept; may be given several times.
        #[arg(long)]
        checkpoint: Vec<PathBuf>,
    },
    /// Check that the ledger continues what it was last time, and cosign its checkpoint. Refuses a fork.
    Witness(witness::Arguments),
    /// Make a key, for the log or for a witness.
    Keygen {
        /// Name of the key: a URL without its scheme.
        #[arg(long)]
        name: String,
        /// File for the private key; must not be there yet. The public key goes to FILE.vkey.
        #[arg(long)]
        out: PathBuf,
        /// For a witness.
        #[arg(long)]
        witness: bool,
    },
    /// Write the manual pages.
    #[command(hide = true)]
    Man {
        /// The directory.
        dir: PathBuf,
    },
}

#[derive(Args)]
struct Connection {
    /// How to connect, as libpq has it: "host=… dbname=…" or postgresql://…
    #[arg(long, env = "AUDIT_VERIFY_DSN")]
    dsn: String,
}

#[derive(Args)]
struct Db {
    #[command(flatten)]
    connection: Connection,
    /// Public key (vkey) of the log, or @FILE; if any are given, one of them must have signed each checkpoint.
    #[arg(long)]
    key: Vec<String>,
    /// A checkpoint that was kept, or a line of the server log; may be given several times.
    #[arg(long)]
    checkpoint: Vec<PathBuf>,
}

#[derive(Args)]
struct CheckpointArguments {
    /// The earlier checkpoint.
    #[arg(long)]
    old: PathBuf,
    /// The later one.
    #[arg(long)]
    new: PathBuf,
    /// Public key (vkey) of the log or of a witness, or @FILE; one of those given must have signed both.
    #[arg(long)]
    key: Vec<String>,
    /// The database that has the ledger.
    #[arg(long, env = "AUDIT_VERIFY_DSN", conflicts_with = "proof")]
    dsn: Option<String>,
    /// A proof of audit.prove_consistency(size of the old one), in place of a database.
    #[arg(long)]
    proof: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments.command) {
        Ok(report) => report.print(arguments.json),
        Err(error) => report::could_not(&error, arguments.json),
    }
}

fn run(command: Command) -> Result<Report> {
    match command {
        Command::Db(db) => {
            let kept = files::checkpoints(&db.checkpoint)?;
            check::database(&db.connection.dsn, &files::keys(&db.key)?, kept)
        }
        Command::Proof { file, key } => prove(&files::text(&file)?, &files::keys(&key)?),
        Command::Checkpoint(arguments) => compare(&arguments),
        Command::Export { connection, dir } => directory::export(&connection.dsn, &dir),
        Command::Dir { dir, key, checkpoint } => {
            directory::check(&dir, &files::keys(&key)?, files::checkpoints(&checkpoint)?)
        }
        Command::Witness(arguments) => witness::run(&arguments),
        Command::Keygen { name, out, witness } => keygen(&name, &out, witness),
        Command::Man { dir } => man(&dir),
    }
}

fn man(dir: &Path) -> Result<Report> {
    std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Arguments::command(), dir))?;
    let mut report = Report::new("man");
    report.fact("directory", dir.display().to_string());
    Ok(report)
}

fn prove(text: &str, vkeys: &[String]) -> Result<Report> {
    let proof = EventProof::parse(text)?;
    let mut report = Report::new("proof");
    match proof.checkpoint.verify(vkeys) {
        Ok(signers) => report.fact("signed by", signers.join(", ")),
        Err(error) => report.finding("checkpoint not signed", None, None, error.to_string()),
    }
    match proof.check() {
        Ok((event, changeset)) => {
            let checkpoint = &proof.checkpoint.checkpoint;
            report.fact("ledger", &checkpoint.origin);
            report.fact("entry", format!("{} of {}", proof.index, checkpoint.size));
            report.fact("event", event);
            report.fact("changeset", changeset);
        }
        Err(error) => report.finding("proof invalid", None, None, error.to_string()),
    }
    Ok(report)
}

fn compare(arguments: &CheckpointArguments) -> Result<Report> {
    let (old, new) = (files::checkpoint(&arguments.old)?, files::checkpoint(&arguments.new)?);
    let mut report = Report::new("checkpoint");
    let vkeys = files::keys(&arguments.key)?;
    for (which, checkpoint) in [("old", &old), ("new", &new)] {
        report.fact(which, format!("{} entries of {}", checkpoint.checkpoint.size, checkpoint.checkpoint.origin));
        if !vkeys.is_empty()
            && let Err(error) = checkpoint.verify(&vkeys)
        {
            report.finding("checkpoint not signed", None, None, format!("{which}: {error}"));
        }
    }
    if old.checkpoint.origin != new.checkpoint.origin {
        bail!("the checkpoints are of different ledgers");
    }
    if old.checkpoint.size > new.checkpoint.size {
        bail!("the old checkpoint is larger than the new one: give them the other way round");
    }
    let result = match (&arguments.proof, &arguments.dsn) {
        (Some(file), _) => by_proof(&old, &new, &files::text(file)?)?,
        (None, Some(dsn)) => database::Database::connect(dsn)?.continues(&old.checkpoint, &new.checkpoint)?,
        (None, None) => bail!("give --dsn or --proof: two checkpoints alone do not show that one continues the other"),
    };
    if let Err(error) = result {
        report.finding("checkpoint inconsistent", None, None, error);
    }
    Ok(report)
}

fn by_proof(old: &SignedCheckpoint, new: &SignedCheckpoint, text: &str) -> Result<Result<(), String>> {
    let proof = ConsistencyProof::parse(text)?;
    if proof.old_size != old.checkpoint.size || proof.checkpoint.checkpoint != new.checkpoint {
        bail!("the proof is of other checkpoints");
    }
    Ok(proof.check(&old.checkpoint.root).map_err(|error| error.to_string()))
}

fn keygen(name: &str, out: &std::path::Path, witness: bool) -> Result<Report> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
    let key_use = if witness { Use::Witness } else { Use::Log };
    let (private, public) = keys::generate(name, key_use, &seed)
        .context("a key's name must not be empty, and hold no spaces and no plus")?;
    files::write_private(out, &format!("{private}\n"))?;
    let vkey_file = files::with_suffix(out, "vkey");
    std::fs::write(&vkey_file, format!("{public}\n")).with_context(|| vkey_file.display().to_string())?;
    let mut report = Report::new("keygen");
    report.fact("private key", out.display());
    report.fact("public key", public);
    Ok(report)
}
