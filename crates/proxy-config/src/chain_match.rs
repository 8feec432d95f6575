//! Which filter chain takes a connection: Envoy's criteria in Envoy's order, compiled to a tree.
//!
//! Each level of the tree looks at one criterion and keeps only the chains that name the most
//! specific value that fits; where none names one that fits, the chains that do not speak of the
//! criterion are kept. There is no way back: a chain left behind at one level is not tried again
//! when a later level leaves nothing (`FilterChainMatch` in listener_components.proto). A criterion
//! that no chain speaks of has no level, so the common listener with one chain is a tree of one leaf.

use crate::{CidrRange, FilterChain, FilterChainMatch, SourceType};
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What is known of a connection when its filter chain is chosen.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionFacts<'a> {
    /// Where the client was going, before any redirection.
    pub destination: SocketAddr,
    /// The other end of the socket.
    pub direct_source: IpAddr,
    /// Where the connection came from: as a PROXY header says, else the other end of the socket.
    pub source: SocketAddr,
    /// SNI in lower case; empty without one.
    pub server_name: &'a str,
    /// `tls` or `raw_buffer`.
    pub transport_protocol: &'a str,
    /// ALPN in the client's order, or what the first bytes show.
    pub application_protocols: &'a [Box<str>],
}

impl ConnectionFacts<'_> {
    fn is_local(&self) -> bool {
        let source = self.source.ip().to_canonical();
        source.is_loopback() || source == self.destination.ip().to_canonical()
    }
}

/// The filter chains of a listener as a tree.
#[derive(Debug)]
pub struct ChainIndex {
    root: Option<Node>,
}

/// Two chains that take the same connections.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SameMatch {
    pub first: usize,
    pub second: usize,
}

#[derive(Debug)]
enum Node {
    /// The position of the chain in the listener.
    Chain(usize),
    Choice(Box<Choice>),
}

#[derive(Debug)]
struct Choice {
    branches: Branches,
    /// For the chains that do not speak of the criterion.
    any: Option<Node>,
}

#[derive(Debug)]
enum Branches {
    DestinationPort(HashMap<u16, Node>),
    Destination(Prefixes),
    /// Exact names, and wildcards by what follows their star (`.example.com`).
    ServerName(HashMap<Box<str>, Node>),
    Transport(HashMap<Box<str>, Node>),
    Application(HashMap<Box<str>, Node>),
    DirectSource(Prefixes),
    SourceType {
        local: Option<Node>,
        external: Option<Node>,
    },
    Source(Prefixes),
    SourcePort(HashMap<u16, Node>),
}

/// Longest first.
#[derive(Debug)]
struct Prefixes(Vec<(CidrRange, Node)>);

impl Prefixes {
    fn get(&self, ip: IpAddr) -> Option<&Node> {
        let found = self.0.iter().find(|(prefix, _)| prefix.contains(ip));
        found.map(|(_, node)| node)
    }
}

impl ChainIndex {
    pub(crate) fn new(chains: &[Arc<FilterChain>]) -> Result<ChainIndex, SameMatch> {
        let chains: Vec<Entry<'_>> = chains
            .iter()
            .enumerate()
            .map(|(index, chain)| (index, &chain.matches))
            .collect();
        let root = if chains.is_empty() {
            None
        } else {
            Some(build(Criterion::DestinationPort, &chains)?)
        };
        Ok(ChainIndex { root })
    }

    /// The position of the chain that takes a connection; [`None`] leaves it to the default chain.
    pub fn find(&self, facts: &ConnectionFacts<'_>) -> Option<usize> {
        let mut node = self.root.as_ref()?;
        loop {
            match node {
                Node::Chain(index) => return Some(*index),
                Node::Choice(choice) => {
                    node = choice.branches.get(facts).or(choice.any.as_ref())?;
                }
            }
        }
    }
}

