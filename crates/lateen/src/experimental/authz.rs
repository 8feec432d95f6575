//! `x authz check`: the AuthorizationPolicies that a proxy enforces, read from its configuration
//! and so true even where the control plane is not asked.

use std::collections::{BTreeMap, BTreeSet};

use clap::Subcommand;
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::output::{self, Format};
use crate::proxy_config::From;
use crate::proxy_config::dump::Dump;
use crate::table::Table;

/// What a policy that only an authorizer outside decides about begins with.
const CUSTOM: &str = "istio-ext-authz-";
/// Istio's name for a filter that allows and has no rule: it denies everything.
const NOTHING: &str = "_anonymous_match_nothing_";

#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    pub part: Part,
}

#[derive(Debug, Subcommand)]
pub enum Part {
    /// Show the policies that a workload's proxy has
    Check(CheckArgs),
}

#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    #[command(flatten)]
    pub from: From,

    /// How to print
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub output: Format,
}

pub fn run(args: Args) -> Outcome {
    let Part::Check(args) = args.part;
    let policies = policies(&args.from.config_dump()?);
    if !output::document(args.output, &document(&policies)) {
        table(&policies).print();
    }
    Ok(())
}

/// What is done, and `name.namespace`; with the rules.
type Policies = BTreeMap<(Action, String), BTreeSet<String>>;

/// In the order in which they decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Custom,
    Deny,
    DenyDryRun,
    Allow,
    AllowDryRun,
    Log,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Action::Custom => "CUSTOM",
            Action::Deny => "DENY",
            Action::DenyDryRun => "DENY (dry run)",
            Action::Allow => "ALLOW",
            Action::AllowDryRun => "ALLOW (dry run)",
            Action::Log => "LOG",
        }
    }

    /// Of a set of rules; the default of the field is ALLOW.
    fn of(rules: &Value, shadow: bool) -> Action {
        match (rules["action"].as_str().unwrap_or("ALLOW"), shadow) {
            ("DENY", false) => Action::Deny,
            ("DENY", true) => Action::DenyDryRun,
            ("LOG", _) => Action::Log,
            (_, false) => Action::Allow,
            (_, true) => Action::AllowDryRun,
        }
    }
}

fn policies(dump: &Dump) -> Policies {
    let mut found = Policies::new();
    for listener in dump.listeners() {
        visit(listener, &mut found);
    }
    found
}

/// Every RBAC filter below a value, of whatever chain and protocol.
fn visit(value: &Value, found: &mut Policies) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| visit(item, found)),
        Value::Object(fields) => {
            let url = fields.get("@type").and_then(Value::as_str);
            if url.is_some_and(|url| url.ends_with("rbac.v3.RBAC")) {
                add(&value["rules"], false, found);
                add(&value["shadow_rules"], true, found);
            }
            fields.values().for_each(|field| visit(field, found));
        }
        _ => {}
    }
}

fn add(rules: &Value, shadow: bool, found: &mut Policies) {
    if rules.is_null() {
        return;
    }
    let action = Action::of(rules, shadow);
    let names: Vec<&String> = rules["policies"]
        .as_object()
        .into_iter()
        .flat_map(|policies| policies.keys())
        .collect();
    if names.is_empty() && action == Action::Allow {
        found.entry((action, NOTHING.to_owned())).or_default();
    }
    for name in names {
        let action = match name.starts_with(CUSTOM) {
            true => Action::Custom,
            false => action,
        };
        let (policy, rule) = split(name);
        found.entry((action, policy)).or_default().insert(rule);
    }
}

/// `ns[NAMESPACE]-policy[NAME]-rule[INDEX]` to `NAME.NAMESPACE` and the index.
fn split(name: &str) -> (String, String) {
    let parts = || {
        let (_, rest) = name.split_once("ns[")?;
        let (namespace, rest) = rest.split_once("]-policy[")?;
        let (policy, rest) = rest.split_once("]-rule[")?;
        let (rule, _) = rest.split_once(']')?;
        Some((format!("{policy}.{namespace}"), rule.to_owned()))
    };
    parts().unwrap_or_else(|| (name.to_owned(), "0".to_owned()))
}

fn table(policies: &Policies) -> Table {
    let mut table = Table::new(5, ["ACTION", "AuthorizationPolicy", "RULES"]);
    for ((action, name), rules) in policies {
        let count = rules.len().max(1).to_string();
        table.row([action.as_str().to_owned(), name.clone(), count]);
    }
    table
}

fn document(policies: &Policies) -> Value {
    let one = |((action, name), rules): (&(Action, String), &BTreeSet<String>)| json!({"action": action.as_str(), "policy": name, "rules": rules.len().max(1)});
    policies.iter().map(one).collect()
}
