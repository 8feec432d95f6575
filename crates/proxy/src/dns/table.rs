//! The names that the mesh knows.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use lateen_proto::nds::{KUBERNETES, NameInfo, NameTable};

/// Names with all their variants; a service has four.
const MOST_NAMES: usize = 400_000;
/// Addresses of one name; more fit no answer that a client would take.
const MOST_ADDRESSES: usize = 1_000;

/// Who asks, as far as it decides what short names mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Namespace of the workload.
    pub namespace: String,
    /// Domain of services, without the namespace: `svc.cluster.local`.
    pub domain: String,
    /// The first search domain of `/etc/resolv.conf`.
    pub search: Option<String>,
}

/// What a name stands for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub four: Vec<Ipv4Addr>,
    pub six: Vec<Ipv6Addr>,
}

/// Why a table was not taken.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("not a name table: {0}")]
    Decode(#[from] prost::DecodeError),
    #[error("more than {MOST_NAMES} names")]
    TooMany,
}

/// Names in lower case with a dot at the end.
#[derive(Debug, Default)]
pub struct Table {
    names: HashMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    addresses: Arc<Addresses>,
    /// For a name with the search domain appended: the name that it is an alias of.
    alias_of: Option<Arc<str>>,
}

/// A known name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    pub addresses: &'a Addresses,
    pub alias_of: Option<&'a str>,
}

impl Table {
    pub fn decode(bytes: &[u8], place: &Place) -> Result<Self, TableError> {
        use prost::Message;
        Self::new(&NameTable::decode(bytes)?, place)
    }

    fn new(table: &NameTable, place: &Place) -> Result<Self, TableError> {
        let mut names = HashMap::new();
        let mut aliases = Vec::new();
        for (host, info) in &table.table {
            let addresses = addresses(info);
            if addresses == Addresses::default() {
                continue;
            }
            let addresses = Arc::new(addresses);
            for name in variants(host, info, place) {
                if names.len() + aliases.len() >= MOST_NAMES {
                    return Err(TableError::TooMany);
                }
                // The first question of most clients has the search domain at the end, whatever
                // was asked for. An alias saves the server beyond and the client a second question.
                if let Some(search) = &place.search
                    && !name.starts_with('*')
                {
                    let expanded = format!("{name}{}.", search.trim_matches('.'));
                    let alias_of = Some(Arc::from(name.as_str()));
                    let entry = Entry {
                        addresses: addresses.clone(),
                        alias_of,
                    };
                    aliases.push((expanded.to_ascii_lowercase(), entry));
                }
                let entry = Entry {
                    addresses: addresses.clone(),
                    alias_of: None,
                };
                names.insert(name, entry);
            }
        }
        for (name, entry) in aliases {
            names.entry(name).or_insert(entry);
        }
        Ok(Self { names })
    }

    /// Names with all their variants.
    pub fn size(&self) -> usize {
        self.names.len()
    }

    /// The entry of a name in lower case with a dot at the end, or of the closest wildcard.
    pub fn find(&self, name: &str) -> Option<Found<'_>> {
        let entry = self.names.get(name).or_else(|| {
            let mut rest = name;
            while let Some((_, parent)) = rest.split_once('.').filter(|(_, p)| !p.is_empty()) {
                if let Some(entry) = self.names.get(&format!("*.{parent}")) {
                    return Some(entry);
                }
                rest = parent;
            }
            None
        })?;
        Some(Found {
            addresses: &entry.addresses,
            alias_of: entry.alias_of.as_deref(),
        })
    }
}

fn addresses(info: &NameInfo) -> Addresses {
    let mut found = Addresses::default();
    for ip in info.ips.iter().take(MOST_ADDRESSES) {
        match ip.parse() {
            Ok(IpAddr::V4(four)) => found.four.push(four),
            Ok(IpAddr::V6(six)) => found.six.push(six),
            Err(_) => {}
        }
    }
    found
}