impl Branches {
    fn get(&self, facts: &ConnectionFacts<'_>) -> Option<&Node> {
        match self {
            Branches::DestinationPort(ports) => ports.get(&facts.destination.port()),
            Branches::Destination(prefixes) => prefixes.get(facts.destination.ip()),
            Branches::ServerName(names) => by_name(names, facts.server_name),
            Branches::Transport(names) => names.get(facts.transport_protocol),
            Branches::Application(names) => {
                let mut offered = facts.application_protocols.iter();
                offered.find_map(|name| names.get(name))
            }
            Branches::DirectSource(prefixes) => prefixes.get(facts.direct_source),
            Branches::SourceType { local, external } => {
                let found = if facts.is_local() { local } else { external };
                found.as_ref()
            }
            Branches::Source(prefixes) => prefixes.get(facts.source.ip()),
            Branches::SourcePort(ports) => ports.get(&facts.source.port()),
        }
    }
}

/// The exact name, else the longest wildcard.
fn by_name<'a>(names: &'a HashMap<Box<str>, Node>, name: &str) -> Option<&'a Node> {
    if let Some(exact) = names.get(name) {
        return Some(exact);
    }
    // A star stands for at least one character.
    let dots = name.char_indices().skip(1).filter(|(_, c)| *c == '.');
    dots.filter_map(|(at, _)| name.get(at..))
        .find_map(|rest| names.get(rest))
}

type Entry<'a> = (usize, &'a FilterChainMatch);

/// The criteria in the order in which they count.
#[derive(Clone, Copy)]
enum Criterion {
    DestinationPort,
    Destination,
    ServerName,
    Transport,
    Application,
    DirectSource,
    SourceType,
    Source,
    SourcePort,
}

impl Criterion {
    fn next(self) -> Option<Criterion> {
        Some(match self {
            Criterion::DestinationPort => Criterion::Destination,
            Criterion::Destination => Criterion::ServerName,
            Criterion::ServerName => Criterion::Transport,
            Criterion::Transport => Criterion::Application,
            Criterion::Application => Criterion::DirectSource,
            Criterion::DirectSource => Criterion::SourceType,
            Criterion::SourceType => Criterion::Source,
            Criterion::Source => Criterion::SourcePort,
            Criterion::SourcePort => return None,
        })
    }
}

fn build(criterion: Criterion, chains: &[Entry<'_>]) -> Result<Node, SameMatch> {
    let next = criterion.next();
    let text = |get: fn(&FilterChainMatch) -> Vec<Box<str>>| split(chains, get, next);
    let port = |get: fn(&FilterChainMatch) -> Vec<u16>| split(chains, get, next);
    let prefixes = |get: fn(&FilterChainMatch) -> Vec<CidrRange>| {
        let (map, any) = split(chains, get, next)?;
        let mut list: Vec<(CidrRange, Node)> = map.into_iter().collect();
        list.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len));
        Ok((Prefixes(list), any))
    };
    let (branches, any) = match criterion {
        Criterion::DestinationPort => {
            let (map, any) = port(|m| m.destination_port.into_iter().collect())?;
            (Branches::DestinationPort(map), any)
        }
        Criterion::Destination => {
            let (list, any) = prefixes(|m| m.destination_ranges.clone())?;
            (Branches::Destination(list), any)
        }
        Criterion::ServerName => {
            let (map, any) = text(|m| m.server_names.clone())?;
            (Branches::ServerName(map), any)
        }
        Criterion::Transport => {
            let (map, any) = text(|m| match &*m.transport_protocol {
                "" => Vec::new(),
                name => vec![name.into()],
            })?;
            (Branches::Transport(map), any)
        }
        Criterion::Application => {
            let (map, any) = text(|m| m.application_protocols.clone())?;
            (Branches::Application(map), any)
        }
        Criterion::DirectSource => {
            let (list, any) = prefixes(|m| m.direct_source_ranges.clone())?;
            (Branches::DirectSource(list), any)
        }
        Criterion::SourceType => {
            let of = |m: &FilterChainMatch| match m.source_type {
                SourceType::Any => Vec::new(),
                known => vec![known],
            };
            let (mut map, any) = split(chains, of, next)?;
            let local = map.remove(&SourceType::SameIpOrLoopback);
            let external = map.remove(&SourceType::External);
            (Branches::SourceType { local, external }, any)
        }
        Criterion::Source => {
            let (list, any) = prefixes(|m| m.source_ranges.clone())?;
            (Branches::Source(list), any)
        }
        Criterion::SourcePort => {
            let (map, any) = port(|m| m.source_ports.clone())?;
            (Branches::SourcePort(map), any)
        }
    };
    match any {
        // Nobody speaks of the criterion.
        Some(any) if branches.is_empty() => Ok(any),
        any => Ok(Node::Choice(Box::new(Choice { branches, any }))),
    }
}

