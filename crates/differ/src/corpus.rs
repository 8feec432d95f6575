//! The corpus: one YAML file per area in `corpus/`, written for people (`corpus/README.md`).
//!
//! This module reads the files and says where one is wrong; what a rule document means is the
//! control plane's to judge, and what a request means is the proxies'.

mod case;
mod steps;

use std::collections::BTreeSet;
use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

pub use case::{Case, ClientTls, Content, Protocol, RequestSpec, TlsChoice, Via, fields};
pub use steps::{Attempt, Respond, Step, attempts, steps};

use crate::{Failure, Result, failed};

/// One area: a file of the corpus.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Area {
    /// Name of the file without its ending.
    #[serde(skip)]
    pub name: String,
    pub about: String,
    /// Services with upstreams that the groups' rules name.
    #[serde(default)]
    pub services: IndexMap<String, ServiceSpec>,
    /// Objects that several groups need.
    #[serde(default)]
    pub documents: Vec<Value>,
    /// Keys made for the run, and the algorithm of each.
    #[serde(default)]
    pub keys: IndexMap<String, crate::tokens::Algorithm>,
    /// JSON web tokens by name.
    #[serde(default)]
    pub tokens: IndexMap<String, crate::tokens::TokenSpec>,
    #[serde(default)]
    pub groups: Vec<Group>,
}

/// Rules, and requests that they decide.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Group {
    pub name: String,
    #[serde(default)]
    pub about: String,
    #[serde(default)]
    pub via: Via,
    /// How clients encrypt, where a case does not say it.
    #[serde(default)]
    pub tls: Option<TlsChoice>,
    /// Hosts of the VirtualService; without any, one of the group's own.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// `http` of the VirtualService.
    #[serde(default)]
    pub http: Option<Value>,
    /// Everything else of its spec.
    #[serde(default)]
    pub spec: Option<Value>,
    #[serde(default)]
    pub services: IndexMap<String, ServiceSpec>,
    /// Objects beside the VirtualService.
    #[serde(default)]
    pub documents: Vec<Value>,
    /// The cases run one after the other, when all other groups are done.
    #[serde(default)]
    pub alone: bool,
    /// What the group applies is in force only while its own cases run, after all others; for rules
    /// that concern every request of a proxy.
    #[serde(default)]
    pub apart: bool,
    /// A name that `cargo xtask test` runs too.
    #[serde(default)]
    pub quick: bool,
    pub cases: IndexMap<String, Value>,
}

/// A service of the mesh and its upstreams.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServiceSpec {
    /// Name of the service's port, `http` or `grpc-web` or `tcp-x`: its prefix is the protocol.
    #[serde(default = "http")]
    pub protocol: String,
    #[serde(default = "port_80")]
    pub port: u16,
    #[serde(default = "one_endpoint")]
    pub endpoints: Vec<EndpointSpec>,
}

impl Default for ServiceSpec {
    fn default() -> Self {
        ServiceSpec {
            protocol: http(),
            port: 80,
            endpoints: one_endpoint(),
        }
    }
}

fn http() -> String {
    "http".to_owned()
}

fn port_80() -> u16 {
    80
}

fn one_endpoint() -> Vec<EndpointSpec> {
    vec![EndpointSpec::default()]
}

/// One upstream of a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EndpointSpec {
    pub version: String,
    pub kind: UpstreamKind,
    pub locality: String,
    pub weight: u32,
    pub labels: IndexMap<String, String>,
    /// It closes every connection after an answer, so that no request meets one that was used.
    pub fresh: bool,
    /// What it does with every request, where a case does not say it.
    pub answers: Option<Value>,
}

impl Default for EndpointSpec {
    fn default() -> Self {
        EndpointSpec {
            version: "v1".to_owned(),
            kind: UpstreamKind::Http,
            locality: String::new(),
            weight: 0,
            labels: IndexMap::new(),
            fresh: false,
            answers: None,
        }
    }
}

/// What listens behind an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamKind {
    /// HTTP/1 and HTTP/2, by the first bytes.
    #[default]
    Http,
    /// Returns what it gets.
    TcpEcho,
    /// Says who it is first, then returns what it gets.
    TcpGreet,
    /// Resets a connection as soon as something comes.
    TcpReset,
    /// Nothing listens.
    Closed,
}

/// A corpus: areas in order of their names.
#[derive(Debug)]
pub struct Corpus {
    pub areas: Vec<Area>,
}

/// Files in the directory that are not areas.
const NOT_AREAS: [&str; 1] = ["accepted.yaml"];

impl Corpus {
    /// Reads every area of a directory.
    pub fn read(directory: &Path) -> Result<Corpus> {
        let entries = std::fs::read_dir(directory).map_err(failed(directory.display()))?;
        let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| {
            path.extension().is_some_and(|ending| ending == "yaml")
                && !NOT_AREAS.iter().any(|name| path.ends_with(name))
        });
        files.sort();
        let areas = files
            .iter()
            .map(|file| read_area(file))
            .collect::<Result<Vec<_>>>()?;
        let corpus = Corpus { areas };
        corpus.check()?;
        Ok(corpus)
    }

    /// Every case with its whole name, `AREA/GROUP/CASE`.
    pub fn cases(&self) -> Result<Vec<Case>> {
        let mut cases = Vec::new();
        for area in &self.areas {
            for group in &area.groups {
                for (name, value) in &group.cases {
                    cases.push(case::read(area, group, name, value)?);
                }
            }
        }
        for (number, case) in cases.iter_mut().enumerate() {
            case.number = number + 1;
        }
        Ok(cases)
    }

    fn check(&self) -> Result<()> {
        let mut groups = BTreeSet::new();
        let mut services = BTreeSet::new();
        for area in &self.areas {
            for group in &area.groups {
                if !groups.insert((&area.name, &group.name)) {
                    return Err(Failure(format!(
                        "corpus/{}.yaml: there are two groups {}",
                        area.name, group.name
                    )));
                }
            }
            let of_groups = area.groups.iter().flat_map(|group| group.services.keys());
            for service in area.services.keys().chain(of_groups) {
                if !services.insert(service.as_str()) {
                    return Err(Failure(format!(
                        "corpus/{}.yaml: a service {service} is there already; take another name",
                        area.name
                    )));
                }
            }
        }
        Ok(())
    }
}

fn read_area(file: &Path) -> Result<Area> {
    let value = read_yaml(file)?;
    let mut area: Area = serde_json::from_value(value).map_err(failed(file.display()))?;
    area.name = file
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    Ok(area)
}

/// A YAML file as one value.
pub fn read_yaml(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).map_err(failed(file.display()))?;
    serde_saphyr::from_str(&text).map_err(failed(file.display()))
}

/// Whether `name` fits a pattern in which `*` stands for anything.
pub fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => {
            let Some(rest) = name.strip_prefix(before) else {
                return false;
            };
            let mut starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            starts.any(|at| fits(after, &rest[at..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name, expect) in [
            ("raw/*", "raw/host/two", true),
            ("*two", "raw/host/two", true),
            ("raw/*/one", "raw/host/two", false),
            ("raw", "raw/host", false),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern, name), expect, "{pattern} {name}");
        }
    }
}
