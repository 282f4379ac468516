//! JSON text read as `jsonb_in` does (jsonapi.c for the grammar, jsonb.c and jsonb_util.c for what becomes of it).
//!
//! Two steps, neither recursive: the text becomes a flat list of nodes in the order in which they come; then objects are
//! sorted, freed of duplicates and written.

use super::layout::{
    ARRAY, CONTAINER, HAS_OFFSET, LENGTH_MASK, MAX_DEPTH, MAX_ELEMENTS, MAX_PAIRS, Members, OBJECT, STRIDE, position,
};
use super::output::Output;
use super::text;
use crate::buf;
use crate::error::{Error, Result};
use crate::numeric;

/// Nested deeper than [`MAX_DEPTH`].
pub const TOO_DEEP: Error = Error::NotJsonb("nested too deeply");
const ZERO: Error = Error::NotJsonb("\\u0000 cannot be converted to text");
const SURROGATE: Error = Error::NotJsonb("unpaired Unicode surrogate");

/// Most values: each takes an entry word, and the words of all must stay below the 256 MB of the whole.
const MAX_NODES: usize = 1 << 26;
/// A number without exponent that is no longer than this is within `numeric`.
const ALWAYS_IN_RANGE: usize = 16_000;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Null,
    True,
    False,
    Number,
    /// A string without escapes: part of the input.
    Plain,
    /// A string with escapes: resolved, in `Scratch::decoded`.
    Decoded,
    Array,
    Object,
}

/// A value, or an object's key, which comes right before its value.
#[derive(Debug, Clone, Copy)]
struct Node {
    kind: Kind,
    /// Of a number or string: where it is. Of a container: the node after its last member.
    at: u32,
    /// Of a number or string: its length. Of a container: the number of its members.
    length: u32,
}

/// A member of an object that is being written.
#[derive(Debug, Clone, Copy)]
struct Pair {
    key: u32,
    value: u32,
}

/// A container that is being written.
#[derive(Debug, Clone, Copy)]
struct Open {
    members: Members,
    is_object: bool,
    /// Of an object: the next pair. Of an array: the next element's node.
    next: u32,
    /// Of an object: its first pair.
    first_pair: u32,
}

/// Memory for reading one JSON text after the other.
#[derive(Debug, Default)]
pub struct Scratch {
    nodes: Vec<Node>,
    decoded: Vec<u8>,
    /// Nodes of the containers that are being read.
    reading: Vec<u32>,
    pairs: Vec<Pair>,
    writing: Vec<Open>,
}

struct Lexer<'a> {
    input: &'a [u8],
    at: usize,
}

