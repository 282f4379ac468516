//! The JSONB writer, the JSON reader and the numeric format against the model of PostgreSQL in `model/`.

mod model;

use audit_core::error::Error;
use audit_core::jsonb::{KeyBlock, Writer};
use audit_core::numeric;
use model::Value;
use proptest::collection::vec;
use proptest::prelude::*;

fn literal() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        (-100i64..100).prop_map(|n| n.to_string()),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(|f| format!("{f:e}")),
        "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,30})?",
        "-?(0|[1-9]0{0,9})(\\.0{0,9}[01])?([eE][+-]?[0-9]{1,3})?",
    ]
}

fn string() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z]{0,40}",
        vec(prop_oneof![any::<char>(), (0u8..0x80).prop_map(char::from), Just('"'), Just('\\')], 0..20)
            .prop_map(|chars| chars.into_iter().filter(|c| *c != '\0').collect()),
    ]
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        literal().prop_map(Value::Number),
        string().prop_map(Value::String),
    ]
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof!["[ab]{0,2}", "[a-z]{0,5}", string()]
}

/// Any value; objects may hold a key more than once.
fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(5, 200, 40, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..70).prop_map(Value::Array),
            vec((key(), inner), 0..40).prop_map(Value::Object),
        ]
    })
}

fn scalar_to(writer: &mut Writer, value: &Value) -> Result<(), Error> {
    match value {
        Value::Null => writer.null(),
        Value::Bool(b) => writer.boolean(*b),
        Value::String(s) => writer.string(s.as_bytes()),
        Value::Number(literal) => match literal.parse::<i64>() {
            Ok(n) if n.to_string() == *literal => writer.integer(n),
            _ if literal.len() % 2 == 0 => writer.decimal(literal.as_bytes()),
            _ => writer.numeric(&model::numeric(literal).unwrap()),
        },
        Value::Array(_) | Value::Object(_) => unreachable!(),
    }
}

/// Writes a value whose objects are unique; of `spare` keys every object's block has one more that is not selected.
fn write(writer: &mut Writer, value: &Value, spare: bool) -> Result<(), Error> {
    match value {
        Value::Array(elements) => {
            writer.begin_array(elements.len())?;
            elements.iter().try_for_each(|element| write(writer, element, spare))?;
            writer.end_array()
        }
        Value::Object(pairs) => {
            let mut names: Vec<&[u8]> = pairs.iter().map(|(key, _)| key.as_bytes()).collect();
            if spare {
                let place = names.len() / 2;
                names.insert(place, b"!spare");
                let (keys, order) = KeyBlock::new(&names)?;
                let selected: Vec<u16> = (0..names.len()).filter(|i| order[*i] != place).map(|i| i as u16).collect();
                writer.begin_object_of(&keys, &selected)?;
            } else {
                names.reverse();
                let (keys, order) = KeyBlock::new(&names)?;
                for (i, place) in order.iter().enumerate() {
                    assert_eq!(keys.name(i), names[*place]);
                }
                writer.begin_object(&keys)?;
            }
            pairs.iter().try_for_each(|(_, value)| write(writer, value, spare))?;
            writer.end_object()
        }
        scalar => scalar_to(writer, scalar),
    }
}

fn assert_holds(writer: &Writer, value: &Value) {
    assert!(writer.is_complete());
    assert_eq!(String::from_utf8_lossy(writer.text()), model::text(value));
    assert_eq!(writer.jsonb(), model::jsonb(value));
}

/// JSON text of a value, with white space and escapes that depend on `seed`.
fn render(value: &Value, seed: &mut u64, out: &mut String) {
    let mut next = |n: u64| {
        *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*seed >> 33) % n
    };
    let space = ["", "", "", " ", "\n", "\t\r "][next(6) as usize];
    out.push_str(space);
    let mut string = |s: &str, out: &mut String| {
        out.push('"');
        for c in s.chars() {
            if c < ' ' || next(5) == 0 {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&if next(2) == 0 { format!("\\u{unit:04x}") } else { format!("\\u{unit:04X}") });
                }
            } else if matches!(c, '"' | '\\') {
                out.push('\\');
                out.push(c);
            } else {
                out.push(c);
            }
        }
        out.push('"');
    };
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(&b.to_string()),
        Value::Number(literal) => out.push_str(literal),
        Value::String(s) => string(s, out),
        Value::Array(elements) => {
            out.push('[');
            for (i, element) in elements.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                render(element, seed, out);
            }
            out.push(']');
        }
        Value::Object(pairs) => {
            out.push('{');
            for (i, (key, value)) in pairs.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                let mut inner = *seed;
                render(&Value::String(key.clone()), &mut inner, out);
                out.push_str(space);
                out.push(':');
                *seed ^= inner;
                render(value, seed, out);
            }
            out.push('}');
        }
    }
    out.push_str(space);
}

