//! A ledger as a static directory, as C2SP's tlog-tiles has it: `checkpoint`, `tile/<level>/<index>`,
//! `tile/entries/<index>`. Any tlog client can read it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use audit_ledger::Hash;
use audit_ledger::checkpoint::SignedCheckpoint;
use audit_ledger::tiles::{entries_path, path};
use audit_ledger::tree::{TILE_WIDTH, Tree};

use crate::database::Database;
use crate::files;
use crate::report::Report;

const ENTRY_BYTES: u16 = 32;

pub fn export(dsn: &str, directory: &Path) -> Result<Report> {
    let database = Database::connect(dsn)?;
    let ledger = database.ledgers()?.pop().context("the database has no ledger yet")?;
    let head = database.head(ledger.era)?.context("there is no checkpoint yet: call audit.seal()")?;
    let size = head.checkpoint.size;
    let mut tree = Tree::new();
    let mut bundle = Vec::new();
    let query =
        format!("SELECT checksum FROM audit.entry WHERE era = {} AND index < {size} ORDER BY index", ledger.era);
    database.stream(&query, |row| {
        let entry = row.hash(0).context("an entry has not 32 bytes")?;
        bundle.extend_from_slice(&ENTRY_BYTES.to_be_bytes());
        bundle.extend_from_slice(&entry);
        tree.push(&entry, |tile| {
            write(directory, &path(tile.level as u8, tile.index, TILE_WIDTH), &tile.hashes.concat())
        })?;
        if tree.size().is_multiple_of(TILE_WIDTH as u64) {
            write(directory, &entries_path(tree.size() / TILE_WIDTH as u64 - 1, TILE_WIDTH), &bundle)?;
            bundle.clear();
        }
        Ok(())
    })?;
    let mut report = Report::new("export");
    if tree.size() != size || tree.root() != head.checkpoint.root {
        let detail = format!("The entries of ledger {} do not give the root of its last checkpoint.", ledger.origin);
        report.finding("root altered", None, None, detail);
        return Ok(report);
    }
    if !bundle.is_empty() {
        let width = (size % TILE_WIDTH as u64) as usize;
        write(directory, &entries_path(size / TILE_WIDTH as u64, width), &bundle)?;
    }
    for (level, hashes) in tree.edge().iter().enumerate().filter(|(_, hashes)| !hashes.is_empty()) {
        let index = (size >> (8 * level)) / TILE_WIDTH as u64;
        write(directory, &path(level as u8, index, hashes.len()), &hashes.concat())?;
    }
    // Last, so that a reader never finds a checkpoint without its tiles.
    files::replace(&directory.join("checkpoint"), head.text().as_bytes())?;
    report.fact("ledger", &ledger.origin);
    report.fact("entries", size);
    if !head.is_signed() {
        report.fact("note", "the checkpoint is not signed: set audit.signing_key_file");
    }
    Ok(report)
}

fn write(directory: &Path, name: &str, content: &[u8]) -> Result<()> {
    let file = directory.join(name);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::write(&file, content).with_context(|| file.display().to_string())
}

pub fn check(directory: &Path, vkeys: &[String], mut kept: Vec<SignedCheckpoint>) -> Result<Report> {
    let mut report = Report::new("dir");
    let head = files::checkpoint(&directory.join("checkpoint"))?;
    if !vkeys.is_empty()
        && let Err(error) = head.verify(vkeys)
    {
        report.finding("checkpoint not signed", None, None, error.to_string());
    }
    let (size, origin) = (head.checkpoint.size, &head.checkpoint.origin);
    if let Some(other) = kept.iter().find(|kept| kept.checkpoint.origin != *origin) {
        bail!("a checkpoint that was kept is of another ledger, {}", other.checkpoint.origin);
    }
    let mut tree = Tree::new();
    let mut altered = Vec::new();
    retain_ahead(&tree, &mut kept, &mut report);
    for index in 0..size.div_ceil(TILE_WIDTH as u64) {
        let width = (size - index * TILE_WIDTH as u64).min(TILE_WIDTH as u64) as usize;
        let name = entries_path(index, width);
        for entry in entries(directory, &name, width)? {
            tree.push(&entry, |tile| {
                let name = path(tile.level as u8, tile.index, TILE_WIDTH);
                compare(directory, &name, &tile.hashes, &mut altered);
                Ok::<(), anyhow::Error>(())
            })?;
            retain_ahead(&tree, &mut kept, &mut report);
        }
    }
    for (level, hashes) in tree.edge().iter().enumerate().filter(|(_, hashes)| !hashes.is_empty()) {
        let index = (size >> (8 * level)) / TILE_WIDTH as u64;
        compare(directory, &path(level as u8, index, hashes.len()), hashes, &mut altered);
    }
    for name in altered {
        report.finding("tile altered", None, None, name);
    }
    if tree.root() != head.checkpoint.root {
        report.finding("root altered", None, None, "The entries do not give the checkpoint's root.");
    }
    for kept in kept {
        let detail = format!("A checkpoint that was kept is of {} entries, the log has {size}.", kept.checkpoint.size);
        report.finding("checkpoint inconsistent", None, None, detail);
    }
    report.fact("ledger", origin);
    report.fact("entries", size);
    Ok(report)
}

fn retain_ahead(tree: &Tree, kept: &mut Vec<SignedCheckpoint>, report: &mut Report) {
    kept.retain(|kept| {
        if kept.checkpoint.size != tree.size() {
            return true;
        }
        if kept.checkpoint.root != tree.root() {
            let detail = format!("The first {} entries are not those of a checkpoint that was kept.", tree.size());
            report.finding("checkpoint inconsistent", None, None, detail);
        }
        false
    });
}

fn entries(directory: &Path, name: &str, width: usize) -> Result<Vec<Hash>> {
    let file = directory.join(name);
    let bundle = fs::read(&file).with_context(|| file.display().to_string())?;
    let record = 2 + usize::from(ENTRY_BYTES);
    let sound = bundle.len() == width * record
        && bundle.chunks_exact(record).all(|entry| entry[..2] == ENTRY_BYTES.to_be_bytes());
    if !sound {
        bail!("{} is no bundle of {width} entries of {ENTRY_BYTES} bytes", file.display());
    }
    Ok(bundle.chunks_exact(record).filter_map(|entry| entry[2..].try_into().ok()).collect())
}

fn compare(directory: &Path, name: &str, hashes: &[Hash], altered: &mut Vec<String>) {
    if fs::read(directory.join(name)).ok().as_deref() != Some(hashes.concat().as_slice()) {
        altered.push(name.to_owned());
    }
}