impl<'a> Lexer<'a> {
    /// The next byte that is no white space, not taken.
    fn peek(&mut self) -> Option<u8> {
        while let Some(&byte) = self.input.get(self.at) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.peek() != Some(byte) {
            return Err(Error::InvalidJson);
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self, word: &[u8]) -> Result<()> {
        if !self.input[self.at..].starts_with(word) {
            return Err(Error::InvalidJson);
        }
        self.at += word.len();
        Ok(())
    }

    fn digits(&mut self) -> Result<()> {
        let rest = &self.input[self.at..];
        let count = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        self.at += count;
        if count == 0 { Err(Error::InvalidJson) } else { Ok(()) }
    }

    fn take(&mut self, accepted: impl Fn(u8) -> bool) -> bool {
        let found = self.input.get(self.at).is_some_and(|&byte| accepted(byte));
        self.at += usize::from(found);
        found
    }

    /// A number: `json_lex_number`.
    fn number(&mut self) -> Result<Node> {
        let start = self.at;
        self.take(|byte| byte == b'-');
        if !self.take(|byte| byte == b'0') {
            self.digits()?;
        }
        if self.take(|byte| byte == b'.') {
            self.digits()?;
        }
        let has_exponent = self.take(|byte| matches!(byte, b'e' | b'E'));
        if has_exponent {
            self.take(|byte| matches!(byte, b'+' | b'-'));
            self.digits()?;
        }
        // checked here, since jsonb_in refuses also what a duplicate key would remove
        if has_exponent || self.at - start > ALWAYS_IN_RANGE {
            numeric::check_decimal(&self.input[start..self.at])?;
        }
        Ok(Node { kind: Kind::Number, at: start as u32, length: (self.at - start) as u32 })
    }

    /// A string from its opening quote on: `json_lex_string`.
    fn string(&mut self, decoded: &mut Vec<u8>) -> Result<Node> {
        self.expect(b'"')?;
        let start = self.at;
        self.at += plain_run(&self.input[start..]);
        if self.take(|byte| byte == b'"') {
            return Ok(Node { kind: Kind::Plain, at: start as u32, length: (self.at - 1 - start) as u32 });
        }
        let decoded_start = decoded.len();
        buf::put(decoded, &self.input[start..self.at])?;
        while !self.take(|byte| byte == b'"') {
            // what stopped the run is an escape, a bare control character or the end
            if !self.take(|byte| byte == b'\\') {
                return Err(Error::InvalidJson);
            }
            self.escape(decoded)?;
            let run = plain_run(&self.input[self.at..]);
            buf::put(decoded, &self.input[self.at..self.at + run])?;
            self.at += run;
        }
        let length = decoded.len() - decoded_start;
        Ok(Node { kind: Kind::Decoded, at: position(decoded_start)?, length: length as u32 })
    }

    /// What follows a backslash.
    fn escape(&mut self, decoded: &mut Vec<u8>) -> Result<()> {
        let byte = *self.input.get(self.at).ok_or(Error::InvalidJson)?;
        self.at += 1;
        let resolved = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let character = self.unicode()?;
                return buf::put(decoded, character.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ => return Err(Error::InvalidJson),
        };
        buf::push(decoded, resolved)
    }

    fn code_unit(&mut self) -> Result<u32> {
        let digits = self.input.get(self.at..self.at + 4).ok_or(Error::InvalidJson)?;
        self.at += 4;
        digits
            .iter()
            .try_fold(0, |unit, &digit| Ok(unit << 4 | char::from(digit).to_digit(16).ok_or(Error::InvalidJson)?))
    }

    /// The character of one `\u` escape, or of two that are a surrogate pair.
    fn unicode(&mut self) -> Result<char> {
        let unit = self.code_unit()?;
        let code = match unit {
            0 => return Err(ZERO),
            0xD800..=0xDBFF => {
                if !self.input[self.at..].starts_with(b"\\u") {
                    return Err(SURROGATE);
                }
                self.at += 2;
                match self.code_unit()? {
                    low @ 0xDC00..=0xDFFF => 0x10000 + ((unit & 0x3FF) << 10 | low & 0x3FF),
                    _ => return Err(SURROGATE),
                }
            }
            _ => unit,
        };
        char::from_u32(code).ok_or(SURROGATE)
    }
}

/// Number of bytes up to a quote, a backslash or a control character.
fn plain_run(bytes: &[u8]) -> usize {
    text::plain_prefix(bytes)
}

impl Scratch {
    /// Forgets what was read.
    pub fn clear(&mut self) {
        self.nodes.clear();
        self.decoded.clear();
        self.reading.clear();
        self.pairs.clear();
        self.writing.clear();
    }

    /// Gives back each buffer that holds more than `max_capacity` bytes.
    pub fn shrink(&mut self, max_capacity: usize) {
        buf::release(&mut self.nodes, max_capacity / size_of::<Node>());
        buf::release(&mut self.decoded, max_capacity);
        buf::release(&mut self.reading, max_capacity / size_of::<u32>());
        buf::release(&mut self.pairs, max_capacity / size_of::<Pair>());
        buf::release(&mut self.writing, max_capacity / size_of::<Open>());
    }

    /// Whether the text that was read is an array or an object.
    pub fn is_container(&self) -> bool {
        self.nodes.first().is_some_and(|node| matches!(node.kind, Kind::Array | Kind::Object))
    }

    /// Whether the text that was read is an object.
    pub fn is_object(&self) -> bool {
        self.nodes.first().is_some_and(|node| node.kind == Kind::Object)
    }

    /// Reads a whole JSON text; `depth` is how deep it will stand.
    pub fn parse(&mut self, input: &[u8], depth: usize) -> Result<()> {
        position(input.len())?;
        self.clear();
        let mut lexer = Lexer { input, at: 0 };
        loop {
            if self.begin_value(&mut lexer, depth)? {
                continue;
            }
            if self.end_values(&mut lexer)? {
                return Ok(());
            }
        }
    }

    fn add(&mut self, node: Node) -> Result<()> {
        if self.nodes.len() >= MAX_NODES {
            return Err(Error::TooLarge);
        }
        buf::push(&mut self.nodes, node)
    }

