//! The addresses of one mesh: a /16 of which the lower half is for workloads and the machine, the
//! upper half for services.

use std::net::Ipv4Addr;

/// Second octets of the ranges 10.N.0.0/16 to choose from.
const CANDIDATES: std::ops::Range<u8> = 77..127;
/// Length of the prefix of either half.
pub const HALF: u8 = 17;
/// Places in either half, without the first and the last.
const PLACES: u16 = 0x7ffe;

/// The range of a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    second: u8,
}

/// A range that is in use: address and length of the prefix.
pub type Occupied = (Ipv4Addr, u8);

impl Network {
    /// The first free range, beginning at one that differs from mesh to mesh.
    pub fn choose(begin: u32, occupied: &[Occupied]) -> Option<Self> {
        let count = u32::try_from(CANDIDATES.len()).unwrap_or(1);
        let start = usize::try_from(begin % count).unwrap_or_default();
        let order = CANDIDATES.skip(start).chain(CANDIDATES.take(start));
        order.map(|second| Self { second }).find(|network| {
            let own = (network.at(0), 16);
            !occupied.iter().any(|other| overlap(own, *other))
        })
    }

    /// The machine that runs the mesh, as its workloads see it.
    pub fn host(self) -> Ipv4Addr {
        self.at(1)
    }

    /// The address of the workload with this index.
    pub fn workload(self, index: usize) -> Option<Ipv4Addr> {
        let index = u16::try_from(index).ok()?.checked_add(2)?;
        (index <= PLACES).then(|| self.at(index))
    }

    /// The virtual address of the service with this index.
    pub fn service(self, index: usize) -> Option<Ipv4Addr> {
        let index = u16::try_from(index).ok()?.checked_add(1)?;
        (index <= PLACES).then(|| self.at(0x8000 | index))
    }

    /// The range of workloads, as packet filter rules write it.
    pub fn workloads(self) -> String {
        format!("{}/{HALF}", self.at(0))
    }

    /// The range of services.
    pub fn services(self) -> String {
        format!("{}/{HALF}", self.at(0x8000))
    }

    fn at(self, place: u16) -> Ipv4Addr {
        let [third, fourth] = place.to_be_bytes();
        Ipv4Addr::new(10, self.second, third, fourth)
    }
}

fn overlap(a: Occupied, b: Occupied) -> bool {
    let shift = 32 - u32::from(a.1.min(b.1).min(32));
    // A default route covers everything and occupies nothing.
    let wide = a.1 == 0 || b.1 == 0;
    !wide && a.0.to_bits() >> shift == b.0.to_bits() >> shift
}

/// The ranges in what `ip -4 -o route show table all` prints, except those of one interface.
pub fn occupied(routes: &str, except: &str) -> Vec<Occupied> {
    let lines = routes.lines().filter_map(|line| {
        let mut words = line.split_whitespace().peekable();
        let kinds = [
            "local",
            "broadcast",
            "unicast",
            "unreachable",
            "blackhole",
            "prohibit",
        ];
        words.next_if(|word| kinds.contains(word));
        let range = words.next()?;
        let rest: Vec<&str> = words.collect();
        if rest.windows(2).any(|pair| pair == ["dev", except]) {
            return None;
        }
        let (address, prefix) = range.split_once('/').unwrap_or((range, "32"));
        Some((address.parse().ok()?, prefix.parse().ok()?))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "\
default via 192.0.2.1 dev eth0 \n\
10.77.3.0/24 dev docker0 proto kernel scope link src 10.77.3.1 \n\
10.78.0.0/17 dev lateen0 proto kernel scope link src 10.78.0.1 \n\
local 10.79.0.1 dev tun0 table local proto kernel scope host src 10.79.0.1 \n\
unreachable 10.80.0.0/15 metric 1024\n\
local 127.0.0.0/8 dev lo table local proto kernel scope host src 127.0.0.1 \n";

    #[test]
    fn a_range_is_free_when_no_route_touches_it() {
        let check = |begin, except: &str, expect: Option<[u8; 4]>| {
            let network = Network::choose(begin, &occupied(ROUTES, except));
            assert_eq!(
                network.map(Network::host),
                expect.map(Ipv4Addr::from),
                "{begin} {except}"
            );
        };
        check(0, "lateen0", Some([10, 78, 0, 1]));
        check(0, "", Some([10, 82, 0, 1]));
        check(49, "", Some([10, 126, 0, 1]));
        check(50, "docker0", Some([10, 77, 0, 1]));
        let all = [("10.0.0.0".parse().unwrap(), 8)];
        assert_eq!(Network::choose(0, &all), None);
        let default = [("0.0.0.0".parse().unwrap(), 0)];
        assert!(Network::choose(0, &default).is_some());
    }

    #[test]
    fn workloads_and_services_have_a_half_each() {
        let network = Network::choose(0, &[]).unwrap();
        let text = |address: Option<Ipv4Addr>| address.map(|a| a.to_string()).unwrap_or_default();
        assert_eq!(text(network.workload(0)), "10.77.0.2");
        assert_eq!(text(network.workload(0x7ffc)), "10.77.127.254");
        assert_eq!(text(network.workload(0x7ffd)), "");
        assert_eq!(text(network.service(0)), "10.77.128.1");
        assert_eq!(text(network.service(0x7ffd)), "10.77.255.254");
        assert_eq!(text(network.service(0x7ffe)), "");
        assert_eq!(
            (network.workloads(), network.services()),
            ("10.77.0.0/17".into(), "10.77.128.0/17".into())
        );
    }
}
