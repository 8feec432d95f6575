//! Differences that are kept: `corpus/accepted.yaml`.
//!
//! Each stands there with its reason, the cases that show it and the fields that differ. One that
//! is not listed fails a run, and so does one that is listed and no longer there.

use std::path::Path;

use serde::Deserialize;

use crate::compare::Difference;
use crate::corpus::{fits, read_yaml};
use crate::{Result, failed};

/// One kept difference.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// Its heading in docs/differences.md.
    pub name: String,
    /// Why it is kept, in a sentence or two.
    pub reason: String,
    /// Names of cases, with `*` for anything. Every pattern has to meet a case that differs.
    pub cases: Vec<String>,
    /// Paths of fields, with `*` for anything. Every field has to differ in one of the cases.
    pub fields: Vec<String>,
    /// It depends on timing and is not there in every run.
    #[serde(default)]
    pub sometimes: bool,
}

/// All of them, and which were met.
#[derive(Debug, Default)]
pub struct Ledger {
    pub all: Vec<Accepted>,
}

impl Ledger {
    pub fn read(corpus: &Path) -> Result<Ledger> {
        let file = corpus.join("accepted.yaml");
        let value = read_yaml(&file)?;
        let all = serde_json::from_value(value).map_err(failed(file.display()))?;
        Ok(Ledger { all })
    }

    /// The entry that accepts a difference of a case.
    pub fn find(&self, case: &str, difference: &Difference) -> Option<&Accepted> {
        self.all.iter().find(|accepted| {
            accepted.cases.iter().any(|pattern| fits(pattern, case))
                && accepted
                    .fields
                    .iter()
                    .any(|pattern| fits(pattern, &difference.field))
        })
    }

    /// What is listed and was not met among `differing`, given the cases that ran.
    pub fn stale(&self, ran: &[String], differing: &[(String, String)]) -> Vec<String> {
        let mut stale = Vec::new();
        for accepted in self.all.iter().filter(|accepted| !accepted.sometimes) {
            let met = |case: &str, field: &str| {
                differing
                    .iter()
                    .any(|(c, f)| fits(case, c) && fits(field, f))
            };
            let all_ran = accepted
                .cases
                .iter()
                .all(|pattern| ran.iter().any(|case| fits(pattern, case)));
            for case in &accepted.cases {
                let ran = ran.iter().any(|name| fits(case, name));
                if ran && !accepted.fields.iter().any(|field| met(case, field)) {
                    stale.push(format!("{}: {case} no longer differs", accepted.name));
                }
            }
            for field in accepted.fields.iter().filter(|_| all_ran) {
                if !accepted.cases.iter().any(|case| met(case, field)) {
                    stale.push(format!("{}: {field} no longer differs", accepted.name));
                }
            }
        }
        stale
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn ledger() -> Ledger {
        Ledger {
            all: vec![Accepted {
                name: "kept".to_owned(),
                reason: String::new(),
                cases: vec!["a/*".to_owned(), "b".to_owned()],
                fields: vec!["log.*.details".to_owned()],
                sometimes: false,
            }],
        }
    }

    #[test]
    fn a_difference_is_accepted_by_case_and_field() {
        let of = |field: &str| Difference {
            field: field.to_owned(),
            envoy: Value::Null,
            lateen: Value::Null,
        };
        assert!(ledger().find("a/x", &of("log.0.details")).is_some());
        assert!(ledger().find("c", &of("log.0.details")).is_none());
        assert!(ledger().find("b", &of("log.0.flags")).is_none());
    }

    #[test]
    fn what_is_listed_and_does_not_differ_is_stale() {
        let ran = ["a/x", "b"].map(str::to_owned);
        let differing = [("a/x".to_owned(), "log.0.details".to_owned())];
        assert_eq!(
            ledger().stale(&ran, &differing),
            ["kept: b no longer differs"]
        );
        // A case that did not run says nothing.
        assert!(ledger().stale(&ran[..1], &differing).is_empty());
    }
}
