//! What can go wrong while a record is being written. Turning these into SQLSTATEs is the extension's business.

use std::fmt;

/// Why a value or a record could not be written.
#[derive(Debug, Clone, PartialEq)]
pub enum Error {
    /// The allocator has nothing left.
    OutOfMemory,
    /// Beyond JSONB's limits: a string or container over 256 MB, too many members, a text over 1 GB.
    TooLarge,
    /// Valid JSON text or a valid value, but nothing that JSONB can hold; says why.
    NotJsonb(&'static str),
    /// No JSON text.
    InvalidJson,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::OutOfMemory => f.write_str("out of memory"),
            Error::TooLarge => f.write_str("value exceeds the limits of jsonb"),
            Error::NotJsonb(why) => write!(f, "value cannot be represented as jsonb: {why}"),
            Error::InvalidJson => f.write_str("invalid JSON text"),
        }
    }
}

impl std::error::Error for Error {}

/// Result of everything in this crate that writes.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_says_what_it_is() {
        assert_eq!(Error::OutOfMemory.to_string(), "out of memory");
        assert_eq!(Error::TooLarge.to_string(), "value exceeds the limits of jsonb");
        assert_eq!(Error::NotJsonb("too deep").to_string(), "value cannot be represented as jsonb: too deep");
        assert_eq!(Error::InvalidJson.to_string(), "invalid JSON text");
    }
}
