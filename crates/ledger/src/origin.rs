//! The name of a log, the first line of each of its checkpoints.

/// `audit_ext/DATABASE/SYSTEM/ID`: the database's name when the ledger began, the cluster's system identifier, and the
/// ledger's UUID. Characters of the name other than letters, digits, `.`, `_` and `-` are percent-encoded, since an
/// origin should hold no spaces and no plus.
pub fn origin(database: &str, system_identifier: u64, id: &str) -> String {
    let mut name = String::new();
    for byte in database.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => name.push(char::from(byte)),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    format!("audit_ext/{name}/{system_identifier}/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_nothing_that_a_note_forbids() {
        assert_eq!(origin("bank", 7, "0-1"), "audit_ext/bank/7/0-1");
        assert_eq!(origin("a b+c/\né", 7, "x"), "audit_ext/a%20b%2Bc%2F%0A%C3%A9/7/x");
    }
}
