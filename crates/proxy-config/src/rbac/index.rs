//! Which policies can match a request at all.
//!
//! A policy that wants one of some paths, identities, addresses or header values is listed under
//! those; a request is looked up by its own. Keys are hashes of texts in lower case, so a list may hold too
//! much, which costs the trial of a policy and decides nothing. Of several conditions that a policy
//! has, the one that fewest policies share is its key.

use super::RbacPolicy;
use super::ip_set::{Block, IpSet};
use super::rule::{Rule, Subject, exact};
use crate::RequestView;
use crate::route::{HeaderTest, StringMatcher, StringTest};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

/// Header names that are looked up; policies on further ones are tried each time.
const MAX_HEADERS: usize = 16;

/// Namespaces stand between these in a SPIFFE identity.
const NAMESPACE: &[u8] = b"/ns/";

#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// Policies that anything may match.
    always: Box<[u32]>,
    lists: HashMap<u64, Box<[u32]>, BuildHasherDefault<Ready>>,
    /// Lengths of path prefixes in `lists`, ascending.
    prefix_lengths: Box<[usize]>,
    /// The same of endings.
    suffix_lengths: Box<[usize]>,
    /// The blocks in `lists`: whose addresses, of which family, and how many bits.
    blocks: Box<[(Whose, bool, u8)]>,
    ports: bool,
    paths: bool,
    principals: bool,
    namespaces: bool,
    server_names: bool,
    headers: Box<[Box<str>]>,
}

/// What a request must have for a policy to match.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Path(Box<[u8]>),
    Prefix(Box<[u8]>),
    Suffix(Box<[u8]>),
    Principal(Box<[u8]>),
    /// A name of the client has it between `/ns/` and `/`.
    Namespace(Box<[u8]>),
    ServerName(Box<[u8]>),
    Header(Box<str>, Box<[u8]>),
    Address(Whose, Block),
    Port(u16),
}

/// Which of the addresses of a request or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Destination,
    Source,
    DirectRemote,
    Remote,
}

/// Texts of which a request must have at least one.
type Keys = BTreeSet<Key>;

impl Index {
    pub(super) fn new(policies: &[RbacPolicy]) -> Index {
        let options: Vec<Vec<Keys>> = policies
            .iter()
            .map(|policy| {
                let mut all = options(&policy.permissions);
                all.extend(options(&policy.principals));
                all
            })
            .collect();
        let mut shared: BTreeMap<&Key, usize> = BTreeMap::new();
        for key in options.iter().flatten().flatten() {
            *shared.entry(key).or_default() += 1;
        }
        let mut index = Index::default();
        let (mut always, mut headers) = (Vec::new(), BTreeSet::new());
        let (mut lengths, mut endings) = (BTreeSet::new(), BTreeSet::new());
        let mut blocks = BTreeSet::new();
        let mut lists: HashMap<u64, Vec<u32>> = HashMap::new();
        for (at, options) in (0u32..).zip(&options) {
            let cost = |keys: &&Keys| {
                let cost = |key| shared.get(key).copied().unwrap_or(0);
                keys.iter().map(cost).max().unwrap_or(0)
            };
            let fits = |keys: &&Keys| {
                let mut with = headers.clone();
                with.extend(keys.iter().filter_map(Key::header));
                with.len() <= MAX_HEADERS
            };
            let Some(keys) = options.iter().filter(fits).min_by_key(cost) else {
                always.push(at);
                continue;
            };
            headers.extend(keys.iter().filter_map(Key::header));
            for key in keys {
                match key {
                    Key::Prefix(prefix) => drop(lengths.insert(prefix.len())),
                    Key::Suffix(suffix) => drop(endings.insert(suffix.len())),
                    Key::Address(whose, block) => {
                        blocks.insert((*whose, block.v6, block.bits));
                    }
                    Key::Port(_) => index.ports = true,
                    Key::Path(_) => index.paths = true,
                    Key::Principal(_) => index.principals = true,
                    Key::Namespace(_) => index.namespaces = true,
                    Key::ServerName(_) => index.server_names = true,
                    Key::Header(..) => {}
                }
                let list = lists.entry(key.digest()).or_default();
                if list.last() != Some(&at) {
                    list.push(at);
                }
            }
        }
        index.always = always.into();
        index.headers = headers.into_iter().map(Box::from).collect();
        index.prefix_lengths = lengths.into_iter().collect();
        index.suffix_lengths = endings.into_iter().collect();
        index.blocks = blocks.into_iter().collect();
        index.lists = lists.into_iter().map(|(k, v)| (k, v.into())).collect();
        index
    }

