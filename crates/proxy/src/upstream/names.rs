//! Names in place of addresses: looking them up, which addresses count, and those that the requests
//! of one worker asked for.
//!
//! The names of DNS clusters are looked up by the main thread, again and again. A name that a
//! request brings is looked up when it is wanted, on the worker's own runtime: the system's
//! resolver runs on a thread of its own, and only requests for that name wait for it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use lateen_proxy_config::DnsFamily;
use tokio::sync::Notify;
use tokio::task::spawn_local;

/// Names that are remembered per cluster.
const MOST: usize = 1024;
/// Lookups under way per cluster, as in Envoy (`dns_cache_circuit_breaker`).
const MOST_ASKED: usize = 1024;
/// When a name that led nowhere is looked up again, if somebody asks.
const AGAIN: Duration = Duration::from_secs(1);

/// An address in place of a name needs nobody to ask, and neither do the names of this machine
/// (RFC 6761, section 6.3).
pub(crate) async fn lookup(name: &str) -> std::io::Result<Vec<IpAddr>> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    if name.ends_with(".localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
    }
    let found = tokio::net::lookup_host((name, 0)).await?;
    Ok(found.map(|address| address.ip()).collect())
}

/// The addresses of the wanted families, in a stable order, each once.
pub(crate) fn choose(mut found: Vec<IpAddr>, family: DnsFamily) -> Vec<IpAddr> {
    found.sort_unstable();
    found.dedup();
    let (four, six): (Vec<_>, Vec<_>) = found.iter().copied().partition(IpAddr::is_ipv4);
    match family {
        DnsFamily::V4Only => four,
        DnsFamily::V6Only => six,
        DnsFamily::V4Preferred if four.is_empty() => six,
        DnsFamily::V4Preferred => four,
        DnsFamily::Auto if six.is_empty() => four,
        DnsFamily::Auto => six,
        DnsFamily::All => found,
    }
}

/// Addresses of names that requests brought. All requests for a name share one lookup, and only the
/// first ones wait for it: later the last good address serves while a new one is looked for.
#[derive(Default)]
pub(super) struct KnownNames(Rc<Table>);

#[derive(Default)]
struct Table {
    names: RefCell<HashMap<Box<str>, Known>>,
    /// Lookups under way.
    asking: Cell<usize>,
}

struct Known {
    /// [`None`]: the name led nowhere when it was last looked up.
    address: Option<IpAddr>,
    /// When to look again.
    due: Instant,
    /// The lookup under way, and those who wait for it.
    asked: Option<Rc<Notify>>,
}

impl KnownNames {
    /// The address of a name, which `ask` looks up. `None`: it leads nowhere, as far as is known.
    pub(super) async fn resolve<F>(
        &self,
        name: &str,
        family: DnsFamily,
        refresh: Duration,
        ask: impl FnOnce(Box<str>) -> F,
    ) -> Option<IpAddr>
    where
        F: Future<Output = std::io::Result<Vec<IpAddr>>> + 'static,
    {
        let now = Instant::now();
        let known = {
            let names = self.0.names.borrow();
            let known = names.get(name);
            known.map(|known| (known.address, known.due > now, known.asked.clone()))
        };
        let asked = match known {
            Some((address, true, None)) => return address,
            Some((Some(address), _, Some(_))) => return Some(address),
            Some((None, _, Some(asked))) => asked,
            Some((address @ Some(_), false, None)) => {
                self.0.start(name, family, refresh, ask);
                return address;
            }
            Some((None, false, None)) | None => self.0.start(name, family, refresh, ask)?,
        };
        asked.notified().await;
        self.0.names.borrow().get(name)?.address
    }
}

impl Table {
    /// Begins a lookup. [`None`]: too many are under way.
    fn start<F>(
        self: &Rc<Self>,
        name: &str,
        family: DnsFamily,
        refresh: Duration,
        ask: impl FnOnce(Box<str>) -> F,
    ) -> Option<Rc<Notify>>
    where
        F: Future<Output = std::io::Result<Vec<IpAddr>>> + 'static,
    {
        if self.asking.get() >= MOST_ASKED {
            return None;
        }
        let asked = Rc::new(Notify::new());
        let mut names = self.names.borrow_mut();
        if names.len() >= MOST && !names.contains_key(name) {
            // Whoever floods a proxy with names makes it ask more often, and no more than that.
            names.retain(|_, known| known.asked.is_some());
        }
        let known = names.entry(name.into()).or_insert(Known {
            address: None,
            due: Instant::now(),
            asked: None,
        });
        known.asked = Some(asked.clone());
        self.asking.set(self.asking.get() + 1);
        let (table, name) = (self.clone(), Box::from(name));
        let looking = ask(Box::clone(&name));
        let waiting = asked.clone();
        spawn_local(async move {
            let found = looking.await;
            table.asking.set(table.asking.get().saturating_sub(1));
            table.answer(&name, family, refresh, found);
            waiting.notify_waiters();
        });
        Some(asked)
    }

