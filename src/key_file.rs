//! Files with keys, which the server's user alone can read.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

/// Of a set of keys, with room to spare.
const MAX_BYTES: u64 = 1024 * 1024;

/// What a file's text was read as, for as long as it stays the same file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    fn of(file: &Metadata) -> Self {
        Version {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// As PostgreSQL does it with the key of TLS: the file is the server user's and closed to others, or root's and at most
/// readable by a group. Else what is wrong with it.
pub fn check(path: &str) -> Result<Version, String> {
    let file = fs::metadata(path).map_err(|error| format!("{error}."))?;
    // The owner of our own /proc entry is the effective user.
    let server = fs::metadata("/proc/self").map(|process| process.uid()).unwrap_or(u32::MAX);
    if !file.is_file() {
        return Err("It is no regular file.".into());
    }
    let open_to_others = match file.uid() {
        0 if server != 0 => file.mode() & 0o027 != 0,
        owner if owner == server => file.mode() & 0o077 != 0,
        _ => return Err("It belongs to another user than the server's, or root.".into()),
    };
    if open_to_others {
        return Err("Group or others have access to it.".into());
    }
    if file.size() > MAX_BYTES {
        return Err("It is larger than 1 MB.".into());
    }
    Ok(Version::of(&file))
}

/// The text of such a file.
pub fn read(path: &str) -> Result<String, String> {
    check(path)?;
    fs::read_to_string(path).map_err(|error| format!("{error}."))
}
