//! PostgreSQL's COPY text format: rows as lines, columns between tabs, `\N` for NULL, backslash escapes.

use std::io::BufRead;

use anyhow::{Context, Result, bail};

/// The columns of a row, as bytes; `None` is NULL.
#[derive(Default)]
pub struct Row {
    line: Vec<u8>,
    data: Vec<u8>,
    ends: Vec<Option<(usize, usize)>>,
}

impl Row {
    /// Reads the next line; false at the end.
    pub fn read(&mut self, source: &mut impl BufRead) -> Result<bool> {
        self.line.clear();
        if source.read_until(b'\n', &mut self.line).context("reading from the database")? == 0 {
            return Ok(false);
        }
        if self.line.pop() != Some(b'\n') {
            bail!("a row from the database is cut off");
        }
        self.split()?;
        Ok(true)
    }

    fn split(&mut self) -> Result<()> {
        self.data.clear();
        self.ends.clear();
        for column in self.line.split(|&byte| byte == b'\t') {
            if column == b"\\N" {
                self.ends.push(None);
                continue;
            }
            let start = self.data.len();
            let mut bytes = column.iter();
            while let Some(&byte) = bytes.next() {
                if byte != b'\\' {
                    self.data.push(byte);
                    continue;
                }
                match bytes.next() {
                    Some(b'b') => self.data.push(8),
                    Some(b'f') => self.data.push(12),
                    Some(b'n') => self.data.push(b'\n'),
                    Some(b'r') => self.data.push(b'\r'),
                    Some(b't') => self.data.push(b'\t'),
                    Some(b'v') => self.data.push(11),
                    Some(&other) => self.data.push(other),
                    None => bail!("a row from the database ends in a backslash"),
                }
            }
            self.ends.push(Some((start, self.data.len())));
        }
        Ok(())
    }

    pub fn bytes(&self, column: usize) -> Option<&[u8]> {
        self.ends.get(column).copied().flatten().map(|(start, end)| &self.data[start..end])
    }

    pub fn text(&self, column: usize) -> Option<&str> {
        self.bytes(column).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    pub fn integer(&self, column: usize) -> Option<i64> {
        self.text(column)?.parse().ok()
    }

    /// A bytea in hexadecimal, without a prefix.
    pub fn hex(&self, column: usize) -> Option<Vec<u8>> {
        from_hex(self.bytes(column)?)
    }

    pub fn hash(&self, column: usize) -> Option<[u8; 32]> {
        self.hex(column)?.try_into().ok()
    }

    /// A UUID in its usual form.
    pub fn uuid(&self, column: usize) -> Option<[u8; 16]> {
        let digits: Vec<u8> = self.bytes(column)?.iter().copied().filter(|byte| *byte != b'-').collect();
        from_hex(&digits)?.try_into().ok()
    }
}

fn from_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks_exact(2).map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_and_nulls() {
        let mut row = Row::default();
        let mut source = &b"a\\tb\\\\\\nc\t\\N\t\t00ff\n\\\\N\n"[..];
        assert!(row.read(&mut source).unwrap());
        assert_eq!(row.text(0), Some("a\tb\\\nc"));
        assert_eq!(row.bytes(1), None);
        assert_eq!(row.bytes(2), Some(&b""[..]));
        assert_eq!(row.hex(3), Some(vec![0, 255]));
        assert_eq!(row.bytes(4), None);
        assert!(row.read(&mut source).unwrap());
        assert_eq!(row.text(0), Some("\\N"));
        assert!(!row.read(&mut source).unwrap());
        assert!(row.read(&mut &b"cut"[..]).is_err());
    }
}