fn from_serde(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(b) => Value::Bool(b),
        serde_json::Value::Number(n) => Value::Number(n.to_string()),
        serde_json::Value::String(s) => Value::String(s),
        serde_json::Value::Array(elements) => Value::Array(elements.into_iter().map(from_serde).collect()),
        serde_json::Value::Object(pairs) => {
            Value::Object(pairs.into_iter().map(|(key, value)| (key, from_serde(value))).collect())
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn writer_equals_the_model(value in value()) {
        let value = value.unique();
        let mut writer = Writer::new();
        write(&mut writer, &value, false).unwrap();
        assert_holds(&writer, &value);
        writer.clear();
        write(&mut writer, &value, true).unwrap();
        assert_holds(&writer, &value);
    }

    #[test]
    fn json_text_is_read_as_jsonb_in_does(value in value(), mut seed in any::<u64>()) {
        let mut text = String::new();
        render(&value, &mut seed, &mut text);
        let mut writer = Writer::new();
        writer.json(text.as_bytes()).unwrap();
        assert_holds(&writer, &value.unique());
    }

    #[test]
    fn stored_jsonb_is_spliced_at_any_alignment(values in vec(value(), 1..6), shift in "[a-z]{0,5}") {
        let mut members = vec![Value::String(shift.clone())];
        members.extend(values.into_iter().map(Value::unique));
        let mut writer = Writer::new();
        writer.begin_array(members.len()).unwrap();
        writer.string(shift.as_bytes()).unwrap();
        for member in &members[1..] {
            writer.container(&model::jsonb(member)).unwrap();
        }
        writer.end_array().unwrap();
        assert_holds(&writer, &Value::Array(members));
    }

    #[test]
    fn what_is_rolled_back_leaves_no_trace(values in vec((value(), value()), 0..6)) {
        let mut writer = Writer::new();
        let mut kept = Vec::new();
        writer.begin_array(values.len()).unwrap();
        for (value, dropped) in values {
            let (value, dropped) = (value.unique(), dropped.unique());
            let mark = writer.mark();
            write(&mut writer, &dropped, false).unwrap();
            prop_assert_eq!(writer.value_text(&mark).to_vec(), model::text(&dropped).into_bytes());
            writer.rollback(&mark);
            // one that ends in the middle
            let _ = writer.begin_array(2).and_then(|()| write(&mut writer, &dropped, false));
            writer.rollback(&mark);
            write(&mut writer, &value, true).unwrap();
            prop_assert_eq!(writer.value_text_len(&mark), model::text(&value).len());
            kept.push(value);
        }
        writer.end_array().unwrap();
        assert_holds(&writer, &Value::Array(kept));
    }

    #[test]
    fn decimals_are_stored_and_printed_as_numeric_does(literal in literal()) {
        let mut payload = Vec::new();
        numeric::encode_decimal(literal.as_bytes(), &mut payload).unwrap();
        prop_assert_eq!(&payload, &model::numeric(&literal).unwrap());
        let mut text = Vec::new();
        numeric::print(&payload, &mut text).unwrap();
        prop_assert_eq!(String::from_utf8(text.clone()).unwrap(), model::numeric_text(&literal));
        // what is printed reads back the same
        let mut again = Vec::new();
        numeric::encode_decimal(&text, &mut again).unwrap();
        prop_assert_eq!(&again, &payload);
    }

    #[test]
    fn integers_are_stored_as_their_text(value in any::<i64>(), shift in 0u32..64) {
        let value = value >> shift;
        let mut payload = [0; numeric::INTEGER_MAX];
        let length = numeric::encode_i64(value, &mut payload);
        prop_assert_eq!(&payload[..length], model::numeric(&value.to_string()).unwrap());
    }

    #[test]
    fn numeric_range_ends_where_the_model_says(digits in "[1-9][0-9]{0,9}(\\.[0-9]{0,9}[1-9])?", exponent in prop_oneof![131_050i64..131_090, -16_400i64..-16_360]) {
        let literal = format!("{digits}e{exponent}");
        let ours = numeric::check_decimal(literal.as_bytes());
        prop_assert_eq!(ours.is_ok(), model::numeric(&literal).is_some());
        prop_assert_eq!(numeric::encode_decimal(literal.as_bytes(), &mut Vec::new()).is_ok(), ours.is_ok());
    }

    #[test]
    fn json_is_accepted_as_serde_json_accepts_it(text in "[\\[\\]{},:\" a\\\\u0-9.eE+truefalsnl-]{0,24}") {
        compare_with_serde(&text);
    }

    #[test]
    fn damaged_json_is_accepted_as_serde_json_accepts_it(
        value in value(), mut seed in any::<u64>(), at in any::<prop::sample::Index>(), with in "[\\[\\]{},:\"a\\\\u0-9.e -]{0,2}",
    ) {
        let mut text = String::new();
        render(&value, &mut seed, &mut text);
        let at = at.index(text.len() + 1);
        if text.is_char_boundary(at) {
            let rest = text.split_off(at);
            text.push_str(&with);
            text.extend(rest.chars().skip(1));
        }
        compare_with_serde(&text);
    }

    #[test]
    fn damaged_jsonb_is_an_error_at_worst(
        value in value(), damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = model::jsonb(&value.unique());
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let mut writer = Writer::new();
        let _ = writer.container(&bytes);
        writer.clear();
        let _ = writer.container(&bytes[..cut.index(bytes.len())]);
    }

    #[test]
    fn any_bytes_are_an_error_at_worst(bytes in vec(any::<u8>(), 0..64)) {
        let mut writer = Writer::new();
        let _ = writer.container(&bytes);
        writer.clear();
        let _ = writer.json(&bytes);
        writer.clear();
        let _ = writer.decimal(&bytes);
        writer.clear();
        let _ = writer.numeric(&bytes);
    }
}

fn compare_with_serde(text: &str) {
    let mut writer = Writer::new();
    let ours = writer.json(text.as_bytes());
    let theirs = serde_json::from_str::<serde_json::Value>(text);
    match (ours, theirs) {
        (Ok(()), Ok(value)) => assert_holds(&writer, &from_serde(value).unique()),
        (Err(Error::InvalidJson), Err(_)) => {}
        // beyond numeric, \u0000, lone surrogates
        (Err(Error::NotJsonb(_)), _) => {}
        (ours, theirs) => panic!("{text}: {ours:?}, {theirs:?}"),
    }
}
