//! An independent, slow model of what PostgreSQL does: builds trees, then follows jsonb_util.c and numeric.c line by line,
//! sharing nothing with the crate.

/// A JSON value. Numbers are literals.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    Array(Vec<Value>),
    Object(Vec<(String, Value)>),
}

impl Value {
    pub fn is_container(&self) -> bool {
        matches!(self, Value::Array(_) | Value::Object(_))
    }

    /// Sorts and deduplicates every object, as uniqueifyJsonbObject does: the last of equal keys stays.
    pub fn unique(self) -> Value {
        match self {
            Value::Array(elements) => Value::Array(elements.into_iter().map(Value::unique).collect()),
            Value::Object(pairs) => {
                let mut kept: Vec<(String, Value)> = Vec::new();
                for (key, value) in pairs {
                    kept.retain(|(other, _)| *other != key);
                    kept.push((key, value.unique()));
                }
                kept.sort_by(|(a, _), (b, _)| a.len().cmp(&b.len()).then(a.as_bytes().cmp(b.as_bytes())));
                Value::Object(kept)
            }
            scalar => scalar,
        }
    }
}

/// A literal as digits, decimal weight and display scale: the first half of set_var_from_str.
struct Digits {
    negative: bool,
    /// Digits from the first to the last given one.
    digits: Vec<u8>,
    dweight: i64,
    dscale: i64,
}

fn digits(literal: &str) -> Digits {
    let (mantissa, exponent) = match literal.find(['e', 'E']) {
        Some(at) => (&literal[..at], literal[at + 1..].parse::<i64>().unwrap()),
        None => (literal, 0),
    };
    let negative = mantissa.starts_with('-');
    let mantissa = mantissa.trim_start_matches(['-', '+']);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = whole.bytes().chain(fraction.bytes()).map(|b| b - b'0').collect();
    Digits {
        negative,
        digits,
        dweight: whole.len() as i64 - 1 + exponent,
        dscale: (fraction.len() as i64 - exponent).max(0),
    }
}

/// The stored numeric after its varlena header, or none where numeric_in reports an overflow.
pub fn numeric(literal: &str) -> Option<Vec<u8>> {
    let Digits { negative, digits, dweight, dscale } = digits(literal);
    let mut weight = if dweight >= 0 { (dweight + 1 + 3) / 4 - 1 } else { -((-dweight - 1) / 4 + 1) };
    let offset = (weight + 1) * 4 - (dweight + 1);
    let ndigits = (digits.len() as i64 + offset + 3) / 4;
    let mut padded = vec![0u8; offset as usize];
    padded.extend(&digits);
    padded.resize(ndigits as usize * 4, 0);
    let mut base: Vec<u16> =
        padded.chunks(4).map(|c| c.iter().fold(0u16, |value, d| value * 10 + u16::from(*d))).collect();
    while base.first() == Some(&0) {
        base.remove(0);
        weight -= 1;
    }
    while base.last() == Some(&0) {
        base.pop();
    }
    let mut negative = negative;
    if base.is_empty() {
        negative = false;
        weight = 0;
    }
    let mut out = Vec::new();
    if dscale <= 63 && (-64..=63).contains(&weight) {
        let mut header = 0x8000u16 | (dscale as u16) << 7 | (weight as u16 & 0x3f);
        if negative {
            header |= 0x2000;
        }
        if weight < 0 {
            header |= 0x40;
        }
        out.extend(header.to_le_bytes());
    } else {
        if dscale > 0x3fff || i16::try_from(weight).is_err() {
            return None;
        }
        out.extend((if negative { 0x4000u16 } else { 0 } | dscale as u16).to_le_bytes());
        out.extend((weight as i16).to_le_bytes());
    }
    for digit in base {
        out.extend(digit.to_le_bytes());
    }
    Some(out)
}