    /// Shows each list of policies that could match, in ascending order within a list.
    pub(super) fn candidates<R: RequestView>(
        &self,
        subject: &Subject<'_, R>,
        show: &mut impl FnMut(&[u32]),
    ) {
        show(&self.always);
        if self.lists.is_empty() {
            return;
        }
        let mut look_up = |hash: Hash| {
            if let Some(list) = self.lists.get(&hash.0) {
                show(list);
            }
        };
        if let Some(path) = subject.path() {
            if self.paths {
                look_up(Hash::PATH.text(path));
            }
            let (mut hash, mut from) = (Hash::PREFIX, 0);
            for &length in &self.prefix_lengths {
                let Some(more) = path.get(from..length) else {
                    break;
                };
                hash = hash.text(more);
                from = length;
                look_up(hash);
            }
            let (mut hash, mut from) = (Hash::SUFFIX, 0);
            for &length in &self.suffix_lengths {
                let Some(start) = path.len().checked_sub(length) else {
                    break;
                };
                hash = hash.backwards(&path[start..path.len() - from]);
                from = length;
                look_up(hash);
            }
        }
        for &(whose, v6, bits) in &self.blocks {
            let address = match whose {
                Whose::Destination => subject.local.ip(),
                Whose::Source => subject.peer,
                Whose::DirectRemote => subject.direct_peer,
                Whose::Remote => subject.remote,
            };
            if let Some(block) = Block::around(address, v6, bits) {
                look_up(Hash::address(whose, block));
            }
        }
        if self.ports {
            look_up(Hash::PORT.number(u64::from(subject.local.port())));
        }
        if let Some(identity) = &subject.identity {
            for name in identity.names() {
                if self.principals {
                    look_up(Hash::PRINCIPAL.text(name));
                }
                if self.namespaces {
                    namespaces(name, |namespace| look_up(Hash::NAMESPACE.text(namespace)));
                }
            }
        }
        if self.server_names {
            look_up(Hash::SERVER_NAME.text(subject.server_name.as_bytes()));
        }
        if let Some(request) = subject.request {
            for name in &self.headers {
                header_values(request, name, |value| {
                    look_up(Hash::HEADER.text(name.as_bytes()).byte(0).text(value));
                });
            }
        }
    }
}

/// Every value that a header matcher would look at.
fn header_values<R: RequestView>(request: &R, name: &str, mut see: impl FnMut(&[u8])) {
    if name.starts_with(':') || name == "host" {
        if let Some(value) = request.header_or_pseudo(name) {
            see(&value);
        }
        return;
    }
    request.any_value(name, |value| {
        see(value);
        false
    });
}

/// Every text that stands between `/ns/` and the next `/`.
fn namespaces(name: &[u8], mut see: impl FnMut(&[u8])) {
    let mut rest = name;
    while let Some(at) = rest.windows(NAMESPACE.len()).position(|w| w == NAMESPACE) {
        let named = &rest[at + NAMESPACE.len()..];
        if let Some(end) = named.iter().position(|b| *b == b'/') {
            see(&named[..end]);
        }
        // The slash that ends one `/ns/` may begin the next: `/ns/ns/a/` is of `a`, too.
        rest = &rest[at + NAMESPACE.len() - 1..];
    }
}

