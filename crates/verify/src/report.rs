//! What comes out: for people, or as JSON.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;

/// What does not fit.
#[derive(Serialize)]
pub struct Finding {
    finding: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    changeset_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<i64>,
    detail: String,
    /// Something to know that is no tampering.
    #[serde(skip)]
    is_note: bool,
}

/// What was checked, and what does not fit.
#[derive(Serialize)]
pub struct Report {
    command: &'static str,
    checked: BTreeMap<String, serde_json::Value>,
    #[serde(skip)]
    order: Vec<String>,
    findings: Vec<Finding>,
    notes: Vec<Finding>,
}

impl Report {
    pub fn new(command: &'static str) -> Self {
        Report { command, checked: BTreeMap::new(), order: Vec::new(), findings: Vec::new(), notes: Vec::new() }
    }

    pub fn fact(&mut self, name: impl Into<String>, value: impl ToString) {
        let (name, text) = (name.into(), value.to_string());
        let value = serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text));
        if self.checked.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    /// Adds what another part of the same check found.
    pub fn absorb(&mut self, part: Report) {
        self.order.extend(part.order);
        self.checked.extend(part.checked);
        self.findings.extend(part.findings);
        self.notes.extend(part.notes);
    }

    pub fn finding(&mut self, finding: &str, changeset_id: Option<&str>, seq: Option<i64>, detail: impl Into<String>) {
        self.findings.push(Finding {
            finding: finding.to_owned(),
            changeset_id: changeset_id.map(str::to_owned),
            seq,
            detail: detail.into(),
            is_note: false,
        });
    }

    /// Something to know that is no tampering.
    pub fn note(&mut self, finding: &str, changeset_id: Option<&str>, seq: Option<i64>, detail: impl Into<String>) {
        self.notes.push(Finding {
            finding: finding.to_owned(),
            changeset_id: changeset_id.map(str::to_owned),
            seq,
            detail: detail.into(),
            is_note: true,
        });
    }

    pub fn print(&self, as_json: bool) -> ExitCode {
        let intact = self.findings.is_empty();
        if as_json {
            let result = if intact { "intact" } else { "tampered" };
            let mut value = serde_json::to_value(self).unwrap_or_default();
            value["result"] = result.into();
            println!("{value}");
        } else {
            for name in &self.order {
                match &self.checked[name] {
                    serde_json::Value::String(text) => println!("{name}: {text}"),
                    other => println!("{name}: {other}"),
                }
            }
            for finding in self.notes.iter().chain(&self.findings) {
                finding.print();
            }
            println!("{}", if intact { "intact" } else { "TAMPERED WITH" });
        }
        ExitCode::from(u8::from(!intact))
    }
}

impl Finding {
    fn print(&self) {
        let mark = if self.is_note { "  " } else { "! " };
        let place = match (&self.changeset_id, self.seq) {
            (Some(id), Some(seq)) => format!(" {id}/{seq}"),
            (Some(id), None) => format!(" {id}"),
            _ => String::new(),
        };
        println!("{mark}{}{place}: {}", self.finding, self.detail);
    }
}

pub fn could_not(error: &anyhow::Error, as_json: bool) -> ExitCode {
    if as_json {
        println!("{}", serde_json::json!({ "result": "could not check", "error": format!("{error:#}") }));
    } else {
        eprintln!("audit-verify: could not check: {error:#}");
    }
    ExitCode::from(2)
}