    /// Reads a scalar, or the start of a container. True: a member of the container just begun comes next.
    fn begin_value(&mut self, lexer: &mut Lexer<'_>, depth: usize) -> Result<bool> {
        let word = |kind| Node { kind, at: 0, length: 0 };
        match lexer.peek().ok_or(Error::InvalidJson)? {
            b'{' => return self.begin_container(lexer, Kind::Object, depth),
            b'[' => return self.begin_container(lexer, Kind::Array, depth),
            b'"' => {
                let node = lexer.string(&mut self.decoded)?;
                self.add(node)?;
            }
            b'-' | b'0'..=b'9' => {
                let node = lexer.number()?;
                self.add(node)?;
            }
            b't' => {
                lexer.word(b"true")?;
                self.add(word(Kind::True))?;
            }
            b'f' => {
                lexer.word(b"false")?;
                self.add(word(Kind::False))?;
            }
            b'n' => {
                lexer.word(b"null")?;
                self.add(word(Kind::Null))?;
            }
            _ => return Err(Error::InvalidJson),
        }
        Ok(false)
    }

    fn begin_container(&mut self, lexer: &mut Lexer<'_>, kind: Kind, depth: usize) -> Result<bool> {
        if depth + self.reading.len() >= MAX_DEPTH {
            return Err(TOO_DEEP);
        }
        lexer.at += 1;
        let number = self.nodes.len() as u32;
        self.add(Node { kind, at: number + 1, length: 0 })?;
        let bracket = if kind == Kind::Object { b'}' } else { b']' };
        if lexer.peek() == Some(bracket) {
            lexer.at += 1;
            return Ok(false);
        }
        buf::push(&mut self.reading, number)?;
        if kind == Kind::Object {
            self.key(lexer)?;
        }
        Ok(true)
    }

    fn key(&mut self, lexer: &mut Lexer<'_>) -> Result<()> {
        let node = lexer.string(&mut self.decoded)?;
        self.add(node)?;
        lexer.expect(b':')
    }

    /// Reads what follows a value: commas and closing brackets. True: nothing is open any more, and the text has ended.
    fn end_values(&mut self, lexer: &mut Lexer<'_>) -> Result<bool> {
        while let Some(&number) = self.reading.last() {
            let after = self.nodes.len() as u32;
            let Some(node) = self.nodes.get_mut(number as usize) else {
                return Err(Error::InvalidJson);
            };
            let is_object = node.kind == Kind::Object;
            node.length += 1;
            if node.length as usize > if is_object { MAX_PAIRS } else { MAX_ELEMENTS } {
                return Err(Error::TooLarge);
            }
            match lexer.peek() {
                Some(b',') => {
                    lexer.at += 1;
                    if is_object {
                        self.key(lexer)?;
                    }
                    return Ok(false);
                }
                Some(b'}') if is_object => {}
                Some(b']') if !is_object => {}
                _ => return Err(Error::InvalidJson),
            }
            lexer.at += 1;
            node.at = after;
            self.reading.pop();
        }
        if lexer.peek().is_some() { Err(Error::InvalidJson) } else { Ok(true) }
    }

    /// Writes what was read from `input`; returns the type bits of its entry word.
    pub fn emit(&mut self, input: &[u8], out: &mut Output) -> Result<u32> {
        self.writing.clear();
        self.pairs.clear();
        let root = *self.nodes.first().ok_or(Error::InvalidJson)?;
        if !self.is_container() {
            return self.scalar(root, input, out);
        }
        let mut open = self.open(0, input, out)?;
        loop {
            if open.members.is_full() {
                let base = open.members.base as usize;
                if out.jsonb.len() - base > LENGTH_MASK as usize {
                    return Err(Error::TooLarge);
                }
                buf::push(&mut out.text, if open.is_object { b'}' } else { b']' })?;
                self.pairs.truncate(open.first_pair as usize);
                let Some(parent) = self.writing.pop() else {
                    return Ok(CONTAINER);
                };
                open = parent;
                open.members.close(&mut out.jsonb, base, CONTAINER)?;
                continue;
            }
            let number = self.next_member(&mut open, input, out)?;
            let node = self.nodes[number as usize];
            if matches!(node.kind, Kind::Array | Kind::Object) {
                buf::push(&mut self.writing, open)?;
                open = self.open(number, input, out)?;
            } else {
                let start = out.jsonb.len();
                let kind = self.scalar(node, input, out)?;
                open.members.close(&mut out.jsonb, start, kind)?;
            }
        }
    }

    fn string<'a>(&'a self, node: Node, input: &'a [u8]) -> &'a [u8] {
        let source = if node.kind == Kind::Decoded { &self.decoded[..] } else { input };
        &source[node.at as usize..][..node.length as usize]
    }

