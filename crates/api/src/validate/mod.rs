//! Rules that one object can be checked against by itself: ranges, names, exclusive fields.
//!
//! The rules are Istio's (its validation package and the constraints in its CRDs) and Kubernetes';
//! where Istio accepts something that can have no effect, there is a warning. Checks see typed
//! values and name paths; where a path stands in the text is found afterwards, so the same rules
//! serve YAML and JSON.

mod authorization_policy;
mod destination_rule;
mod endpoints;
mod extension_providers;
mod gateway;
mod http_route;
mod istio_operator;
mod kubernetes;
pub mod mesh_config;
mod meta;
mod names;
mod peer_authentication;
mod pod;
mod request_authentication;
mod role;
mod secret;
mod service_entry;
mod sidecar;
mod target_reference;
mod traffic_policy;
mod virtual_service;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use crate::decode::{Problem, What};
use crate::node::Position;
use crate::object::Object;
use crate::path::Path;

/// A kind's own rules.
pub trait Validate {
    fn validate(&self, check: &mut Checker);
}

/// Everything wrong with an object that decoded.
pub fn object(object: &Object) -> Vec<Problem> {
    let mut check = Checker::default();
    check.field("metadata", |check| {
        meta::validate(object, check);
        authorization_policy::annotations(object, check);
        endpoints::metadata(object, check);
    });
    match object.kind.content_at_root() {
        true => object.spec.validate(&mut check),
        false => check.field("spec", |check| object.spec.validate(check)),
    }
    check.field("status", |check| pod::status(object, check));
    check.problems
}

/// Walks an object and collects what is wrong, with the path it is at.
#[derive(Default)]
pub struct Checker {
    path: Path,
    problems: Vec<Problem>,
}

impl Checker {
    /// Runs `check` one field further down.
    pub fn field<R>(&mut self, name: &str, check: impl FnOnce(&mut Checker) -> R) -> R {
        self.path.push_key(name);
        let result = check(self);
        self.path.pop();
        result
    }

    /// Runs `check` on a field that is set.
    pub fn some<T>(&mut self, name: &str, value: &Option<T>, check: impl FnOnce(&mut Checker, &T)) {
        if let Some(value) = value {
            self.field(name, |checker| check(checker, value));
        }
    }

    /// Runs `check` on every element of a list.
    pub fn list<T>(&mut self, name: &str, items: &[T], mut check: impl FnMut(&mut Checker, &T)) {
        self.field(name, |checker| {
            for (index, item) in items.iter().enumerate() {
                checker.path.push_index(index);
                check(checker, item);
                checker.path.pop();
            }
        });
    }

    /// Runs `check` on every entry of a map.
    pub fn map<T>(
        &mut self,
        name: &str,
        map: &BTreeMap<String, T>,
        mut check: impl FnMut(&mut Checker, &str, &T),
    ) {
        self.field(name, |checker| {
            for (key, value) in map {
                checker.field(key, |checker| check(checker, key, value));
            }
        });
    }

    /// Two elements of a list may not have the same name.
    pub fn unique<'a>(
        &mut self,
        name: &str,
        key: &str,
        names: impl Iterator<Item = &'a str>,
        what: &str,
    ) {
        let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, value) in names.enumerate().filter(|(_, value)| !value.is_empty()) {
            if let Some(first) = seen.get(value) {
                let path = self.path.key(name).index(index);
                let path = if key.is_empty() { path } else { path.key(key) };
                let message = format!("duplicate {what} {value:?}, already at {name}[{first}]");
                self.push(path, true, None, message, None, What::Other);
            } else {
                seen.insert(value, index);
            }
        }
    }

    pub fn error(&mut self, message: impl Display) {
        self.push(
            self.path.clone(),
            true,
            None,
            message.to_string(),
            None,
            What::Other,
        );
    }

    /// An error with what to do about it.
    pub fn error_hint(&mut self, message: impl Display, hint: impl Display) {
        let hint = Some(hint.to_string());
        self.push(
            self.path.clone(),
            true,
            None,
            message.to_string(),
            hint,
            What::Other,
        );
    }

    /// A required field that is not there; `name` is its name below the current path.
    pub fn missing(&mut self, name: &str, message: impl Display) {
        self.push(
            self.path.key(name),
            true,
            None,
            message.to_string(),
            None,
            What::Missing,
        );
    }

    pub fn warning(&mut self, message: impl Display) {
        self.push(
            self.path.clone(),
            false,
            None,
            message.to_string(),
            None,
            What::Other,
        );
    }

    /// A warning under one of Istio's message codes.
    pub fn coded_warning(&mut self, code: &'static str, message: impl Display, hint: impl Display) {
        let hint = Some(hint.to_string());
        self.push(
            self.path.clone(),
            false,
            Some(code),
            message.to_string(),
            hint,
            What::Other,
        );
    }

    /// Findings about a text that the field holds; their places are those within the text.
    pub fn embedded(&mut self, found: Vec<Problem>) {
        self.problems
            .extend(found.into_iter().map(|problem| Problem {
                path: self.path.join(&problem.path),
                ..problem
            }));
    }

    fn push(
        &mut self,
        path: Path,
        error: bool,
        code: Option<&'static str>,
        message: String,
        suggestion: Option<String>,
        what: What,
    ) {
        self.problems.push(Problem {
            error,
            code,
            path,
            at: Position::default(),
            message,
            suggestion,
            what,
        });
    }

    /// Records the error of a syntax check, if it has one.
    pub fn syntax(&mut self, result: Result<(), String>) {
        if let Err(message) = result {
            self.error(message);
        }
    }

    /// A number from 1 to 65535.
    pub fn port(&mut self, number: u32) {
        if !(1..=65535).contains(&number) {
            self.error(format!(
                "port number {number} must be in the range 1..65535"
            ));
        }
    }

    pub fn percent(&mut self, value: f64) {
        if !(0.0..=100.0).contains(&value) {
            self.error(format!("percentage {value} is not in range 0..100"));
        }
    }

    pub fn not_negative(&mut self, name: &str, value: Option<i32>) {
        self.some(name, &value, |check, value| {
            if *value < 0 {
                check.error(format!("{value} is negative"));
            }
        });
    }

    /// Durations take effect in milliseconds.
    pub fn duration(&mut self, name: &str, value: &Option<Duration>) {
        self.some(name, value, |check, value| {
            if *value < Duration::from_millis(1) {
                check.error_hint(
                    "the duration must be at least 1ms",
                    "leave it out for the default",
                );
            } else if value.subsec_nanos() % 1_000_000 != 0 {
                check.error("only durations to ms precision are supported");
            }
        });
    }

    /// At most one of some fields may be set.
    pub fn at_most_one(&mut self, fields: &[(&str, bool)]) {
        let set: Vec<&str> = fields
            .iter()
            .filter(|(_, set)| *set)
            .map(|(name, _)| *name)
            .collect();
        if let [first, .., last] = set.as_slice() {
            let names = set.join(" and ");
            let path = self.path.key(last);
            let hint = Some(format!("keep {first} or {last}"));
            self.push(
                path,
                true,
                None,
                format!("{names} exclude each other"),
                hint,
                What::Other,
            );
        }
    }
}
