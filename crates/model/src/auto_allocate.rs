//! Virtual addresses for hosts of ServiceEntries that have none (Istio's `ipallocate`).
//!
//! Without one, two TCP services on one port could not be told apart. Every host gets an address
//! of 240.240.0.0/16 and one of 2001:2::/48, found by hash and then by search, so the same objects
//! get the same addresses after a restart. Older objects choose first: a new one never takes an
//! address away.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lateen_api::Object;
use lateen_api::service_entry::{Resolution, ServiceEntry};

use crate::rules::Origin;

/// Turns allocation off for an object when it is `false`.
const LABEL: &str = "networking.istio.io/enable-autoallocate-ip";
/// Places in the range: 256 blocks of 254, so that no address ends in 0 or 255.
const PLACES: u32 = 256 * 254;

/// The hosts that want addresses, and the addresses that people gave out in our ranges.
#[derive(Debug, Default)]
pub(crate) struct Allocation {
    wanted: Vec<(Origin, String)>,
    taken: HashSet<u32>,
}

/// The addresses of one host, IPv4 first.
pub(crate) type Addresses = [String; 2];

impl Allocation {
    /// Notes what a ServiceEntry wants and what it has.
    pub fn note(&mut self, origin: &Origin, object: &Object, spec: &ServiceEntry) {
        let given = spec.addresses.iter().filter_map(|text| text.parse().ok());
        self.taken.extend(given.filter_map(place_of));
        let refused = object
            .meta
            .labels
            .get(LABEL)
            .is_some_and(|value| value.eq_ignore_ascii_case("false"));
        // Where a connection goes on to where the client was going, the address must be real.
        let no_address = spec.resolution.unwrap_or_default() == Resolution::None;
        if refused || no_address || !spec.addresses.is_empty() {
            return;
        }
        let hosts = spec.hosts.iter().filter(|host| !host.contains('*'));
        self.wanted
            .extend(hosts.map(|host| (origin.clone(), host.to_ascii_lowercase())));
    }

    /// What several want together.
    pub fn joined<'a>(all: impl Iterator<Item = &'a Allocation>) -> Allocation {
        let mut joined = Allocation::default();
        for one in all {
            joined.wanted.extend(one.wanted.iter().cloned());
            joined.taken.extend(&one.taken);
        }
        joined
    }

    /// The addresses by object and host. A host that finds the range full gets none.
    pub fn allocate(mut self) -> BTreeMap<(Origin, String), Addresses> {
        self.wanted.sort();
        self.wanted.dedup();
        let mut found = BTreeMap::new();
        for key in self.wanted {
            let (origin, host) = &key;
            let first = hash(&[&origin.namespace, &origin.name, host]) % PLACES;
            let free = (0..PLACES)
                .map(|step| (first + step) % PLACES)
                .find(|place| !self.taken.contains(place));
            let Some(place) = free else { break };
            self.taken.insert(place);
            found.insert(key, addresses_of(place));
        }
        found
    }
}

fn addresses_of(place: u32) -> Addresses {
    let (block, last) = octets(place);
    let four = Ipv4Addr::new(240, 240, block, last);
    let six = Ipv6Addr::new(
        0x2001,
        2,
        0,
        0,
        0,
        0,
        0xf0f0,
        u16::from_be_bytes([block, last]),
    );
    [four.to_string(), six.to_string()]
}

fn octets(place: u32) -> (u8, u8) {
    let [_, _, block, _] = (place / 254 * 256).to_be_bytes();
    let last = u8::try_from(place % 254 + 1).unwrap_or(u8::MAX);
    (block, last)
}

/// The place of an address that lies in one of our ranges.
fn place_of(address: IpAddr) -> Option<u32> {
    let (block, last) = match address {
        IpAddr::V4(four) => match four.octets() {
            [240, 240, block, last] => (block, last),
            _ => return None,
        },
        IpAddr::V6(six) => match six.segments() {
            [0x2001, 2, 0, 0, 0, 0, 0xf0f0, rest] => {
                let [block, last] = rest.to_be_bytes();
                (block, last)
            }
            _ => return None,
        },
    };
    let last = u32::from(last).checked_sub(1).filter(|last| *last < 254)?;
    Some(u32::from(block) * 254 + last)
}