    fn scalar(&self, node: Node, input: &[u8], out: &mut Output) -> Result<u32> {
        match node.kind {
            Kind::Null => out.null(),
            Kind::True => out.boolean(true),
            Kind::False => out.boolean(false),
            Kind::Number => out.decimal(self.string(node, input)),
            _ if node.length > LENGTH_MASK => Err(Error::TooLarge),
            _ => out.string(self.string(node, input)),
        }
    }

    /// Writes comma, key and colon as needed; returns the node of the value that comes next.
    fn next_member(&self, open: &mut Open, input: &[u8], out: &mut Output) -> Result<u32> {
        if !open.is_object {
            if open.members.next > 0 {
                buf::put(&mut out.text, b", ")?;
            }
            let number = open.next;
            let node = self.nodes[number as usize];
            open.next = match node.kind {
                Kind::Array | Kind::Object => node.at,
                _ => number + 1,
            };
            return Ok(number);
        }
        if open.next > open.first_pair {
            buf::put(&mut out.text, b", ")?;
        }
        let pair = self.pairs[open.next as usize];
        open.next += 1;
        text::put_quoted(&mut out.text, self.string(self.nodes[pair.key as usize], input))?;
        buf::put(&mut out.text, b": ")?;
        Ok(pair.value)
    }

    /// Writes the start of a container.
    fn open(&mut self, number: u32, input: &[u8], out: &mut Output) -> Result<Open> {
        let base = position(out.jsonb.len())?;
        out.pad()?;
        let entries = position(out.jsonb.len() + 4)?;
        let node = self.nodes[number as usize];
        let first_pair = self.pairs.len() as u32;
        if node.kind == Kind::Array {
            buf::push(&mut out.text, b'[')?;
            buf::put(&mut out.jsonb, &(ARRAY | node.length).to_le_bytes())?;
            buf::zeros(&mut out.jsonb, node.length as usize * 4)?;
            let data = position(out.jsonb.len())?;
            let members = Members { base, entries, data, next: 0, end: node.length };
            return Ok(Open { members, is_object: false, next: number + 1, first_pair });
        }
        buf::push(&mut out.text, b'{')?;
        self.collect_pairs(number, input)?;
        let pairs = &self.pairs[first_pair as usize..];
        let count = pairs.len() as u32;
        buf::put(&mut out.jsonb, &(OBJECT | count).to_le_bytes())?;
        let mut end = 0usize;
        for (i, pair) in pairs.iter().enumerate() {
            let length = self.nodes[pair.key as usize].length;
            end += length as usize;
            if end > LENGTH_MASK as usize {
                return Err(Error::TooLarge);
            }
            let entry = if (i as u32).is_multiple_of(STRIDE) { end as u32 | HAS_OFFSET } else { length };
            buf::put(&mut out.jsonb, &entry.to_le_bytes())?;
        }
        buf::zeros(&mut out.jsonb, count as usize * 4)?;
        let data = position(out.jsonb.len())?;
        for pair in pairs {
            buf::put(&mut out.jsonb, self.string(self.nodes[pair.key as usize], input))?;
        }
        let members = Members { base, entries, data, next: count, end: count * 2 };
        Ok(Open { members, is_object: true, next: first_pair, first_pair })
    }

    /// Appends an object's pairs in JSONB's order; of equal keys the last one stays (`uniqueifyJsonbObject`).
    fn collect_pairs(&mut self, number: u32, input: &[u8]) -> Result<()> {
        let first_pair = self.pairs.len();
        let object = self.nodes[number as usize];
        buf::reserve(&mut self.pairs, object.length as usize)?;
        let mut key = number + 1;
        for _ in 0..object.length {
            self.pairs.push(Pair { key, value: key + 1 });
            let value = self.nodes[key as usize + 1];
            key = match value.kind {
                Kind::Array | Kind::Object => value.at,
                _ => key + 2,
            };
        }
        let mut pairs = std::mem::take(&mut self.pairs);
        let name = |pair: &Pair| {
            let name = self.string(self.nodes[pair.key as usize], input);
            (name.len(), name)
        };
        let new = &mut pairs[first_pair..];
        if !new.is_sorted_by(|a, b| name(a) < name(b)) {
            // nodes are numbered as they come, so the last of equal keys has the highest
            new.sort_unstable_by(|a, b| name(a).cmp(&name(b)).then(b.key.cmp(&a.key)));
            let mut kept = 0;
            for i in 1..new.len() {
                if name(&new[i]) != name(&new[kept]) {
                    kept += 1;
                    new[kept] = new[i];
                }
            }
            pairs.truncate(first_pair + kept + 1);
        }
        self.pairs = pairs;
        Ok(())
    }
}
