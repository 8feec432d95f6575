//! Which gateways may have the Secrets of their namespace, as Kubernetes' roles say it.
//!
//! Istio asks Kubernetes whether a gateway's service account may `list` secrets in its namespace;
//! here the roles answer that are applied (docs/decisions/0006-roles-say-who-has-secrets.md). Where no
//! role of the namespace speaks of secrets and none is bound there that does, every gateway of the
//! namespace may have them. What cannot be known (a role that is not there, an object that cannot be
//! read) counts as one that speaks of secrets and gives nothing.

use std::sync::Arc;

use lateen_api::role::{PolicyRule, RoleKind, RoleRef, Subject, SubjectKind};
use lateen_api::{Object, Spec};
use rpds::RedBlackTreeMapSync;

use crate::proxy::Proxy;
use crate::snapshot::MeshSnapshot;

/// Namespace and name; of what is of no namespace, the namespace is empty.
type Key = (String, String);

/// All roles and their bindings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Roles {
    roles: RedBlackTreeMapSync<Key, Arc<Role>>,
    bindings: RedBlackTreeMapSync<Key, Arc<RoleBinding>>,
}

/// A Role or ClusterRole.
#[derive(Debug)]
struct Role {
    rules: Vec<PolicyRule>,
    /// It stands for one that cannot be read.
    closed: bool,
}

/// A RoleBinding or ClusterRoleBinding.
#[derive(Debug)]
pub struct RoleBinding {
    /// Empty for a ClusterRoleBinding.
    pub namespace: String,
    pub name: String,
    pub role: Option<RoleRef>,
    subjects: Vec<Subject>,
    /// It stands for one that cannot be read.
    closed: bool,
}

impl RoleBinding {
    /// Where its role is.
    fn role(&self) -> Option<Key> {
        let role = self.role.as_ref()?;
        let namespace = match role.kind? {
            RoleKind::Role => self.namespace.clone(),
            RoleKind::ClusterRole => String::new(),
        };
        Some((namespace, role.name.clone()))
    }
}

impl Roles {
    /// Takes an object over, if it is a role or a binding.
    pub fn add(&mut self, object: &Object) {
        let key = key(object);
        let role = |rules: &[PolicyRule]| Role {
            rules: rules.to_vec(),
            closed: object.closed,
        };
        let binding = |of: &Option<RoleRef>, subjects: &[Subject]| RoleBinding {
            namespace: key.0.clone(),
            name: key.1.clone(),
            role: of.clone(),
            subjects: subjects.to_vec(),
            closed: object.closed,
        };
        match &object.spec {
            Spec::Role(spec) => {
                self.roles.insert_mut(key, Arc::new(role(&spec.rules)));
            }
            Spec::ClusterRole(spec) => {
                self.roles.insert_mut(key, Arc::new(role(&spec.rules)));
            }
            Spec::RoleBinding(spec) => {
                let made = binding(&spec.role_ref, &spec.subjects);
                self.bindings.insert_mut(key, Arc::new(made));
            }
            Spec::ClusterRoleBinding(spec) => {
                let made = binding(&spec.role_ref, &spec.subjects);
                self.bindings.insert_mut(key, Arc::new(made));
            }
            _ => {}
        }
    }

    pub fn remove(&mut self, object: &Object) {
        let key = key(object);
        match &object.spec {
            Spec::Role(_) | Spec::ClusterRole(_) => self.roles.remove_mut(&key),
            Spec::RoleBinding(_) | Spec::ClusterRoleBinding(_) => self.bindings.remove_mut(&key),
            _ => false,
        };
    }

    /// What is of a namespace.
    fn of<'a, T>(
        map: &'a RedBlackTreeMapSync<Key, Arc<T>>,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<T>> {
        map.range((namespace.to_string(), String::new())..)
            .take_while(move |((of, _), _)| of == namespace)
            .map(|(_, one)| one)
    }
}

impl MeshSnapshot {
    /// Every RoleBinding and ClusterRoleBinding whose role is not there.
    pub fn dangling_role_bindings(&self) -> impl Iterator<Item = &Arc<RoleBinding>> {
        let is_there = |key: Key| self.roles.roles.contains_key(&key);
        let bindings = self.roles.bindings.values();
        bindings.filter(move |one| !one.closed && !one.role().is_some_and(is_there))
    }

    /// Whether a gateway may have a Secret of its own namespace.
    pub fn may_have_secret(&self, proxy: &Proxy, secret: &str) -> bool {
        let namespace = proxy.namespace.as_str();
        let Roles { roles, bindings } = &self.roles;
        let mut open = !Roles::of(roles, namespace).any(|role| role.speaks_of_secrets());
        let bound = Roles::of(bindings, namespace).chain(Roles::of(bindings, ""));
        for binding in bound {
            let role = binding.role().and_then(|key| roles.get(&key));
            let Some(role) = role.filter(|_| !binding.closed) else {
                open = false;
                continue;
            };
            open &= !role.speaks_of_secrets();
            let has = |subject| is_of(subject, &binding.namespace, proxy);
            if role.gives(secret) && binding.subjects.iter().any(has) {
                return true;
            }
        }
        open
    }
}

