//! What one decision costs with a thousand authorization policies: the proxy's own code, on the
//! filter as the control plane sends it, without a socket.
//!
//! Each table of policies differs in one thing, so that an index on it is what makes the decision
//! cheap, and is asked twice: by callers that one of the policies lets in, each in turn so that no
//! branch and no cache line is always the same, and by callers that none of them lets in.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac as Rules, permission, principal, rbac,
};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, header_matcher};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    PathMatcher, RegexMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern,
};
use envoy_types::pb::google::protobuf::UInt32Value;
use lateen_proxy_config::compile::compile_listener;
use lateen_proxy_config::rbac::{Identity, RbacFilter, Subject};
use lateen_proxy_config::{HttpFilter, Network, RequestView};
use prost::Message;

use crate::error::{Error, Result};
use crate::resources;

const POLICIES: u32 = 1_000;
const DECISIONS: u32 = 200_000;
const ROUNDS: usize = 5;

/// What the policies differ in.
#[derive(Clone, Copy)]
struct By {
    name: &'static str,
    permission: fn(u32) -> permission::Rule,
    principal: fn(u32) -> principal::Identifier,
}

const KINDS: [By; 9] = [
    By {
        name: "account",
        permission: any_path,
        principal: |i| authenticated(MatchPattern::Exact(account(i))),
    },
    By {
        name: "namespace",
        permission: any_path,
        principal: |i| authenticated(MatchPattern::SafeRegex(regex(format!(".*/ns/ns-{i}/.*")))),
    },
    By {
        name: "path",
        permission: |i| path(MatchPattern::Exact(format!("/api/v1/things/{i}/of"))),
        principal: anyone,
    },
    By {
        name: "prefix of the path",
        permission: |i| path(MatchPattern::Prefix(format!("/api/v1/things/{i}/"))),
        principal: anyone,
    },
    By {
        name: "ending of the path",
        permission: |i| path(MatchPattern::Suffix(format!("/{i}/of"))),
        principal: anyone,
    },
    By {
        name: "address",
        permission: any_path,
        principal: |i| principal::Identifier::DirectRemoteIp(block(i, 32)),
    },
    By {
        name: "block of addresses, of nine sizes",
        permission: any_path,
        principal: |i| principal::Identifier::RemoteIp(block(i, 24 + i % 9)),
    },
    By {
        name: "host",
        permission: |i| header(":authority", MatchPattern::Exact(host(i))),
        principal: anyone,
    },
    By {
        name: "port",
        permission: |i| permission::Rule::DestinationPort(u32::from(port(i))),
        principal: anyone,
    },
];

/// A request and its connection.
struct Caller {
    path: String,
    host: String,
    uris: Vec<String>,
    address: IpAddr,
    port: u16,
}

/// Measures them all.
pub fn run() -> Result<String> {
    let mut text = format!(
        "## Authorization with {POLICIES} policies\n\nOne decision of the HTTP filter, in its own \
         code alone. Lowest and highest of {ROUNDS} rounds of {DECISIONS} decisions.\n\n\
         | policies differ by | us, allowed | us, denied |\n|---|---|---|\n"
    );
    for by in KINDS {
        let filter = compiled(by)?;
        let (inside, outside) = (0..POLICIES, POLICIES..2 * POLICIES);
        let allowed = measure(&filter, inside.map(Caller::new).collect(), true)?;
        let denied = measure(&filter, outside.map(Caller::new).collect(), false)?;
        let _ = writeln!(text, "| {} | {allowed} | {denied} |", by.name);
    }
    Ok(text)
}

fn measure(filter: &RbacFilter, callers: Vec<Caller>, allows: bool) -> Result<String> {
    let rules = filter.rules.as_ref();
    let rules = rules.ok_or_else(|| Error::Unsuitable("the filter has no rules".into()))?;
    if let Some(wrong) = callers
        .iter()
        .find(|c| rules.decide(&c.subject()).allowed != allows)
    {
        let told = format!("{} should be allowed: {allows}", wrong.path);
        return Err(Error::Unsuitable(told));
    }
    let mut figures: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            for caller in callers.iter().cycle().take(DECISIONS as usize) {
                black_box(rules.decide(&black_box(caller).subject()).allowed);
            }
            begun.elapsed().as_secs_f64() * 1e6 / f64::from(DECISIONS)
        })
        .collect();
    figures.sort_by(f64::total_cmp);
    let (least, most) = (figures.first(), figures.last());
    Ok(match least.zip(most) {
        Some((least, most)) => format!("{least:.2} - {most:.2}"),
        None => String::new(),
    })
}