/// What numeric_out prints of a literal once stored: plain decimal digits, as many after the point as the scale says.
pub fn numeric_text(literal: &str) -> String {
    let Digits { negative, digits, dweight, dscale } = digits(literal);
    let digit = |power: i64| {
        let i = dweight - power;
        if (0..digits.len() as i64).contains(&i) { digits[i as usize] } else { 0 }
    };
    let is_zero = digits.iter().all(|d| *d == 0);
    let mut text = String::new();
    if negative && !is_zero {
        text.push('-');
    }
    let first = (0..=dweight.max(0)).rev().find(|power| digit(*power) != 0).unwrap_or(0);
    for power in (0..=first).rev() {
        text.push(char::from(b'0' + digit(power)));
    }
    if dscale > 0 {
        text.push('.');
        for power in 1..=dscale {
            text.push(char::from(b'0' + digit(-power)));
        }
    }
    text
}

fn pad(buffer: &mut Vec<u8>) {
    while !buffer.len().is_multiple_of(4) {
        buffer.push(0);
    }
}

/// convertJsonbValue: appends to the buffer, returns the entry word with a length.
fn convert(buffer: &mut Vec<u8>, value: &Value) -> u32 {
    match value {
        Value::Null => 0x4000_0000,
        Value::Bool(false) => 0x2000_0000,
        Value::Bool(true) => 0x3000_0000,
        Value::String(s) => {
            buffer.extend(s.as_bytes());
            s.len() as u32
        }
        Value::Number(literal) => {
            let start = buffer.len();
            pad(buffer);
            let payload = numeric(literal).unwrap();
            buffer.extend(((payload.len() as u32 + 4) << 2).to_le_bytes());
            buffer.extend(payload);
            0x1000_0000 | (buffer.len() - start) as u32
        }
        Value::Array(elements) => {
            container(buffer, 0x4000_0000 | elements.len() as u32, &elements.iter().collect::<Vec<_>>())
        }
        Value::Object(pairs) => {
            let keys: Vec<Value> = pairs.iter().map(|(key, _)| Value::String(key.clone())).collect();
            let members: Vec<&Value> = keys.iter().chain(pairs.iter().map(|(_, value)| value)).collect();
            container(buffer, 0x2000_0000 | pairs.len() as u32, &members)
        }
    }
}

fn container(buffer: &mut Vec<u8>, header: u32, members: &[&Value]) -> u32 {
    let start = buffer.len();
    pad(buffer);
    buffer.extend(header.to_le_bytes());
    let entries = buffer.len();
    buffer.resize(entries + members.len() * 4, 0);
    let mut total = 0;
    for (i, member) in members.iter().enumerate() {
        let mut entry = convert(buffer, member);
        total += entry & 0x0fff_ffff;
        if i % 32 == 0 {
            entry = (entry & 0x7000_0000) | total | 0x8000_0000;
        }
        buffer[entries + i * 4..][..4].copy_from_slice(&entry.to_le_bytes());
    }
    0x5000_0000 | (buffer.len() - start) as u32
}

/// JSONB after its varlena header, of a value whose objects are unique.
pub fn jsonb(value: &Value) -> Vec<u8> {
    let mut buffer = Vec::new();
    if value.is_container() {
        convert(&mut buffer, value);
    } else {
        container(&mut buffer, 0x5000_0001, &[value]);
    }
    buffer
}

fn quoted(text: &mut String, string: &str) {
    text.push('"');
    for c in string.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            c if c < ' ' => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text.push('"');
}

/// What jsonb_out prints.
pub fn text(value: &Value) -> String {
    let mut text = String::new();
    print(&mut text, value);
    text
}

fn print(text: &mut String, value: &Value) {
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(b) => text.push_str(&b.to_string()),
        Value::Number(literal) => text.push_str(&numeric_text(literal)),
        Value::String(s) => quoted(text, s),
        Value::Array(elements) => {
            text.push('[');
            for (i, element) in elements.iter().enumerate() {
                text.push_str(if i > 0 { ", " } else { "" });
                print(text, element);
            }
            text.push(']');
        }
        Value::Object(pairs) => {
            text.push('{');
            for (i, (key, value)) in pairs.iter().enumerate() {
                text.push_str(if i > 0 { ", " } else { "" });
                quoted(text, key);
                text.push_str(": ");
                print(text, value);
            }
            text.push('}');
        }
    }
}