    fn answer(
        &self,
        name: &str,
        family: DnsFamily,
        refresh: Duration,
        found: std::io::Result<Vec<IpAddr>>,
    ) {
        let mut names = self.names.borrow_mut();
        let Some(known) = names.get_mut(name) else {
            return;
        };
        known.asked = None;
        let found = match found {
            Ok(found) => choose(found, family).first().copied(),
            Err(error) => {
                tracing::debug!(name, %error, "cannot resolve the host of a request");
                // An address that was good before may still be.
                known.due = Instant::now() + refresh.min(AGAIN);
                return;
            }
        };
        known.address = found;
        known.due = Instant::now()
            + if found.is_some() {
                refresh
            } else {
                refresh.min(AGAIN)
            };
    }
}

/// Name and port of an authority; IPv6 addresses stand in brackets.
pub(super) fn split(authority: &[u8], default_port: u16) -> Option<(&str, u16)> {
    let authority = std::str::from_utf8(authority).ok()?;
    let (name, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => match authority.find(':') {
            Some(at) => authority.split_at(at),
            None => (authority, ""),
        },
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => default_port,
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None => return None,
    };
    (!name.is_empty()).then_some((name, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[test]
    fn the_family_decides_which_addresses_count() {
        let found = ["::1", "127.0.0.2", "127.0.0.1", "127.0.0.1"];
        let check = |family, found: &[&str], expect: &[&str]| {
            let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
            assert_eq!(choose(parse(found), family), parse(expect), "{family:?}");
        };
        check(DnsFamily::V4Only, &found, &["127.0.0.1", "127.0.0.2"]);
        check(DnsFamily::V6Only, &found, &["::1"]);
        check(DnsFamily::V4Preferred, &found, &["127.0.0.1", "127.0.0.2"]);
        check(DnsFamily::V4Preferred, &["::1"], &["::1"]);
        check(DnsFamily::Auto, &found, &["::1"]);
        check(DnsFamily::Auto, &["127.0.0.1"], &["127.0.0.1"]);
        check(DnsFamily::All, &found, &["127.0.0.1", "127.0.0.2", "::1"]);
    }

    /// Answers with what is sent, and counts the questions.
    struct Server(
        Cell<usize>,
        RefCell<Vec<oneshot::Sender<std::io::Result<Vec<IpAddr>>>>>,
    );

    impl Server {
        fn ask(&self) -> impl Future<Output = std::io::Result<Vec<IpAddr>>> + 'static {
            self.0.set(self.0.get() + 1);
            let (sender, answer) = oneshot::channel();
            self.1.borrow_mut().push(sender);
            async { answer.await.unwrap() }
        }

        fn answer(&self, answer: std::io::Result<&str>) {
            let answer = answer.map(|address| vec![address.parse().unwrap()]);
            self.1.borrow_mut().remove(0).send(answer).unwrap();
        }
    }

    #[tokio::test(flavor = "local")]
    async fn requests_for_a_name_share_a_lookup_and_wait_for_the_first_only() {
        const LONG: Duration = Duration::from_secs(3600);
        let (names, server) = (
            KnownNames::default(),
            Server(Cell::new(0), RefCell::default()),
        );
        let get = async |refresh| {
            let ask = |_| server.ask();
            names.resolve("a.test", DnsFamily::Auto, refresh, ask).await
        };
        let answer = async |answer| {
            tokio::task::yield_now().await;
            server.answer(answer);
        };
        let address = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let nothing = || Err(std::io::Error::other("no answer"));
        // It leads nowhere, which is remembered for a while.
        let ((), one, two) = tokio::join!(answer(nothing()), get(LONG), get(LONG));
        assert_eq!((one, two, get(LONG).await), (None, None, None));
        assert_eq!(server.0.get(), 1);
        names.0.names.borrow_mut().get_mut("a.test").unwrap().due = Instant::now();
        let ((), one, two) = tokio::join!(
            answer(Ok("10.0.0.1")),
            get(Duration::ZERO),
            get(Duration::ZERO)
        );
        assert_eq!((one, two), (address("10.0.0.1"), address("10.0.0.1")));
        assert_eq!(server.0.get(), 2);
        // The address is old: it serves until another one is there, whatever comes of that.
        for (found, expect) in [(nothing(), "10.0.0.1"), (Ok("10.0.0.2"), "10.0.0.2")] {
            assert_eq!(get(LONG).await, address("10.0.0.1"));
            assert_eq!(get(LONG).await, address("10.0.0.1"));
            let asked = server.0.get();
            answer(found).await;
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            assert_eq!(server.0.get(), asked);
            let known = names.0.names.borrow().get("a.test").unwrap().address;
            assert_eq!(known, address(expect));
            if expect == "10.0.0.1" {
                names.0.names.borrow_mut().get_mut("a.test").unwrap().due = Instant::now();
            }
        }
        assert_eq!(get(LONG).await, address("10.0.0.2"));
        assert_eq!((server.0.get(), names.0.asking.get()), (4, 0));
    }

    #[test]
    fn authorities_are_a_name_and_a_port() {
        let check = |authority: &str, expect: Option<(&str, u16)>| {
            assert_eq!(split(authority.as_bytes(), 80), expect, "{authority}");
        };
        check("a.example.com", Some(("a.example.com", 80)));
        check("a.example.com:8080", Some(("a.example.com", 8080)));
        check("[::1]:8080", Some(("::1", 8080)));
        check("[::1]", Some(("::1", 80)));
        for wrong in ["", ":80", "a:0", "a:b", "a:99999", "[::1", "[::1]x"] {
            check(wrong, None);
        }
    }
}
