//! The two buffers that grow together, and the scalars written to both.

use super::layout::{FALSE, MAX_TEXT, NULL, NUMERIC, STRING, TRUE};
use super::text;
use crate::buf;
use crate::error::{Error, Result};
use crate::numeric;

/// JSONB bytes, and the text that `jsonb_out` prints of them. Each method appends one value to both and returns the
/// type bits of its entry word.
#[derive(Debug, Default)]
pub struct Output {
    pub jsonb: Vec<u8>,
    pub text: Vec<u8>,
}

/// Header word of a varlena of `size` bytes, itself included (postgres.h, SET_VARSIZE_4B).
#[inline]
fn varlena_header(size: usize) -> [u8; 4] {
    ((size as u32) << 2).to_le_bytes()
}

impl Output {
    /// Zero bytes up to the next multiple of four.
    #[inline]
    pub fn pad(&mut self) -> Result<()> {
        let end = self.jsonb.len().next_multiple_of(4);
        buf::reserve(&mut self.jsonb, 4)?;
        self.jsonb.extend_from_slice(&[0; 4]);
        self.jsonb.truncate(end);
        Ok(())
    }

    #[inline]
    pub fn null(&mut self) -> Result<u32> {
        buf::put(&mut self.text, b"null")?;
        Ok(NULL)
    }

    #[inline]
    pub fn boolean(&mut self, value: bool) -> Result<u32> {
        if value {
            buf::put(&mut self.text, b"true")?;
            Ok(TRUE)
        } else {
            buf::put(&mut self.text, b"false")?;
            Ok(FALSE)
        }
    }

    #[inline]
    pub fn string(&mut self, value: &[u8]) -> Result<u32> {
        buf::put_short(&mut self.jsonb, value)?;
        text::put_quoted(&mut self.text, value)?;
        if self.text.len() > MAX_TEXT {
            return Err(Error::TooLarge);
        }
        Ok(STRING)
    }

    /// An integer, as `numeric_in` of its text.
    #[inline]
    pub fn integer(&mut self, value: i64) -> Result<u32> {
        let mut payload = [0u8; numeric::INTEGER_MAX];
        let length = numeric::encode_i64(value, &mut payload);
        self.pad()?;
        // copied whole, then cut to its length
        buf::reserve(&mut self.jsonb, 4 + payload.len())?;
        let start = self.jsonb.len();
        self.jsonb.extend_from_slice(&varlena_header(4 + length));
        self.jsonb.extend_from_slice(&payload);
        self.jsonb.truncate(start + 4 + length);
        buf::put_integer(&mut self.text, value)?;
        Ok(NUMERIC)
    }

    /// A stored numeric, without its varlena header. What is no finite number is a string, as in `to_jsonb`.
    #[inline]
    pub fn numeric(&mut self, payload: &[u8]) -> Result<u32> {
        if let Some(name) = numeric::not_finite(payload)? {
            return self.string(name.as_bytes());
        }
        let start = self.start_numeric()?;
        numeric::put_normal(payload, &mut self.jsonb)?;
        self.end_numeric(start)
    }

    /// A decimal literal, as `numeric_in` reads it. What is no finite number is a string, by the rule of `to_jsonb`:
    /// whatever holds an `n` (jsonb.c, `datum_to_jsonb`).
    pub fn decimal(&mut self, literal: &[u8]) -> Result<u32> {
        if literal.iter().any(|byte| matches!(byte, b'N' | b'n')) {
            return self.string(literal);
        }
        let start = self.start_numeric()?;
        numeric::encode_decimal(literal, &mut self.jsonb)?;
        self.end_numeric(start)
    }

    #[inline]
    fn start_numeric(&mut self) -> Result<usize> {
        self.pad()?;
        let start = self.jsonb.len();
        buf::put(&mut self.jsonb, &[0; 4])?;
        Ok(start)
    }

    /// Fills in the varlena header and prints what follows it.
    #[inline]
    fn end_numeric(&mut self, start: usize) -> Result<u32> {
        let size = self.jsonb.len() - start;
        self.jsonb[start..start + 4].copy_from_slice(&varlena_header(size));
        numeric::print(&self.jsonb[start + 4..], &mut self.text)?;
        if self.text.len() > MAX_TEXT {
            return Err(Error::TooLarge);
        }
        Ok(NUMERIC)
    }
}
