//! Bytes and texts taken from PostgreSQL 15 (pageinspect, `heap_page_item_attrs` of columns with STORAGE PLAIN, less the
//! varlena header; texts as `jsonb_out` prints them).

use audit_core::error::{Error, Result};
use audit_core::jsonb::{KeyBlock, MAX_DEPTH, Writer};
use audit_core::numeric;

fn unhex(digits: &str) -> Vec<u8> {
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn read(json: &str) -> Result<Writer> {
    let mut writer = Writer::new();
    writer.json(json.as_bytes())?;
    Ok(writer)
}

/// Stored numeric, `to_jsonb(ARRAY[n])`, `numeric_out`.
const NUMERICS: &[(&str, &str, &str)] = &[
    ("0080", "0100004006000090180000000080", "0"),
    ("0081", "0100004006000090180000000081", "0.00"),
    ("8080", "0100004006000090180000008080", "0.0"),
    ("00800100", "01000040080000902000000000800100", "1"),
    ("00a00100", "01000040080000902000000000a00100", "-1"),
    ("00810c008813", "010000400a0000902800000000810c008813", "12.50"),
    ("00800f27", "01000040080000902000000000800f27", "9999"),
    ("01800100", "01000040080000902000000001800100", "10000"),
    ("01a00100", "01000040080000902000000001a00100", "-10000"),
    ("028301002909851a0100", "010000400e00009038000000028301002909851a0100", "123456789.000100"),
    ("05800100", "01000040080000902000000005800100", "100000000000000000000"),
    ("05a00100", "01000040080000902000000005a00100", "-100000000000000000000"),
    ("fe830a00", "010000400800009020000000fe830a00", "0.0000001"),
    (
        "6500e7ff01008813",
        "010000400c000090300000006500e7ff01008813",
        "0.00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000015",
    ),
    (
        "00004b000100",
        "010000400a0000902800000000004b000100",
        "1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    ),
    ("00c0", "01000040030000804e614e", "NaN"),
    ("00d0", "0100004008000080496e66696e697479", "Infinity"),
    ("00f0", "01000040090000802d496e66696e697479", "-Infinity"),
    ("7f820100", "0100004008000090200000007f820100", "0.0001"),
    ("ff820100", "010000400800009020000000ff820100", "0.00010"),
    ("01820f270f270f27", "010000400c0000903000000001820f270f270f27", "99999999.9999"),
    (
        "3f800100",
        "0100004008000090200000003f800100",
        "1000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    ),
    (
        "000040000100",
        "010000400a00009028000000000040000100",
        "10000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    ),
    (
        "fc40c1ff0100",
        "010000400a00009028000000fc40c1ff0100",
        "-0.000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000001",
    ),
    (
        "0001c0ff0100",
        "010000400a000090280000000001c0ff0100",
        "0.0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000001",
    ),
    (
        "8091030087053124050efc1e060f530af80e0e1f400b",
        "010000401a000090680000008091030087053124050efc1e060f530af80e0e1f400b",
        "3.14159265358979323846264338327950288",
    ),
    (
        "0f808813",
        "0100004008000090200000000f808813",
        "5000000000000000000000000000000000000000000000000000000000000000",
    ),
    (
        "4000f0ff0100",
        "010000400a000090280000004000f0ff0100",
        "0.0000000000000000000000000000000000000000000000000000000000000001",
    ),
];

/// What is printed long: only some digits of it matter.
fn printed(payload: &[u8]) -> String {
    let mut text = Vec::new();
    numeric::print(payload, &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn numerics_become_what_to_jsonb_makes_of_them() {
    for (payload, array, text) in NUMERICS {
        let payload = unhex(payload);
        assert_eq!(printed(&payload), *text);
        let mut writer = Writer::new();
        writer.begin_array(1).unwrap();
        writer.numeric(&payload).unwrap();
        writer.end_array().unwrap();
        assert_eq!(writer.jsonb(), unhex(array), "{text}");

        // the literal gives the same as the stored value
        let mut writer = Writer::new();
        writer.begin_array(1).unwrap();
        writer.decimal(text.as_bytes()).unwrap();
        writer.end_array().unwrap();
        assert_eq!(writer.jsonb(), unhex(array), "{text}");
        let quoted = text.contains('N') || text.contains('y');
        let expected = if quoted { format!("[\"{text}\"]") } else { format!("[{text}]") };
        assert_eq!(writer.text(), expected.as_bytes());
    }
}

/// JSON text, JSONB, text.
const DOCUMENTS: &[(&str, &str, &str)] = &[
    (r#"{}"#, "00000020", r#"{}"#),
    (r#"[]"#, "00000040", r#"[]"#),
    (r#"{"a":1}"#, "01000020010000800b000010610000002000000000800100", r#"{"a": 1}"#),
    (
        r#"{"bb":"x","a":null,"c":true,"ab":false}"#,
        "04000020010000800100000002000000020000000000004000000030000000200100000061636162626278",
        r#"{"a": null, "c": true, "ab": false, "bb": "x"}"#,
    ),
    (
        r#"[1,-1,0,10000,123456789012,-9223372036854775808, 1000000]"#,
        "070000400800009008000010060000100a0000100c000010100000100800001020000000008001002000000000a0010018000000008000002000000001800100300000000280d2042e1634234000000004a09a032c0d70016515b0162000000001806400",
        r#"[1, -1, 0, 10000, 123456789012, -9223372036854775808, 1000000]"#,
    ),
    (r#""scalar""#, "01000050060000807363616c6172", r#""scalar""#),
    (r#"12.50"#, "010000500a0000902800000000810c008813", r#"12.50"#),
    (r#"null"#, "01000050000000c0", r#"null"#),
    (r#"true"#, "01000050000000b0", r#"true"#),
    (r#"false"#, "01000050000000a0", r#"false"#),
    (
        r#"[[],{},[{"x":[1,"a"]}],"é"]"#,
        "04000040040000d0040000502d00005002000000000000400000002001000040250000d001000020010000801800005078000000020000400800009001000000200000000080010061c3a9",
        r#"[[], {}, [{"x": [1, "a"]}], "é"]"#,
    ),
    (
        r#"{"a":1,"a":2,"b":3,"a":{"z":[]}}"#,
        "0200002001000080010000001600005008000010616200000100002001000080070000507a000000000000402000000000800300",
        r#"{"a": {"z": []}, "b": 3}"#,
    ),
    (
        r#"["\u00e9\ud83d\ude00\b\f\n\r\t\"\\\/\u0001\u001f\u007f"]"#,
        "0100004011000080c3a9f09f9880080c0a0d09225c2f011f7f",
        r#"["é😀\b\f\n\r\t\"\\/\u0001\u001f"]"#,
    ),
    (
        r#"[1.5e-07,-0,1e+20,12.50,-0.00,1E3,0.1e1,100e-2,1e-5,0.0001,0.00010,123456.7891]"#,
        "0c00004008000090060000100a0000100a000010080000100a00001008000010080000100800001008000010080000100c000010200000007e840f00180000000080000020000000058001002800000000810c00881300001800000000810000200000000080e8032000000000800100200000000081010020000000fe82e803200000007f82010020000000ff8201003000000001820c00800dd31e",
        r#"[0.00000015, 0, 100000000000000000000, 12.50, 0.00, 1000, 1, 1.00, 0.00001, 0.0001, 0.00010, 123456.7891]"#,
    ),
    (
        r#"{"":1,"é":"","aaa":{"q":1,"p":"é"}}"#,
        "030000200000008002000000030000000b0000100000000020000050c3a9616161000000200000000080010002000020010000800100000002000000080000107071c3a92000000000800100",
        r#"{"": 1, "é": "", "aaa": {"p": "é", "q": 1}}"#,
    ),
    (
        r#"["a",1,"bc",[1],"def",{"k":2},null,1]"#,
        "08000040010000800b00001002000000120000500300000019000050000000400800001061000000200000000080010062630000010000400800009020000000008001006465660001000020010000800b0000106b00000020000000008002002000000000800100",
        r#"["a", 1, "bc", [1], "def", {"k": 2}, null, 1]"#,
    ),
    (
        r#"[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40]"#,
        "28000040080000900800001008000010080000100800001008000010080000100800001008000010080000100800001008000010080000100800001008000010080000100800001008000010080000100800001008000010080000100800001008000010080000100800001008000010080000100800001008000010080000100800001008010090080000100800001008000010080000100800001008000010080000102000000000800100200000000080020020000000008003002000000000800400200000000080050020000000008006002000000000800700200000000080080020000000008009002000000000800a002000000000800b002000000000800c002000000000800d002000000000800e002000000000800f0020000000008010002000000000801100200000000080120020000000008013002000000000801400200000000080150020000000008016002000000000801700200000000080180020000000008019002000000000801a002000000000801b002000000000801c002000000000801d002000000000801e002000000000801f00200000000080200020000000008021002000000000802200200000000080230020000000008024002000000000802500200000000080260020000000008027002000000000802800",
        r#"[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40]"#,
    ),
    (
        r#"{"k1":"v1","k2":null,"k3":3,"k4":"v4","k5":null,"k6":6,"k7":"v7","k8":null,"k9":9,"k10":"v10","k11":null,"k12":12,"k13":"v13","k14":null,"k15":15,"k16":"v16","k17":null,"k18":18,"k19":"v19","k20":null,"k21":21,"k22":"v22","k23":null,"k24":24,"k25":"v25","k26":null,"k27":27,"k28":"v28","k29":null,"k30":30,"k31":"v31","k32":null,"k33":33,"k34":"v34","k35":null,"k36":36,"k37":"v37","k38":null,"k39":39,"k40":"v40"}"#,
        "2800002002000080020000000200000002000000020000000200000002000000020000000200000003000000030000000300000003000000030000000300000003000000030000000300000003000000030000000300000003000000030000000300000003000000030000000300000003000000030000000300000003000000030000005a0000800300000003000000030000000300000003000000030000000300000002000000000000400b00001002000000000000400a00001002000000000000400a000010030000000000004009000010030000000000004009000010030000000000004009000010030000000000004009000010030000000000004009000010d30000800000004009000010030000000000004009000010030000000000004009000010030000000000004009000010030000000000004009000010030000006b316b326b336b346b356b366b376b386b396b31306b31316b31326b31336b31346b31356b31366b31376b31386b31396b32306b32316b32326b32336b32346b32356b32366b32376b32386b32396b33306b33316b33326b33336b33346b33356b33366b33376b33386b33396b343076310000002000000000800300763400002000000000800600763700002000000000800900763130002000000000800c00763133002000000000800f00763136002000000000801200763139002000000000801500763232002000000000801800763235002000000000801b00763238002000000000801e00763331002000000000802100763334002000000000802400763337002000000000802700763430",
        r#"{"k1": "v1", "k2": null, "k3": 3, "k4": "v4", "k5": null, "k6": 6, "k7": "v7", "k8": null, "k9": 9, "k10": "v10", "k11": null, "k12": 12, "k13": "v13", "k14": null, "k15": 15, "k16": "v16", "k17": null, "k18": 18, "k19": "v19", "k20": null, "k21": 21, "k22": "v22", "k23": null, "k24": 24, "k25": "v25", "k26": null, "k27": 27, "k28": "v28", "k29": null, "k30": 30, "k31": "v31", "k32": null, "k33": 33, "k34": "v34", "k35": null, "k36": 36, "k37": "v37", "k38": null, "k39": 39, "k40": "v40"}"#,
    ),
    (
        r#" [ 1 ,
	{ "a" : [ ] } ] "#,
        "02000040080000901400005020000000008001000100002001000080070000506100000000000040",
        r#"[1, {"a": []}]"#,
    ),
];

#[test]
fn json_texts_become_what_jsonb_in_makes_of_them() {
    for (json, jsonb, text) in DOCUMENTS {
        let writer = read(json).unwrap();
        assert!(writer.is_complete());
        assert_eq!(writer.jsonb(), unhex(jsonb), "{json}");
        assert_eq!(std::str::from_utf8(writer.text()).unwrap(), *text);
    }
}

#[test]
fn stored_documents_print_and_copy() {
    for (_, jsonb, text) in DOCUMENTS {
        let mut writer = Writer::new();
        writer.container(&unhex(jsonb)).unwrap();
        assert_eq!(writer.jsonb(), unhex(jsonb));
        assert_eq!(std::str::from_utf8(writer.text()).unwrap(), *text);
    }
}

#[test]
fn floats_become_what_to_jsonb_makes_of_them() {
    // float8out of the value, to_jsonb of it
    for (literal, text) in [
        ("1.5e-07", "0.00000015"),
        ("-0", "0"),
        ("1e+20", "100000000000000000000"),
        ("1e+15", "1000000000000000"),
        ("100000000000000", "100000000000000"),
        ("0.1", "0.1"),
        ("12345.678", "12345.678"),
        ("NaN", "\"NaN\""),
        ("Infinity", "\"Infinity\""),
        ("-Infinity", "\"-Infinity\""),
    ] {
        let mut writer = Writer::new();
        writer.decimal(literal.as_bytes()).unwrap();
        assert_eq!(std::str::from_utf8(writer.text()).unwrap(), text);
    }
    let mut writer = Writer::new();
    writer.decimal(b"5e-324").unwrap();
    assert_eq!(writer.text().len(), 2 + 324);
    writer.clear();
    writer.decimal(b"1.7976931348623157e+308").unwrap();
    assert_eq!(writer.text().len(), 309);
}

#[test]
fn numbers_beyond_numeric_are_refused_where_postgresql_refuses_them() {
    for accepted in ["1e131071", "0.1e131072", "10000e131067", "0e-16383", "1e-16383", "0e1000000", "0e1073741822"] {
        assert!(read(accepted).is_ok(), "{accepted}");
    }
    for refused in
        ["1e131072", "0.1e131073", "10000e131068", "0e-16384", "1e-16384", "0e1073741823", "1e-99999999999999999999"]
    {
        let error = read(refused).unwrap_err();
        assert_eq!(error, Error::NotJsonb("number out of the range of numeric"), "{refused}");
    }
    // also where a later duplicate would remove it
    assert!(read("{\"a\": 1e131072, \"a\": 1}").is_err());
    // without an exponent
    assert!(read(&"9".repeat(131_072)).is_ok());
    assert!(read(&"9".repeat(131_073)).is_err());
    assert!(read(&format!("0.{}1", "0".repeat(16_382))).is_ok());
    assert!(read(&format!("0.{}1", "0".repeat(16_383))).is_err());
}

#[test]
fn json_that_jsonb_cannot_hold_says_so() {
    for text in [r#""\u0000""#, r#"{"\u0000": 1}"#, r#""\ud800""#, r#""\ud800x""#, r#""\udc00""#, r#""\ud800\ud800""#] {
        assert!(matches!(read(text), Err(Error::NotJsonb(_))), "{text}");
    }
    let deep = |depth: usize| format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
    assert!(read(&deep(MAX_DEPTH)).is_ok());
    assert_eq!(read(&deep(MAX_DEPTH + 1)).unwrap_err(), Error::NotJsonb("nested too deeply"));
    let deep = |depth: usize| format!("{}1{}", "{\"a\": ".repeat(depth), "}".repeat(depth));
    assert_eq!(read(&deep(MAX_DEPTH)).unwrap().text(), deep(MAX_DEPTH).as_bytes());
    assert_eq!(read(&deep(MAX_DEPTH + 1)).unwrap_err(), Error::NotJsonb("nested too deeply"));
}

#[test]
fn depth_counts_what_is_around() {
    let stored = {
        let mut writer = Writer::new();
        writer.json(format!("{}{}", "[".repeat(MAX_DEPTH), "]".repeat(MAX_DEPTH)).as_bytes()).unwrap();
        writer.jsonb().to_vec()
    };
    let mut writer = Writer::new();
    writer.container(&stored).unwrap();
    assert_eq!(writer.jsonb(), stored);
    writer.clear();
    writer.begin_array(1).unwrap();
    let mark = writer.mark();
    assert_eq!(writer.container(&stored), Err(Error::NotJsonb("nested too deeply")));
    writer.rollback(&mark);
    writer.null().unwrap();
    writer.end_array().unwrap();
    assert_eq!(writer.text(), b"[null]");

    writer.clear();
    for _ in 0..MAX_DEPTH {
        writer.begin_array(1).unwrap();
    }
    assert_eq!(writer.begin_array(1), Err(Error::NotJsonb("nested too deeply")));
}

#[test]
fn what_is_no_json_is_refused() {
    for text in [
        "",
        " ",
        "nul",
        "nulls",
        "True",
        "01",
        "-",
        "+1",
        "1.",
        ".5",
        "1e",
        "1e+",
        "-a",
        "\"",
        "\"\\",
        "\"\\u12\"",
        "\"\\u00g0\"",
        "\"\\x\"",
        "\"\u{1}\"",
        "[",
        "]",
        "[1",
        "[1,",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1",
        "{\"a\":1,}",
        "{\"a\" 1}",
        "{1:2}",
        "{a:1}",
        "1 2",
        "[1}",
        "{\"a\":1]",
        "tru",
        "fals",
        "\"a",
        "\"\\n",
    ] {
        assert_eq!(read(text).unwrap_err(), Error::InvalidJson, "{text}");
    }
}

#[test]
fn keys_are_sorted_by_length_then_bytes() {
    let (keys, order) = KeyBlock::new(&[b"zz", b"a", b"", b"\xc3\xa9", b"b\""]).unwrap();
    assert_eq!(order, [2, 1, 4, 0, 3]);
    assert_eq!(keys.len(), 5);
    assert!(!keys.is_empty());
    assert_eq!(keys.name(2), b"b\"");
    assert_eq!(keys.name(5), b"");
    let mut writer = Writer::new();
    writer.begin_object(&keys).unwrap();
    (0..5).for_each(|n| writer.integer(n).unwrap());
    writer.end_object().unwrap();
    assert_eq!(std::str::from_utf8(writer.text()).unwrap(), r#"{"": 0, "a": 1, "b\"": 2, "zz": 3, "é": 4}"#);
    assert_eq!(writer.jsonb(), read(std::str::from_utf8(writer.text()).unwrap()).unwrap().jsonb());

    writer.clear();
    writer.begin_object_of(&keys, &[2, 4]).unwrap();
    writer.null().unwrap();
    writer.boolean(false).unwrap();
    writer.end_object().unwrap();
    assert_eq!(std::str::from_utf8(writer.text()).unwrap(), r#"{"b\"": null, "é": false}"#);
    assert_eq!(writer.jsonb(), read(std::str::from_utf8(writer.text()).unwrap()).unwrap().jsonb());

    writer.clear();
    assert!(writer.begin_object_of(&keys, &[2, 5]).is_err());
    assert!(writer.begin_object_of(&keys, &[2, 1]).is_err());
    assert!(writer.begin_object_of(&keys, &[1, 1]).is_err());
    assert_eq!(KeyBlock::new(&[b"a", b"b", b"a"]).unwrap_err(), Error::NotJsonb("duplicate member name"));
    assert!(KeyBlock::new(&[]).unwrap().0.is_empty());
}

#[test]
fn a_table_of_1600_columns() {
    let names: Vec<String> = (0..1600).map(|i| format!("column_{i}")).collect();
    let (keys, _) = KeyBlock::new(&names.iter().map(|name| name.as_bytes()).collect::<Vec<_>>()).unwrap();
    let mut writer = Writer::new();
    writer.begin_object(&keys).unwrap();
    (0..1600).for_each(|n| if n % 3 == 0 { writer.integer(n).unwrap() } else { writer.string(b"text").unwrap() });
    writer.end_object().unwrap();
    assert_eq!(writer.jsonb(), read(std::str::from_utf8(writer.text()).unwrap()).unwrap().jsonb());
}

#[test]
fn a_long_name_is_more_than_one_move() {
    let name = b"a_name_of_sixty_three_bytes_as_long_as_an_identifier_can_be____";
    let (keys, _) = KeyBlock::new(&[name]).unwrap();
    let mut writer = Writer::new();
    writer.begin_object(&keys).unwrap();
    writer.null().unwrap();
    writer.end_object().unwrap();
    let expected = format!("{{\"{}\": null}}", std::str::from_utf8(name).unwrap());
    assert_eq!(std::str::from_utf8(writer.text()).unwrap(), expected);
}

#[test]
fn a_digest_stands_for_a_value() {
    let (keys, _) = KeyBlock::new(&[b"a", b"b"]).unwrap();
    let mut writer = Writer::new();
    writer.begin_object(&keys).unwrap();
    writer.integer(1).unwrap();
    let mark = writer.mark();
    writer.string(b"large").unwrap();
    assert_eq!(writer.value_text(&mark), b"\"large\"");
    writer.rollback(&mark);
    writer.digest(&[0xab; 32], u64::MAX).unwrap();
    writer.end_object().unwrap();
    let digits = "ab".repeat(32);
    let expected = format!("{{\"a\": 1, \"b\": {{\"$bytes\": 18446744073709551615, \"$sha256\": \"{digits}\"}}}}");
    assert_eq!(std::str::from_utf8(writer.text()).unwrap(), expected);
    assert_eq!(writer.jsonb(), read(&expected).unwrap().jsonb());
}

#[test]
fn members_are_counted() {
    let (keys, _) = KeyBlock::new(&[b"a"]).unwrap();
    let mut writer = Writer::new();
    assert!(!writer.is_complete());
    assert!(writer.end_array().is_err());
    assert!(writer.end_object().is_err());
    writer.begin_object(&keys).unwrap();
    assert!(writer.end_object().is_err());
    assert!(writer.end_array().is_err());
    writer.null().unwrap();
    assert!(writer.null().is_err());
    assert!(writer.begin_array(0).is_err());
    assert!(!writer.is_complete());
    writer.end_object().unwrap();
    assert!(writer.is_complete());
    // a second root
    assert!(writer.begin_array(0).is_err());
    assert!(writer.null().is_err());
    writer.clear();
    writer.begin_array(1).unwrap();
    writer.begin_object(&KeyBlock::new(&[]).unwrap().0).unwrap();
    writer.end_object().unwrap();
    assert!(writer.begin_array(0).is_err());
    writer.end_array().unwrap();
    assert_eq!(writer.text(), b"[{}]");
    assert_eq!(writer.begin_array(1 << 25), Err(Error::TooLarge));
}

#[test]
fn shrinking_gives_memory_back() {
    let mut writer = Writer::new();
    writer.json(format!("[\"{}\", {{\"\\n\": [1]}}]", "x".repeat(100_000)).as_bytes()).unwrap();
    writer.shrink(1 << 20);
    assert!(!writer.is_complete());
    assert_eq!(writer.jsonb(), b"");
    writer.json(b"[1]").unwrap();
    writer.shrink(0);
    assert_eq!(writer.text(), b"");
    writer.json(b"[1]").unwrap();
    assert_eq!(writer.text(), b"[1]");
}

#[test]
fn damaged_jsonb_is_refused() {
    for bytes in [
        "",
        "00",
        "00000000",
        "01000040",
        "0100006000000000",
        "0100004000000060",
        "0100004005000080",
        "00000050",
        "010000500000009001000000",
        "0100004004000090",
        "01000020",
        "0200004004000080040000806161",
    ] {
        let mut writer = Writer::new();
        assert!(writer.container(&unhex(bytes)).is_err(), "{bytes}");
    }
}

#[test]
fn a_numeric_with_a_short_varlena_header_prints() {
    // a 1-byte header, which current versions do not write into JSONB
    let mut writer = Writer::new();
    writer.container(&unhex("0100004005000090 0b00800100".replace(' ', "").as_str())).unwrap();
    assert_eq!(writer.text(), b"[1]");
}

#[test]
fn a_string_ends_at_256_megabytes() {
    // zeroed memory that is never touched
    let large = vec![0u8; 0x0FFF_FFFF + 1];
    let mut writer = Writer::new();
    writer.begin_array(1).unwrap();
    let mark = writer.mark();
    assert_eq!(writer.string(&large), Err(Error::TooLarge));
    writer.rollback(&mark);
    writer.digest(&[0; 32], large.len() as u64).unwrap();
    writer.end_array().unwrap();
    assert!(writer.is_complete());
}