impl Role {
    /// Whether it says anything of secrets: then it is for those who have it, and nobody else.
    fn speaks_of_secrets(&self) -> bool {
        self.closed || self.rules.iter().any(is_about_secrets)
    }

    /// Whether it gives a Secret. Istio asks for the verb `list`.
    fn gives(&self, secret: &str) -> bool {
        let gives = |rule: &PolicyRule| {
            let names = &rule.resource_names;
            is_about_secrets(rule)
                && has(&rule.verbs, "list")
                && (names.is_empty() || names.iter().any(|name| name == secret))
        };
        !self.closed && self.rules.iter().any(gives)
    }
}

fn is_about_secrets(rule: &PolicyRule) -> bool {
    has(&rule.api_groups, "") && has(&rule.resources, "secrets")
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == wanted || one == "*")
}

/// Whether a subject is the service account that a proxy has proved, or one of the groups that
/// Kubernetes puts every service account into.
fn is_of(subject: &Subject, namespace_of_binding: &str, proxy: &Proxy) -> bool {
    let (Some(account), Some(kind)) = (&proxy.account, subject.kind) else {
        return false;
    };
    let name = subject.name.as_str();
    match kind {
        SubjectKind::ServiceAccount => {
            let namespace = match subject.namespace.as_str() {
                "" => namespace_of_binding,
                own => own,
            };
            namespace == proxy.namespace && name == account
        }
        SubjectKind::User => {
            let own = name.strip_prefix("system:serviceaccount:");
            own.and_then(|own| own.split_once(':')) == Some((&proxy.namespace, account))
        }
        SubjectKind::Group => match name.strip_prefix("system:serviceaccounts:") {
            Some(namespace) => namespace == proxy.namespace,
            None => matches!(name, "system:serviceaccounts" | "system:authenticated"),
        },
    }
}