/// FNV-1a: the same in every process and release, unlike the standard library's.
fn hash(parts: &[&str]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([b'/']));
    bytes.fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_api::{Mode, Spec, parse};

    fn allocate(documents: &[String]) -> BTreeMap<String, Addresses> {
        let mut allocation = Allocation::default();
        for text in documents {
            let parsed = parse("test", text, Mode::Strict);
            assert!(!parsed.has_errors(), "{}", parsed.render(text, false));
            let object = parsed.objects[0].object.clone();
            let origin = crate::registry::origin(&object);
            let Spec::ServiceEntry(spec) = &object.spec else {
                panic!("{text}");
            };
            allocation.note(&origin, &object, spec);
        }
        let found = allocation.allocate().into_iter();
        found.map(|((_, host), found)| (host, found)).collect()
    }

    const STATIC: &str = "resolution: STATIC\n  endpoints: [{address: 10.0.0.9}]";

    fn entry(name: &str, hosts: &str, rest: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: {name}, namespace: default, \
             labels: {{networking.istio.io/enable-autoallocate-ip: \"{}\"}}}}\n\
             spec:\n  hosts: [{hosts}]\n  ports: [{{number: 80, name: tcp, protocol: TCP}}]\n  {rest}\n",
            if rest.contains("# off") {
                "false"
            } else {
                "true"
            },
        )
    }

    #[test]
    fn hosts_without_addresses_get_one_of_each_range_and_the_same_one_again() {
        let documents = [
            entry("a", "a.test, b.test", "resolution: DNS"),
            entry("c", "'*.c.test'", STATIC),
            entry("d", "d.test", "resolution: NONE"),
            entry("e", "e.test", "resolution: DNS # off"),
            entry("f", "f.test", "resolution: DNS\n  addresses: [10.0.0.1]"),
            entry("g", "g.test", STATIC),
        ];
        let found = allocate(&documents);
        let hosts: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(hosts, ["a.test", "b.test", "g.test"]);
        for [four, six] in found.values() {
            assert!(four.starts_with("240.240."), "{four}");
            assert!(six.starts_with("2001:2::f0f0:"), "{six}");
        }
        let mut reversed = documents.to_vec();
        reversed.reverse();
        assert_eq!(allocate(&reversed), found);
    }

    #[test]
    fn addresses_that_are_taken_are_passed_over_and_none_is_given_twice() {
        let alone = allocate(&[entry("a", "a.test", "resolution: DNS")]);
        let [four, six] = &alone["a.test"];
        for taken in [four, six] {
            let rest = format!("resolution: DNS\n  addresses: ['{taken}']");
            let moved = allocate(&[
                entry("a", "a.test", "resolution: DNS"),
                entry("z", "z.test", &rest),
            ]);
            assert_ne!(&moved["a.test"][0], four);
            assert_ne!(&moved["a.test"][1], six);
        }
        // Far beyond the square root of the places: many collide by hash.
        let many: Vec<String> = (0..2_000).map(|index| format!("h{index}.test")).collect();
        let found = allocate(&[entry("many", &many.join(", "), "resolution: DNS")]);
        let distinct: HashSet<&String> = found.values().flatten().collect();
        assert_eq!(distinct.len(), 2 * many.len());
    }

    #[test]
    fn places_and_addresses_correspond() {
        for place in [0, 1, 253, 254, PLACES - 1] {
            for text in addresses_of(place) {
                assert_eq!(place_of(text.parse().unwrap()), Some(place), "{text}");
            }
        }
        assert_eq!(addresses_of(0), ["240.240.0.1", "2001:2::f0f0:1"]);
        assert_eq!(
            addresses_of(PLACES - 1),
            ["240.240.255.254", "2001:2::f0f0:fffe"]
        );
        for other in ["240.240.0.0", "240.241.0.1", "2001:2::1", "10.0.0.1"] {
            assert_eq!(place_of(other.parse().unwrap()), None, "{other}");
        }
    }
}
