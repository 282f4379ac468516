//! PostgreSQL's binary COPY format: a header, then rows of columns, each with its length and the bytes of its type's send
//! function. Numbers are big-endian; a time is microseconds since 2000.

use std::io::{ErrorKind, Read};

use anyhow::{Context, Result, bail};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const READING: &str = "reading from the database";

/// Reads what stands before the rows.
pub fn header(source: &mut impl Read) -> Result<()> {
    let mut head = [0; SIGNATURE.len() + 8];
    source.read_exact(&mut head).context(READING)?;
    if !head.starts_with(SIGNATURE) || head[SIGNATURE.len()..] != [0; 8] {
        bail!("the database sends another format than COPY's binary one");
    }
    Ok(())
}

/// The columns of a row, as bytes; `None` is NULL.
#[derive(Default)]
pub struct Row {
    data: Vec<u8>,
    ends: Vec<Option<(usize, usize)>>,
}

impl Row {
    /// Reads the next row; false at the end.
    pub fn read(&mut self, source: &mut impl Read) -> Result<bool> {
        self.data.clear();
        self.ends.clear();
        let mut count = [0; 2];
        source.read_exact(&mut count).context(READING)?;
        let count = i16::from_be_bytes(count);
        if count < 0 {
            // The server may still have an error to tell.
            return match source.read(&mut [0]) {
                Ok(0) => Ok(false),
                Ok(_) => bail!("the database sends more than it said"),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
                Err(error) => Err(error).context(READING),
            };
        }
        for _ in 0..count {
            let mut length = [0; 4];
            source.read_exact(&mut length).context(READING)?;
            let Ok(length) = usize::try_from(i32::from_be_bytes(length)) else {
                self.ends.push(None);
                continue;
            };
            let start = self.data.len();
            self.data.resize(start + length, 0);
            source.read_exact(&mut self.data[start..]).context(READING)?;
            self.ends.push(Some((start, start + length)));
        }
        Ok(true)
    }

    pub fn bytes(&self, column: usize) -> Option<&[u8]> {
        self.ends.get(column).copied().flatten().map(|(start, end)| &self.data[start..end])
    }

    pub fn text(&self, column: usize) -> Option<&str> {
        self.bytes(column).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// A smallint, int, bigint or timestamptz.
    pub fn integer(&self, column: usize) -> Option<i64> {
        integer(self.bytes(column)?)
    }

    /// An xid8 or pg_lsn.
    pub fn unsigned(&self, column: usize) -> Option<u64> {
        Some(u64::from_be_bytes(self.bytes(column)?.try_into().ok()?))
    }

    pub fn hash(&self, column: usize) -> Option<[u8; 32]> {
        self.bytes(column)?.try_into().ok()
    }

    pub fn uuid(&self, column: usize) -> Option<[u8; 16]> {
        self.bytes(column)?.try_into().ok()
    }

    /// The text of a jsonb.
    pub fn json(&self, column: usize) -> Option<&[u8]> {
        self.bytes(column).and_then(json)
    }
}

/// A smallint, int or bigint.
pub fn integer(bytes: &[u8]) -> Option<i64> {
    match *bytes {
        [a, b] => Some(i16::from_be_bytes([a, b]).into()),
        [a, b, c, d] => Some(i32::from_be_bytes([a, b, c, d]).into()),
        _ => Some(i64::from_be_bytes(bytes.try_into().ok()?)),
    }
}

/// The text of a jsonb; a version stands before it.
pub fn json(bytes: &[u8]) -> Option<&[u8]> {
    bytes.strip_prefix(&[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(rows: &[&[Option<&[u8]>]]) -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        out.extend_from_slice(&[0; 8]);
        for row in rows {
            out.extend_from_slice(&(row.len() as i16).to_be_bytes());
            for column in *row {
                match column {
                    None => out.extend_from_slice(&(-1i32).to_be_bytes()),
                    Some(bytes) => {
                        out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
                        out.extend_from_slice(bytes);
                    }
                }
            }
        }
        out.extend_from_slice(&(-1i16).to_be_bytes());
        out
    }

    #[test]
    fn columns_and_nulls() {
        let bytes = sent(&[&[Some(b"a"), None, Some(b""), Some(&[255, 255, 255, 254])], &[Some(&[1, b'{', b'}'])]]);
        let mut source = &bytes[..];
        header(&mut source).unwrap();
        let mut row = Row::default();
        assert!(row.read(&mut source).unwrap());
        assert_eq!((row.text(0), row.bytes(1), row.bytes(2)), (Some("a"), None, Some(&b""[..])));
        assert_eq!((row.integer(3), row.integer(0), row.bytes(4)), (Some(-2), None, None));
        assert!(row.read(&mut source).unwrap());
        assert_eq!(row.json(0), Some(&b"{}"[..]));
        assert!(!row.read(&mut source).unwrap());
        let mut cut = &bytes[..bytes.len() - 3];
        header(&mut cut).unwrap();
        assert!(row.read(&mut cut).unwrap());
        assert!(row.read(&mut cut).is_err());
        assert!(header(&mut &b"PGCOPX"[..]).is_err());
    }
}