fn key(object: &Object) -> Key {
    let namespace = match object.meta.namespace.as_str() {
        _ if !object.kind.info().namespaced => "",
        "" => "default",
        namespace => namespace,
    };
    (namespace.to_string(), object.meta.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::ObjectChange;
    use lateen_api::{Mode, parse};
    use serde_json::json;

    fn objects(yaml: &str) -> Vec<Object> {
        let parsed = parse("test.yaml", yaml, Mode::Strict);
        assert!(!parsed.has_errors(), "{}", parsed.render(yaml, false));
        parsed.objects.into_iter().map(|one| one.object).collect()
    }

    fn gateway(namespace: &str, account: Option<&str>) -> Proxy {
        let id = format!("router~127.0.0.1~x.{namespace}~{namespace}.svc.cluster.local");
        let mut proxy = Proxy::from_node(&id, &json!({})).unwrap();
        proxy.account = account.map(str::to_string);
        proxy
    }

    fn object(kind: &str, name: &str, content: &str) -> String {
        let namespace = if kind.starts_with("Cluster") {
            ""
        } else {
            ", namespace: edge"
        };
        format!(
            "---\n{{apiVersion: rbac.authorization.k8s.io/v1, kind: {kind}, \
             metadata: {{name: {name}{namespace}}}, {content}}}\n"
        )
    }

    const SECRETS: &str =
        "rules: [{apiGroups: [''], resources: [secrets], verbs: [get, watch, list]}]";
    const PODS: &str = "rules: [{apiGroups: [''], resources: [pods], verbs: ['*']}]";

    fn binding(kind: &str, role: &str, subjects: &str) -> String {
        let content = format!("roleRef: {{kind: {kind}, name: {role}}}, subjects: [{subjects}]");
        object("RoleBinding", "one", &content)
    }

    /// Whether `a` of `edge`, `b` of `edge`, `a` of another namespace, and who has proved no
    /// account may have the Secret `web`; then the same of the Secret `other` for `a` of `edge`.
    #[track_caller]
    fn check(yaml: &str, expected: [bool; 5]) {
        let objects = objects(yaml);
        let built = MeshSnapshot::build(&objects, 1, Default::default(), None);
        let empty = MeshSnapshot::build([], 1, Default::default(), None);
        let added = objects.iter().map(|after| ObjectChange {
            before: None,
            after: Some(after),
        });
        let added: Vec<_> = added.collect();
        let (updated, changes) = empty.updated(&added, 2).unwrap();
        assert_eq!(changes.roles, !objects.is_empty());
        let ask = |snapshot: &MeshSnapshot| {
            let may = |namespace, account, secret| {
                snapshot.may_have_secret(&gateway(namespace, account), secret)
            };
            [
                may("edge", Some("a"), "web"),
                may("edge", Some("b"), "web"),
                may("inner", Some("a"), "web"),
                may("edge", None, "web"),
                may("edge", Some("a"), "other"),
            ]
        };
        assert_eq!(ask(&built), expected, "{yaml}");
        assert_eq!(ask(&updated), expected, "{yaml}");
        let gone = objects.iter().map(|before| ObjectChange {
            before: Some(before),
            after: None,
        });
        let gone: Vec<_> = gone.collect();
        let (gone, _) = updated.updated(&gone, 3).unwrap();
        assert_eq!(ask(&gone), [true; 5], "without {yaml}");
    }

    const ALL: [bool; 5] = [true; 5];
    const NOBODY: [bool; 5] = [false, false, true, false, false];
    const ONLY_A: [bool; 5] = [true, false, true, false, true];

    #[test]
    fn secrets_go_to_everybody_until_a_role_speaks_of_them() {
        check("", ALL);
        check(&object("Role", "r", PODS), ALL);
        let of_pods = object("Role", "r", PODS) + &binding("Role", "r", "");
        check(&of_pods, ALL);
        // Also one that nobody has: to take a binding away must not give anything.
        check(&object("Role", "r", SECRETS), NOBODY);
        // Kubernetes has cluster roles that are bound nowhere.
        check(&object("ClusterRole", "r", SECRETS), ALL);
        let group = "rules: [{apiGroups: [apps], resources: [secrets], verbs: [list]}]";
        check(&object("Role", "r", group), ALL);
    }

    #[test]
    fn then_they_go_to_those_who_have_it() {
        let role = object("Role", "r", SECRETS);
        for subject in [
            "{kind: ServiceAccount, name: a}",
            "{kind: ServiceAccount, name: a, namespace: edge}",
            "{kind: User, name: 'system:serviceaccount:edge:a'}",
        ] {
            check(&(role.clone() + &binding("Role", "r", subject)), ONLY_A);
        }
        for subject in [
            "{kind: ServiceAccount, name: a, namespace: inner}",
            "{kind: User, name: a}",
            "{kind: User, name: 'system:serviceaccount:inner:a'}",
            "{kind: Group, name: 'system:serviceaccounts:inner'}",
            "{kind: Group, name: a}",
            "",
        ] {
            check(&(role.clone() + &binding("Role", "r", subject)), NOBODY);
        }
        for group in ["serviceaccounts", "serviceaccounts:edge", "authenticated"] {
            let subject = format!("{{kind: Group, name: 'system:{group}'}}");
            let expected = [true, true, true, false, true];
            check(&(role.clone() + &binding("Role", "r", &subject)), expected);
        }
        let cluster = object("ClusterRole", "r", SECRETS);
        let subject = "{kind: ServiceAccount, name: a}";
        check(
            &(cluster.clone() + &binding("ClusterRole", "r", subject)),
            ONLY_A,
        );
        let everywhere = "roleRef: {kind: ClusterRole, name: r}, \
                          subjects: [{kind: ServiceAccount, name: a, namespace: edge}]";
        let everywhere = object("ClusterRoleBinding", "one", everywhere);
        check(&(cluster + &everywhere), [true, false, false, false, true]);
    }

    #[test]
    fn a_role_gives_what_it_lists() {
        let rule = |rule: &str, expected| {
            let role = object("Role", "r", &format!("rules: [{{{rule}}}]"));
            let subject = "{kind: ServiceAccount, name: a}";
            check(&(role + &binding("Role", "r", subject)), expected);
        };
        rule("apiGroups: ['*'], resources: ['*'], verbs: ['*']", ONLY_A);
        rule(
            "apiGroups: [''], resources: [pods, secrets], verbs: [list]",
            ONLY_A,
        );
        // Istio asks for `list`.
        rule(
            "apiGroups: [''], resources: [secrets], verbs: [get, watch]",
            NOBODY,
        );
        let named = "apiGroups: [''], resources: [secrets], verbs: [list], resourceNames: [web]";
        rule(named, [true, false, true, false, false]);
    }

    #[test]
    fn what_is_not_known_gives_nothing() {
        let subject = "{kind: ServiceAccount, name: a}";
        check(&binding("Role", "gone", subject), NOBODY);
        check(&binding("ClusterRole", "gone", subject), NOBODY);
        // A role of the same name elsewhere is another.
        let cluster = object("ClusterRole", "r", SECRETS);
        check(&(cluster + &binding("Role", "r", subject)), NOBODY);
        let unreadable = |kind: &str, namespace: &str| {
            let document = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
                "metadata": {"name": "x", "namespace": namespace}, "later": 1,
            });
            let objects = [Object::closed_for(&document).unwrap()];
            let snapshot = MeshSnapshot::build(&objects, 1, Default::default(), None);
            let of = |namespace| gateway(namespace, Some("a"));
            let may = |namespace| snapshot.may_have_secret(&of(namespace), "web");
            [may("edge"), may("inner")]
        };
        assert_eq!(unreadable("Role", "edge"), [false, true]);
        assert_eq!(unreadable("RoleBinding", "edge"), [false, true]);
        assert_eq!(unreadable("ClusterRoleBinding", ""), [false, false]);
        assert_eq!(unreadable("ClusterRole", ""), [true, true]);
    }
}