/// The host itself; for a Kubernetes service of our domain also `name.namespace`,
/// `name.namespace.svc`, and in its own namespace `name`.
fn variants(host: &str, info: &NameInfo, place: &Place) -> Vec<String> {
    let lower = |name: String| name.to_ascii_lowercase();
    let mut names = vec![lower(format!("{}.", host.trim_end_matches('.')))];
    let ours = !place.domain.is_empty() && host.ends_with(&place.domain);
    if info.registry != KUBERNETES || !ours || info.shortname.is_empty() {
        return names;
    }
    let NameInfo {
        shortname,
        namespace,
        ..
    } = info;
    names.push(lower(format!("{shortname}.{namespace}.")));
    let first = place.domain.split('.').next().unwrap_or_default();
    names.push(lower(format!("{shortname}.{namespace}.{first}.")));
    if *namespace == place.namespace {
        names.push(lower(format!("{shortname}.")));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::dns) fn table(hosts: &[(&str, &[&str], &str)]) -> NameTable {
        let table = hosts.iter().map(|(host, ips, service)| {
            let (shortname, namespace) = service.split_once('.').unwrap_or_default();
            let registry = if service.is_empty() {
                "External"
            } else {
                KUBERNETES
            };
            let info = NameInfo {
                ips: ips.iter().map(|ip| (*ip).to_owned()).collect(),
                registry: registry.to_owned(),
                shortname: shortname.to_owned(),
                namespace: namespace.to_owned(),
            };
            ((*host).to_owned(), info)
        });
        NameTable {
            table: table.collect(),
        }
    }

    fn place() -> Place {
        Place {
            namespace: "default".into(),
            domain: "svc.cluster.local".into(),
            search: Some("default.svc.cluster.local".into()),
        }
    }

    #[test]
    fn services_have_short_names_and_every_name_one_with_the_search_domain() {
        let hosts = table(&[
            (
                "reviews.default.svc.cluster.local",
                &["10.0.0.1"],
                "reviews.default",
            ),
            (
                "db.other.svc.cluster.local",
                &["10.0.0.2", "fd00::2"],
                "db.other",
            ),
            ("far.other.svc.far.local", &["10.0.0.3"], "far.other"),
            ("Api.Example.com", &["240.240.0.1", "nonsense"], ""),
            ("*.wild.test", &["10.0.0.4"], ""),
            ("empty.test", &[], ""),
        ]);
        let table = Table::new(&hosts, &place()).unwrap();
        let check = |name: &str, expect: &str| {
            let found = table.find(name).map(|found| {
                let four: Vec<_> = found
                    .addresses
                    .four
                    .iter()
                    .map(|ip| ip.to_string())
                    .collect();
                let six: Vec<_> = found
                    .addresses
                    .six
                    .iter()
                    .map(|ip| ip.to_string())
                    .collect();
                let alias = found
                    .alias_of
                    .map(|of| format!("-> {of} "))
                    .unwrap_or_default();
                format!("{alias}{}", [four, six].concat().join(" "))
            });
            assert_eq!(found.unwrap_or_default(), expect, "{name}");
        };
        check("reviews.default.svc.cluster.local.", "10.0.0.1");
        check("reviews.default.svc.", "10.0.0.1");
        check("reviews.default.", "10.0.0.1");
        check("reviews.", "10.0.0.1");
        check("reviews", "");
        check("db.other.", "10.0.0.2 fd00::2");
        check("db.", "");
        check(
            "db.other.default.svc.cluster.local.",
            "-> db.other. 10.0.0.2 fd00::2",
        );
        check("far.other.svc.far.local.", "10.0.0.3");
        check("far.other.", "");
        check("api.example.com.", "240.240.0.1");
        check(
            "api.example.com.default.svc.cluster.local.",
            "-> api.example.com. 240.240.0.1",
        );
        check("a.wild.test.", "10.0.0.4");
        check("a.b.wild.test.", "10.0.0.4");
        check("wild.test.", "");
        check("empty.test.", "");
        check(".", "");
        check("", "");
    }

    #[test]
    fn a_table_beyond_the_bound_is_refused() {
        let hosts: Vec<String> = (0..MOST_NAMES / 2 + 1)
            .map(|i| format!("h{i}.test"))
            .collect();
        let mut table = NameTable::default();
        for host in hosts {
            let info = NameInfo {
                ips: vec!["10.0.0.1".into()],
                ..Default::default()
            };
            table.table.insert(host, info);
        }
        assert!(matches!(
            Table::new(&table, &place()),
            Err(TableError::TooMany)
        ));
        assert!(Table::new(&table, &Place::default()).is_ok());
        assert!(matches!(
            Table::decode(&[0xff, 0xff], &place()),
            Err(TableError::Decode(_))
        ));
    }
}
