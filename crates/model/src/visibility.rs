//! `exportTo`: in which namespaces an object counts.

/// Who sees an object (fact 55: empty means the mesh default, which is everyone).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub enum Visibility {
    #[default]
    Everywhere,
    /// Nobody (`~`; services only).
    Nowhere,
    /// These namespaces (`.` already resolved).
    Namespaces(Vec<String>),
}

impl Visibility {
    /// From `exportTo` as written in an object of `namespace`, else from the mesh's default.
    pub fn with_default(export_to: &[String], default: &[String], namespace: &str) -> Visibility {
        let given = if export_to.is_empty() {
            default
        } else {
            export_to
        };
        Visibility::from_export_to(given, namespace)
    }

    /// From `exportTo` as written in an object of `namespace`.
    pub fn from_export_to(export_to: &[String], namespace: &str) -> Visibility {
        if export_to.is_empty() || export_to.iter().any(|e| e == "*") {
            return Visibility::Everywhere;
        }
        if export_to.iter().any(|e| e == "~") {
            return Visibility::Nowhere;
        }
        let mut namespaces: Vec<String> = export_to
            .iter()
            .map(|e| {
                if e == "." {
                    namespace.to_string()
                } else {
                    e.clone()
                }
            })
            .collect();
        namespaces.sort();
        namespaces.dedup();
        Visibility::Namespaces(namespaces)
    }

    /// Whether a proxy or rule in `namespace` sees the object.
    pub fn reaches(&self, namespace: &str) -> bool {
        match self {
            Visibility::Everywhere => true,
            Visibility::Nowhere => false,
            Visibility::Namespaces(list) => list.iter().any(|n| n == namespace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_to_is_read_as_istio_does() {
        let check = |export: &[&str], from: &str, expect: bool| {
            let list: Vec<String> = export.iter().map(|s| s.to_string()).collect();
            assert_eq!(
                Visibility::from_export_to(&list, "own").reaches(from),
                expect,
                "{export:?} {from}"
            );
        };
        check(&[], "other", true);
        check(&["*"], "other", true);
        check(&["."], "own", true);
        check(&["."], "other", false);
        check(&[".", "other"], "other", true);
        check(&["~"], "own", false);
    }
}