/// Sets of keys, of each of which a request must have one for the rule to match.
fn options(rule: &Rule) -> Vec<Keys> {
    let one = |key: Key| vec![Keys::from([key])];
    match rule {
        Rule::All(rules) => rules.iter().flat_map(options).collect(),
        Rule::Any(rules) => {
            let smallest = |rule: &Rule| options(rule).into_iter().min_by_key(Keys::len);
            let each: Option<Vec<Keys>> = rules.iter().map(smallest).collect();
            each.map(|each| each.into_iter().flatten().collect())
                .into_iter()
                .filter(|keys: &Keys| !keys.is_empty())
                .collect()
        }
        Rule::Path(matcher) => match &matcher.test {
            StringTest::Exact(text) => one(Key::Path(lower(text))),
            StringTest::Prefix(text) if text.len() > 1 => one(Key::Prefix(lower(text))),
            StringTest::Suffix(text) if !text.is_empty() => one(Key::Suffix(lower(text))),
            _ => Vec::new(),
        },
        Rule::Template(regex) => match plain_start(regex.as_str()) {
            Some(text) if text.len() > 1 => one(Key::Prefix(lower(text))),
            _ => Vec::new(),
        },
        Rule::DestinationIp(set) => addresses(Whose::Destination, set),
        Rule::SourceIp(set) => addresses(Whose::Source, set),
        Rule::DirectRemoteIp(set) => addresses(Whose::DirectRemote, set),
        Rule::RemoteIp(set) => addresses(Whose::Remote, set),
        Rule::DestinationPort(range) if range.len() == 1 => {
            u16::try_from(range.start).map_or_else(|_| Vec::new(), |port| one(Key::Port(port)))
        }
        Rule::PathIn(paths) => vec![texts(paths, Key::Path)],
        Rule::Authenticated(Some(matcher)) => match exact(matcher) {
            Some(text) => one(Key::Principal(lower(text))),
            None => namespace_of(matcher).map_or_else(Vec::new, |n| one(Key::Namespace(lower(n)))),
        },
        Rule::AuthenticatedAs(names) => vec![texts(names, Key::Principal)],
        Rule::ServerName(StringMatcher {
            test: StringTest::Exact(text),
            ..
        }) => one(Key::ServerName(lower(text))),
        Rule::Header(matcher) if !matcher.invert && !matcher.treat_missing_as_empty => {
            match &matcher.test {
                HeaderTest::String(StringMatcher {
                    test: StringTest::Exact(text),
                    ..
                }) => one(Key::Header(matcher.name.clone(), lower(text))),
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

fn lower(text: &str) -> Box<[u8]> {
    text.to_ascii_lowercase().into_bytes().into()
}

fn texts(set: &std::collections::HashSet<Box<[u8]>>, key: fn(Box<[u8]>) -> Key) -> Keys {
    set.iter()
        .map(|text| key(text.to_ascii_lowercase().into()))
        .collect()
}

fn addresses(whose: Whose, set: &IpSet) -> Vec<Keys> {
    vec![set.blocks().map(|b| Key::Address(whose, b)).collect()]
}

/// The plain text that a regex for whole values begins with.
fn plain_start(pattern: &str) -> Option<&str> {
    let inner = pattern.strip_prefix(r"\A(?:")?.strip_suffix(r")\z")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-_".contains(&b);
    let end = inner.bytes().position(|b| !plain(b));
    let (start, rest) = inner.split_at(end.unwrap_or(inner.len()));
    // What may be repeated may be missing, and one of several texts is none that must be there.
    let counted = rest.starts_with(['*', '+', '?', '{']);
    (!counted && !rest.contains('|')).then_some(start)
}

/// The namespace that every name which matches must be of.
fn namespace_of(matcher: &StringMatcher) -> Option<&str> {
    let text = match &matcher.test {
        StringTest::Exact(text)
        | StringTest::Prefix(text)
        | StringTest::Suffix(text)
        | StringTest::Contains(text)
        | StringTest::Within(text) => text,
        StringTest::Regex(regex) => plain_regex(regex.as_str())?,
    };
    let (_, rest) = text.split_once("/ns/")?;
    let (namespace, _) = rest.split_once('/')?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    namespace.bytes().all(plain).then_some(namespace)
}

/// The text of a regex for whole values that has nothing in it but plain characters, `.*` and `.+`:
/// its plain pieces are in every value that matches.
fn plain_regex(pattern: &str) -> Option<&str> {
    let inner = pattern.strip_prefix(r"\A(?:")?.strip_suffix(r")\z")?;
    let bytes = inner.as_bytes();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/:-_".contains(&b);
    let fits = |(at, b): (usize, &u8)| match b {
        b'.' => matches!(bytes.get(at + 1), Some(b'*' | b'+')),
        b'*' | b'+' => at
            .checked_sub(1)
            .is_some_and(|before| bytes[before] == b'.'),
        b => plain(*b),
    };
    bytes.iter().enumerate().all(fits).then_some(inner)
}

impl Key {
    fn header(&self) -> Option<&str> {
        match self {
            Key::Header(name, _) => Some(name),
            _ => None,
        }
    }

    fn digest(&self) -> u64 {
        match self {
            Key::Path(text) => Hash::PATH.text(text),
            Key::Prefix(text) => Hash::PREFIX.text(text),
            Key::Suffix(text) => Hash::SUFFIX.backwards(text),
            Key::Principal(text) => Hash::PRINCIPAL.text(text),
            Key::Namespace(text) => Hash::NAMESPACE.text(text),
            Key::ServerName(text) => Hash::SERVER_NAME.text(text),
            Key::Header(name, text) => Hash::HEADER.text(name.as_bytes()).byte(0).text(text),
            Key::Address(whose, block) => Hash::address(*whose, *block),
            Key::Port(port) => Hash::PORT.number(u64::from(*port)),
        }
        .0
    }
}

/// FNV-1a over texts in lower case: prefixes of a path are hashed in one pass.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    const EMPTY: Hash = Hash(0xcbf2_9ce4_8422_2325);
    const PATH: Hash = Hash::EMPTY.byte(1);
    const PREFIX: Hash = Hash::EMPTY.byte(2);
    const PRINCIPAL: Hash = Hash::EMPTY.byte(3);
    const NAMESPACE: Hash = Hash::EMPTY.byte(4);
    const SERVER_NAME: Hash = Hash::EMPTY.byte(5);
    const HEADER: Hash = Hash::EMPTY.byte(6);
    const SUFFIX: Hash = Hash::EMPTY.byte(7);
    const ADDRESS: Hash = Hash::EMPTY.byte(8);
    const PORT: Hash = Hash::EMPTY.byte(9);

    const fn byte(self, byte: u8) -> Hash {
        Hash((self.0 ^ byte as u64).wrapping_mul(0x0100_0000_01b3))
    }

    fn text(self, text: &[u8]) -> Hash {
        text.iter()
            .fold(self, |hash, b| hash.byte(b.to_ascii_lowercase()))
    }

    fn backwards(self, text: &[u8]) -> Hash {
        let last_first = text.iter().rev();
        last_first.fold(self, |hash, b| hash.byte(b.to_ascii_lowercase()))
    }

    /// In two steps rather than eight: addresses are looked up once for each length of a prefix.
    fn number(self, number: u64) -> Hash {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Hash(mixed ^ (mixed >> 32))
    }

    fn address(whose: Whose, block: Block) -> Hash {
        let kind = u64::from_be_bytes([0, 0, 0, 0, 0, whose as u8, block.v6.into(), block.bits]);
        let hash = Hash::ADDRESS.number(kind).number(block.network as u64);
        match block.v6 {
            true => hash.number((block.network >> 64) as u64),
            false => hash,
        }
    }
}

/// Keys are hashes already.
#[derive(Clone, Copy, Default)]
struct Ready(u64);

impl Hasher for Ready {
    fn finish(&self) -> u64 {
        // The map takes its control bits from the top and its place from the bottom.
        self.0 ^ (self.0 >> 29)
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*b);
        }
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
