//! Rules of Kubernetes' roles and their bindings (`pkg/apis/rbac/validation`).

use super::{Checker, Validate, names};
use crate::role::*;

impl Validate for Role {
    fn validate(&self, check: &mut Checker) {
        check.list("rules", &self.rules, |check, rule| {
            if !rule.non_resource_urls.is_empty() {
                check.field("nonResourceURLs", |check| {
                    check.error_hint(
                        "a Role is of a namespace and cannot apply to URLs that are no resources",
                        "write them into a ClusterRole",
                    );
                });
            }
            policy_rule(check, rule);
        });
    }
}

impl Validate for ClusterRole {
    fn validate(&self, check: &mut Checker) {
        if !self.aggregation_rule.is_null() {
            check.field("aggregationRule", |check| {
                check.error_hint(
                    "nobody here fills in the rules of a role that is put together from others",
                    "write them into rules",
                );
            });
        }
        check.list("rules", &self.rules, policy_rule);
    }
}

impl Validate for RoleBinding {
    fn validate(&self, check: &mut Checker) {
        role_ref(check, &self.role_ref, true);
        check.list("subjects", &self.subjects, |check, one| {
            subject(check, one, true);
        });
    }
}

impl Validate for ClusterRoleBinding {
    fn validate(&self, check: &mut Checker) {
        role_ref(check, &self.role_ref, false);
        check.list("subjects", &self.subjects, |check, one| {
            subject(check, one, false);
        });
    }
}

fn policy_rule(check: &mut Checker, rule: &PolicyRule) {
    if rule.verbs.is_empty() {
        check.missing("verbs", "a rule needs at least one verb");
    }
    let of_resources = [&rule.api_groups, &rule.resources, &rule.resource_names];
    if !rule.non_resource_urls.is_empty() {
        if of_resources.iter().any(|list| !list.is_empty()) {
            check.field("nonResourceURLs", |check| {
                check.error_hint(
                    "a rule is about resources or about other URLs, not both",
                    "make two rules of it",
                );
            });
        }
        return;
    }
    if rule.api_groups.is_empty() {
        let message =
            "a rule about resources needs at least one API group (\"\" is the core group)";
        check.missing("apiGroups", message);
    }
    if rule.resources.is_empty() {
        check.missing("resources", "a rule needs at least one resource");
    }
}

fn role_ref(check: &mut Checker, of: &Option<RoleRef>, namespaced: bool) {
    let Some(of) = of else {
        return check.missing("roleRef", "a binding needs roleRef, the role that it gives");
    };
    check.field("roleRef", |check| {
        api_group(check, &of.api_group, GROUP);
        match of.kind {
            None => check.missing("kind", "roleRef needs the kind of the role"),
            Some(RoleKind::Role) if !namespaced => check.field("kind", |check| {
                check.error_hint(
                    "a ClusterRoleBinding gives a ClusterRole",
                    "give a Role with a RoleBinding of its namespace",
                );
            }),
            Some(_) => {}
        }
        match of.name.as_str() {
            "" => check.missing("name", "roleRef needs the name of the role"),
            name => check.field("name", |check| check.syntax(role_name(name))),
        }
    });
}

fn subject(check: &mut Checker, one: &Subject, namespaced: bool) {
    if one.name.is_empty() {
        check.missing("name", "a subject needs a name");
    }
    let Some(kind) = one.kind else {
        return check.missing("kind", "a subject needs a kind");
    };
    if kind != SubjectKind::ServiceAccount {
        api_group(check, &one.api_group, GROUP);
        if !one.namespace.is_empty() {
            check.field("namespace", |check| {
                check.error("only a ServiceAccount is of a namespace");
            });
        }
        return;
    }
    api_group(check, &one.api_group, "");
    if !one.name.is_empty() {
        check.field("name", |check| check.syntax(names::subdomain(&one.name)));
    }
    match one.namespace.as_str() {
        "" if namespaced => {}
        "" => check.missing(
            "namespace",
            "a ClusterRoleBinding is of no namespace, so a ServiceAccount needs its own",
        ),
        namespace => check.field("namespace", |check| check.syntax(names::label(namespace))),
    }
}

/// Absent is the only one that may be said.
fn api_group(check: &mut Checker, said: &str, only: &str) {
    if !said.is_empty() && said != only {
        check.field("apiGroup", |check| match only {
            "" => check.error_hint(
                format!("ServiceAccounts are not of the group {said:?}"),
                "leave it out",
            ),
            only => check.error_hint(format!("not the group {said:?}"), format!("write {only}")),
        });
    }
}

/// Names of roles and bindings: whatever a part of a URL may be.
pub(super) fn role_name(name: &str) -> names::Check {
    let fits = !matches!(name, "." | "..") && !name.contains(['/', '%', '\0']);
    fits.then_some(()).ok_or_else(|| {
        format!("{name:?} may not be \".\" or \"..\" and may not contain '/' or '%'")
    })
}