impl Branches {
    fn is_empty(&self) -> bool {
        match self {
            Branches::DestinationPort(map) | Branches::SourcePort(map) => map.is_empty(),
            Branches::Destination(list) | Branches::DirectSource(list) | Branches::Source(list) => {
                list.0.is_empty()
            }
            Branches::ServerName(map) | Branches::Transport(map) | Branches::Application(map) => {
                map.is_empty()
            }
            Branches::SourceType { local, external } => local.is_none() && external.is_none(),
        }
    }
}

type Parted<K> = (HashMap<K, Node>, Option<Node>);

/// Parts chains by the values they name, and builds what is below each part.
fn split<K: Eq + Hash>(
    chains: &[Entry<'_>],
    values: impl Fn(&FilterChainMatch) -> Vec<K>,
    next: Option<Criterion>,
) -> Result<Parted<K>, SameMatch> {
    let mut named: HashMap<K, Vec<Entry<'_>>> = HashMap::new();
    let mut silent = Vec::new();
    for entry in chains {
        let values = values(entry.1);
        if values.is_empty() {
            silent.push(*entry);
        }
        for value in values {
            let part = named.entry(value).or_default();
            // A value may stand twice in one chain.
            if part.last().is_none_or(|(index, _)| *index != entry.0) {
                part.push(*entry);
            }
        }
    }
    let below = |part: &[Entry<'_>]| match (next, part) {
        (Some(next), part) => build(next, part),
        (None, [(first, _), (second, _), ..]) => Err(SameMatch {
            first: *first,
            second: *second,
        }),
        (None, part) => Ok(Node::Chain(part.first().map_or(0, |(index, _)| *index))),
    };
    let mut map = HashMap::with_capacity(named.len());
    for (value, part) in named {
        map.insert(value, below(&part)?);
    }
    let any = match silent.as_slice() {
        [] => None,
        part => Some(below(part)?),
    };
    Ok((map, any))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Network;
    use proptest::prelude::*;

    fn index(chains: &[FilterChainMatch]) -> Result<ChainIndex, SameMatch> {
        let chains: Vec<_> = chains
            .iter()
            .map(|matches| {
                Arc::new(FilterChain {
                    guards: Vec::new(),
                    name: "".into(),
                    matches: matches.clone(),
                    transport: crate::Transport::Plain,
                    handshake_timeout: None,
                    network: Network::Close,
                    metadata: None,
                    content: 0,
                })
            })
            .collect();
        ChainIndex::new(&chains)
    }

    fn range(text: &str) -> CidrRange {
        let (ip, len) = text.split_once('/').unwrap();
        CidrRange {
            network: ip.parse().unwrap(),
            prefix_len: len.parse().unwrap(),
        }
    }

    fn texts(list: &[&str]) -> Vec<Box<str>> {
        list.iter().map(|text| Box::from(*text)).collect()
    }

    const PLAIN: ConnectionFacts<'_> = ConnectionFacts {
        destination: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3)), 443),
        direct_source: IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 9, 9)),
        source: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 9, 9)), 5555),
        server_name: "",
        transport_protocol: "raw_buffer",
        application_protocols: &[],
    };

    #[test]
    fn the_longest_name_and_prefix_win_and_nothing_is_tried_twice() {
        let none = FilterChainMatch::default;
        let chains = [
            none(),
            FilterChainMatch {
                server_names: texts(&["www.example.com"]),
                ..none()
            },
            FilterChainMatch {
                server_names: texts(&[".example.com"]),
                transport_protocol: "tls".into(),
                ..none()
            },
            FilterChainMatch {
                destination_port: Some(8443),
                transport_protocol: "tls".into(),
                ..none()
            },
            FilterChainMatch {
                destination_ranges: vec![range("10.1.0.0/16")],
                application_protocols: texts(&["h2", "http/1.1"]),
                ..none()
            },
        ];
        let index = index(&chains).unwrap();
        let elsewhere = ConnectionFacts {
            destination: "10.2.0.1:443".parse().unwrap(),
            ..PLAIN
        };
        let check = |facts: ConnectionFacts<'_>, expect: Option<usize>| {
            assert_eq!(index.find(&facts), expect, "{facts:?}");
        };
        check(elsewhere, Some(0));
        // A chain names the prefix, so those that name none are out, although it does not fit.
        check(PLAIN, None);
        let http = texts(&["x", "http/1.1"]);
        check(
            ConnectionFacts {
                application_protocols: &http,
                ..PLAIN
            },
            Some(4),
        );
        let named = |server_name, transport_protocol| ConnectionFacts {
            server_name,
            transport_protocol,
            ..elsewhere
        };
        check(named("www.example.com", "raw_buffer"), Some(1));
        check(named("a.b.example.com", "tls"), Some(2));
        check(named("a.example.com", "raw_buffer"), None);
        check(named("example.com", "tls"), Some(0));
        check(named(".example.com", "tls"), Some(2));
        let port = ConnectionFacts {
            destination: "10.2.0.1:8443".parse().unwrap(),
            ..PLAIN
        };
        check(port, None);
        check(
            ConnectionFacts {
                transport_protocol: "tls",
                ..port
            },
            Some(3),
        );
    }

    #[test]
    fn sources_are_told_apart() {
        let none = FilterChainMatch::default;
        let chains = [
            FilterChainMatch {
                source_type: SourceType::SameIpOrLoopback,
                ..none()
            },
            FilterChainMatch {
                source_type: SourceType::External,
                source_ranges: vec![range("10.9.0.0/16")],
                ..none()
            },
            FilterChainMatch {
                source_type: SourceType::External,
                source_ranges: vec![range("10.9.0.0/16")],
                source_ports: vec![7, 8],
                ..none()
            },
            FilterChainMatch {
                direct_source_ranges: vec![range("192.168.0.0/24")],
                ..none()
            },
        ];
        let index = index(&chains).unwrap();
        let from = |direct: &str, source: &str| {
            index.find(&ConnectionFacts {
                direct_source: direct.parse().unwrap(),
                source: source.parse().unwrap(),
                ..PLAIN
            })
        };
        assert_eq!(from("127.0.0.1", "127.0.0.1:1"), Some(0));
        assert_eq!(from("10.1.2.3", "10.1.2.3:1"), Some(0));
        assert_eq!(from("10.9.1.1", "10.9.1.1:1"), Some(1));
        assert_eq!(from("10.9.1.1", "10.9.1.1:8"), Some(2));
        assert_eq!(from("10.8.1.1", "10.8.1.1:8"), None);
        assert_eq!(from("192.168.0.7", "10.9.1.1:8"), Some(3));
    }

    #[test]
    fn chains_that_take_the_same_connections_are_found() {
        let of = |names: &[&str], ports: &[u16]| FilterChainMatch {
            server_names: texts(names),
            source_ports: ports.to_vec(),
            ..FilterChainMatch::default()
        };
        let same = |first, second| Some(SameMatch { first, second });
        assert_eq!(index(&[of(&["a", "a"], &[])]).err(), None);
        assert_eq!(
            index(&[of(&[], &[]), of(&["a", "b"], &[1]), of(&["b", "c"], &[1])]).err(),
            same(1, 2)
        );
        assert_eq!(index(&[of(&["a"], &[1]), of(&["a"], &[2])]).err(), None);
    }

    /// What the documentation of `FilterChainMatch` says, one criterion after the other.
    fn by_walking(chains: &[FilterChainMatch], facts: &ConnectionFacts<'_>) -> Option<usize> {
        let mut left: Vec<usize> = (0..chains.len()).collect();
        let mut keep = |rank: &dyn Fn(&FilterChainMatch) -> Option<u32>| {
            let best = left.iter().filter_map(|i| rank(&chains[*i])).max();
            left.retain(|i| best.is_some() && rank(&chains[*i]) == best);
        };
        // 0: not spoken of; higher: more specific; none: does not fit.
        let equal = |wanted: bool, spoken: bool| match (spoken, wanted) {
            (false, _) => Some(0),
            (true, true) => Some(1),
            (true, false) => None,
        };
        let prefix = |ranges: &[CidrRange], ip: IpAddr| match ranges {
            [] => Some(0),
            ranges => ranges
                .iter()
                .filter(|r| r.contains(ip))
                .map(|r| u32::from(r.prefix_len) + 1)
                .max(),
        };
        keep(&|m| {
            equal(
                m.destination_port == Some(facts.destination.port()),
                m.destination_port.is_some(),
            )
        });
        keep(&|m| prefix(&m.destination_ranges, facts.destination.ip()));
        keep(&|m| match m.server_names.as_slice() {
            [] => Some(0),
            names => names
                .iter()
                .filter_map(|name| {
                    let wild = name.starts_with('.')
                        && facts.server_name.len() > name.len()
                        && facts.server_name.ends_with(&**name);
                    match &**name == facts.server_name {
                        true => Some(u32::MAX),
                        false => wild.then_some(name.len() as u32),
                    }
                })
                .max(),
        });
        keep(&|m| {
            equal(
                &*m.transport_protocol == facts.transport_protocol,
                !m.transport_protocol.is_empty(),
            )
        });
        keep(&|m| match m.application_protocols.as_slice() {
            [] => Some(0),
            wanted => {
                let at = facts
                    .application_protocols
                    .iter()
                    .position(|p| wanted.contains(p));
                at.map(|at| u32::MAX - at as u32)
            }
        });
        keep(&|m| prefix(&m.source_ranges, facts.source.ip()));
        keep(&|m| {
            equal(
                m.source_ports.contains(&facts.source.port()),
                !m.source_ports.is_empty(),
            )
        });
        left.first().copied()
    }

    fn subset(of: &'static [&'static str]) -> impl Strategy<Value = Vec<Box<str>>> {
        prop::sample::subsequence(of, 0..=of.len().min(2)).prop_map(|list| texts(&list))
    }

    fn ranges() -> impl Strategy<Value = Vec<CidrRange>> {
        let all = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24"];
        prop::sample::subsequence(all.to_vec(), 0..=2)
            .prop_map(|list| list.into_iter().map(range).collect())
    }

    fn chain() -> impl Strategy<Value = FilterChainMatch> {
        (
            prop::option::of(prop::sample::select(vec![80u16, 443])),
            ranges(),
            subset(&["a.b.c", ".b.c", ".c", "x"]),
            prop::sample::select(vec!["", "tls", "raw_buffer"]),
            subset(&["h2", "http/1.1"]),
            ranges(),
            prop::sample::subsequence(vec![1u16, 2], 0..=1),
        )
            .prop_map(
                |(port, to, names, transport, alpn, from, ports)| FilterChainMatch {
                    destination_port: port,
                    destination_ranges: to,
                    server_names: names,
                    transport_protocol: transport.into(),
                    application_protocols: alpn,
                    source_ranges: from,
                    source_ports: ports,
                    ..FilterChainMatch::default()
                },
            )
    }

    proptest! {
        #[test]
        fn the_tree_finds_what_a_walk_through_the_criteria_finds(
            chains in prop::collection::vec(chain(), 1..8),
            to in prop::sample::select(vec!["10.1.2.3:80", "10.1.9.9:443", "11.0.0.1:80", "10.9.0.1:9"]),
            from in prop::sample::select(vec!["10.1.2.3:1", "10.5.0.1:2", "9.9.9.9:1"]),
            name in prop::sample::select(vec!["", "a.b.c", "z.b.c", "q.c", "x", "b.c"]),
            transport in prop::sample::select(vec!["tls", "raw_buffer"]),
            alpn in subset(&["http/1.1", "h2", "foo"]),
        ) {
            let Ok(index) = index(&chains) else { return Ok(()) };
            let facts = ConnectionFacts {
                destination: to.parse().unwrap(),
                direct_source: IpAddr::from([10, 9, 9, 9]),
                source: from.parse().unwrap(),
                server_name: name,
                transport_protocol: transport,
                application_protocols: &alpn,
            };
            prop_assert_eq!(index.find(&facts), by_walking(&chains, &facts));
        }
    }
}
