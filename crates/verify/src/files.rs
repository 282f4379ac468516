//! What comes from files: checkpoints, keys.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use audit_ledger::checkpoint::SignedCheckpoint;
use audit_ledger::keys;

pub fn text(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(text);
    }
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

pub fn checkpoint(path: &Path) -> Result<SignedCheckpoint> {
    SignedCheckpoint::parse(&text(path)?).with_context(|| path.display().to_string())
}

pub fn checkpoints(paths: &[PathBuf]) -> Result<Vec<SignedCheckpoint>> {
    paths.iter().map(|path| checkpoint(path)).collect()
}

/// vkeys, each as it is or as @FILE.
pub fn keys(given: &[String]) -> Result<Vec<String>> {
    given
        .iter()
        .map(|key| {
            let key = match key.strip_prefix('@') {
                Some(path) => text(Path::new(path))?,
                None => key.clone(),
            };
            let key = key.trim().to_owned();
            keys::verifier(&key).with_context(|| format!("key {key}"))?;
            Ok(key)
        })
        .collect()
}

/// Writes a file that its owner alone can read, and that must not be there yet.
pub fn write_private(path: &Path, content: &str) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(content.as_bytes())).with_context(|| path.display().to_string())
}

/// Puts a file in place in one step, so that a crash leaves the old one or the new one.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let new = with_suffix(path, "new");
    let write = || {
        let mut file = fs::File::create(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().with_context(|| path.display().to_string())
}

pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}
