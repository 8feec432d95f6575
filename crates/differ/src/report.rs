//! What a run found, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::accepted::Ledger;
use crate::compare::Difference;
use crate::corpus::Case;

/// One case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    pub name: String,
    pub about: String,
    /// Why the case itself is no good: it could not run, or shows something else.
    pub broken: Option<String>,
    /// Differences that nobody accepted.
    pub differences: Vec<Difference>,
    /// Accepted ones, each with the name it is accepted under.
    pub accepted: Vec<(String, Difference)>,
    /// What both planes did.
    pub outcome: Value,
}

impl CaseReport {
    pub fn new(case: &Case) -> Self {
        CaseReport {
            name: case.name.clone(),
            about: case.about.clone(),
            broken: None,
            differences: Vec::new(),
            accepted: Vec::new(),
            outcome: Value::Null,
        }
    }

    pub fn passes(&self) -> bool {
        self.broken.is_none() && self.differences.is_empty()
    }
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub cases: Vec<CaseReport>,
    /// Accepted differences that are no longer there.
    pub stale: Vec<String>,
    /// A proxy that ended during the run, with its last words.
    pub ended: Option<String>,
    pub seconds: f64,
}

impl Report {
    pub fn new(
        cases: Vec<CaseReport>,
        ledger: &Ledger,
        ended: Option<String>,
        took: Duration,
    ) -> Self {
        let ran: Vec<_> = cases.iter().map(|case| case.name.clone()).collect();
        let mut differing = Vec::new();
        for case in &cases {
            for (_, difference) in &case.accepted {
                differing.push((case.name.clone(), difference.field.clone()));
            }
        }
        Report {
            stale: ledger.stale(&ran, &differing),
            cases,
            ended,
            seconds: took.as_secs_f64(),
        }
    }

    pub fn passes(&self) -> bool {
        self.ended.is_none() && self.stale.is_empty() && self.cases.iter().all(CaseReport::passes)
    }

    /// The report as text, without what both planes did alike.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for case in self.cases.iter().filter(|case| !case.passes()) {
            let _ = writeln!(text, "{}", case.name);
            if let Some(broken) = &case.broken {
                let _ = writeln!(text, "  broken: {broken}");
            }
            for difference in &case.differences {
                let Difference {
                    field,
                    envoy,
                    lateen,
                } = difference;
                let _ = writeln!(text, "  {field}\n    envoy   {envoy}\n    lateen  {lateen}");
            }
        }
        for stale in &self.stale {
            let _ = writeln!(text, "accepted.yaml, {stale}: remove it there");
        }
        if let Some(ended) = &self.ended {
            let _ = writeln!(text, "{ended}");
        }
        text + &self.summary()
    }

    fn summary(&self) -> String {
        let count = |keep: &dyn Fn(&CaseReport) -> bool| {
            self.cases.iter().filter(|case| keep(case)).count()
        };
        let mut areas: BTreeMap<&str, usize> = BTreeMap::new();
        for case in &self.cases {
            let area = case.name.split('/').next().unwrap_or_default();
            *areas.entry(area).or_default() += 1;
        }
        let areas: Vec<_> = areas
            .iter()
            .map(|(area, n)| format!("{area} {n}"))
            .collect();
        format!(
            "{} cases ({}) in {:.0} s: {} alike, {} with accepted differences, {} different, {} broken\n",
            self.cases.len(),
            areas.join(", "),
            self.seconds,
            count(&|case| case.passes() && case.accepted.is_empty()),
            count(&|case| case.passes() && !case.accepted.is_empty()),
            count(&|case| !case.differences.is_empty()),
            count(&|case| case.broken.is_some()),
        )
    }
}
