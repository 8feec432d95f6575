//! Many IP prefixes as sorted ranges: one binary search however many there are.

use crate::CidrRange;
use std::net::IpAddr;

/// Addresses in any of some prefixes. An IPv4-mapped IPv6 address counts as the IPv4 address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IpSet {
    /// First and last address; sorted, and without overlap.
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl IpSet {
    pub fn new(prefixes: &[CidrRange]) -> IpSet {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            let bits = u32::from(prefix.prefix_len);
            match prefix.network {
                IpAddr::V4(network) => {
                    let hosts = u32::MAX.checked_shr(bits).unwrap_or(0);
                    v4.push((u32::from(network), u32::from(network) | hosts));
                }
                IpAddr::V6(network) => {
                    let hosts = u128::MAX.checked_shr(bits).unwrap_or(0);
                    v6.push((u128::from(network), u128::from(network) | hosts));
                }
            }
        }
        IpSet {
            v4: merged(v4),
            v6: merged(v6),
        }
    }

    pub(super) fn union<'s>(sets: impl Iterator<Item = &'s IpSet>) -> IpSet {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for set in sets {
            v4.extend_from_slice(&set.v4);
            v6.extend_from_slice(&set.v6);
        }
        IpSet {
            v4: merged(v4),
            v6: merged(v6),
        }
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => within(&self.v4, u32::from(ip)),
            IpAddr::V6(ip) => within(&self.v6, u128::from(ip)),
        }
    }
}

fn within<N: Ord + Copy>(ranges: &[(N, N)], n: N) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= n);
    after
        .checked_sub(1)
        .and_then(|at| ranges.get(at))
        .is_some_and(|(_, last)| n <= *last)
}

fn merged<N: Ord + Copy>(mut ranges: Vec<(N, N)>) -> Box<[(N, N)]> {
    ranges.sort();
    let mut out: Vec<(N, N)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match out.last_mut() {
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
            _ => out.push((first, last)),
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> CidrRange {
        let (network, prefix_len) = text.split_once('/').unwrap();
        CidrRange {
            network: network.parse().unwrap(),
            prefix_len: prefix_len.parse().unwrap(),
        }
    }

    #[test]
    fn an_address_is_in_a_set_if_it_is_in_one_of_its_prefixes() {
        let prefixes = [
            "10.0.0.0/8",
            "10.1.0.0/16",
            "192.168.1.1/32",
            "fd00::/8",
            "::1/128",
        ];
        let prefixes = prefixes.map(prefix);
        let set = IpSet::new(&prefixes);
        for ip in [
            "9.255.255.255",
            "10.0.0.0",
            "10.1.255.255",
            "10.255.255.255",
            "11.0.0.0",
            "192.168.1.0",
            "192.168.1.1",
            "192.168.1.2",
            "::ffff:10.0.0.1",
            "::1",
            "::2",
            "fcff::",
            "fd00::1",
            "fe00::",
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            let expect = prefixes.iter().any(|prefix| prefix.contains(ip));
            assert_eq!(set.contains(ip), expect, "{ip}");
        }
        let all = IpSet::new(&[prefix("0.0.0.0/0")]);
        assert!(all.contains("255.255.255.255".parse().unwrap()));
        assert!(!all.contains("::1".parse().unwrap()));
        assert!(!IpSet::default().contains("::1".parse().unwrap()));
    }
}