/// The filter as the proxy compiles it out of a listener.
fn compiled(by: By) -> Result<RbacFilter> {
    let listener = resources::authorized(&message(by));
    let made = compile_listener(&listener.encode_to_vec());
    let made = made.map_err(|error| Error::Unsuitable(error.to_string()))?;
    let filters = made.value.filter_chains.iter().flat_map(|chain| {
        let Network::Http(manager) = &chain.network else {
            return Vec::new();
        };
        manager.filters.clone()
    });
    filters
        .into_iter()
        .find_map(|filter| match filter {
            HttpFilter::Rbac(rbac) => Some((*rbac).clone()),
            _ => None,
        })
        .ok_or_else(|| Error::Unsuitable("the listener has no authorization".into()))
}

/// As Istio writes them: some permission and some method, and some caller.
fn message(by: By) -> Rbac {
    let set = |rules| permission::Rule::AndRules(permission::Set { rules });
    let policy = |i: u32| Policy {
        permissions: vec![may(set(vec![
            may(set(vec![may((by.permission)(i))])),
            may(header(":method", MatchPattern::Exact("GET".into()))),
        ]))],
        principals: vec![who(principal::Identifier::AndIds(principal::Set {
            ids: vec![who((by.principal)(i))],
        }))],
        ..Policy::default()
    };
    let name = |i: u32| format!("ns[bench]-policy[p{i:04}]-rule[0]");
    let policies: HashMap<_, _> = (0..POLICIES).map(|i| (name(i), policy(i))).collect();
    Rbac {
        rules: Some(Rules {
            action: rbac::Action::Allow.into(),
            policies,
            ..Rules::default()
        }),
        ..Rbac::default()
    }
}

fn may(rule: permission::Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn who(identifier: principal::Identifier) -> Principal {
    Principal {
        identifier: Some(identifier),
    }
}

fn text(pattern: MatchPattern) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(pattern),
        ..StringMatcher::default()
    }
}

fn regex(regex: String) -> RegexMatcher {
    RegexMatcher {
        regex,
        ..RegexMatcher::default()
    }
}

fn path(pattern: MatchPattern) -> permission::Rule {
    permission::Rule::UrlPath(PathMatcher {
        rule: Some(path_matcher::Rule::Path(text(pattern))),
    })
}

fn header(name: &str, pattern: MatchPattern) -> permission::Rule {
    permission::Rule::Header(HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(text(
            pattern,
        ))),
        ..HeaderMatcher::default()
    })
}

fn any_path(_: u32) -> permission::Rule {
    path(MatchPattern::Prefix("/api/".into()))
}

fn anyone(_: u32) -> principal::Identifier {
    principal::Identifier::Any(true)
}

fn authenticated(pattern: MatchPattern) -> principal::Identifier {
    principal::Identifier::Authenticated(principal::Authenticated {
        principal_name: Some(text(pattern)),
    })
}

fn account(i: u32) -> String {
    format!("spiffe://cluster.local/ns/ns-{i}/sa/sa-{i}")
}

fn host(i: u32) -> String {
    format!("things-{i}.bench.svc.cluster.local")
}

fn port(i: u32) -> u16 {
    10_000 + i as u16
}

/// One block for each, whatever the sizes.
fn address(i: u32) -> Ipv4Addr {
    Ipv4Addr::from((10 << 24) + (i << 8) + 1)
}

fn block(i: u32, bits: u32) -> CidrRange {
    CidrRange {
        address_prefix: address(i).to_string(),
        prefix_len: Some(UInt32Value { value: bits }),
    }
}

impl Caller {
    fn new(i: u32) -> Self {
        Self {
            path: format!("/api/v1/things/{i}/of?page=1"),
            host: host(i),
            uris: vec![account(i)],
            address: address(i).into(),
            port: port(i),
        }
    }

    fn subject(&self) -> Subject<'_, Self> {
        Subject {
            request: Some(self),
            local: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.port),
            peer: self.address,
            direct_peer: self.address,
            remote: self.address,
            server_name: "outbound_.80_._.things.bench.svc.cluster.local",
            identity: Some(Identity {
                uris: &self.uris,
                dns: &[],
                subject: "",
            }),
            metadata: None,
            has_route: true,
            route_metadata: None,
        }
    }
}

impl RequestView for Caller {
    fn method(&self) -> &[u8] {
        b"GET"
    }

    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn authority(&self) -> &[u8] {
        self.host.as_bytes()
    }

    fn scheme(&self) -> &[u8] {
        b"http"
    }

    fn header(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }

    fn any_value(&self, _: &str, _: impl FnMut(&[u8]) -> bool) -> Option<bool> {
        None
    }
}
