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

    /// The prefixes that make up the set, as few as there can be.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Block> {
        let v4 = self.v4.iter().map(|(a, b)| (*a, *b));
        let v4 = v4.flat_map(|(a, b)| Block::of_range(a.into(), b.into(), false));
        let v6 = self.v6.iter().map(|(a, b)| (*a, *b));
        v4.chain(v6.flat_map(|(a, b)| Block::of_range(a, b, true)))
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => within(&self.v4, u32::from(ip)),
            IpAddr::V6(ip) => within(&self.v6, u128::from(ip)),
        }
    }
}

/// The addresses that begin with the first `bits` of `network`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Block {
    pub v6: bool,
    pub bits: u8,
    pub network: u128,
}

impl Block {
    const fn width(v6: bool) -> u8 {
        if v6 { 128 } else { 32 }
    }

    /// The block of that size an address is in; [`None`]: it is of the other family.
    pub(super) fn around(ip: IpAddr, v6: bool, bits: u8) -> Option<Block> {
        let address = match (ip.to_canonical(), v6) {
            (IpAddr::V4(ip), false) => u128::from(u32::from(ip)),
            (IpAddr::V6(ip), true) => u128::from(ip),
            _ => return None,
        };
        let hosts = u32::from(Block::width(v6).saturating_sub(bits));
        let above = address.checked_shr(hosts).unwrap_or(0);
        let network = above.checked_shl(hosts).unwrap_or(0);
        Some(Block { v6, bits, network })
    }

    fn of_range(first: u128, last: u128, v6: bool) -> impl Iterator<Item = Block> {
        let width = Block::width(v6);
        let mut rest = Some(first).filter(|first| *first <= last);
        std::iter::from_fn(move || {
            let network = rest?;
            // The largest block that begins here and does not go too far.
            let mut hosts = network.trailing_zeros().min(u32::from(width));
            let end = |hosts: u32| network | u128::MAX.checked_shr(128 - hosts).unwrap_or(0);
            while end(hosts) > last {
                hosts -= 1;
            }
            let next = end(hosts).checked_add(1);
            rest = next.filter(|next| *next <= last);
            let bits = width.saturating_sub(hosts as u8);
            Some(Block { v6, bits, network })
        })
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
        assert_eq!(set.blocks().count(), 4, "one prefix is inside another");
        let all = IpSet::new(&[prefix("0.0.0.0/0")]);
        assert!(all.contains("255.255.255.255".parse().unwrap()));
        assert!(!all.contains("::1".parse().unwrap()));
        assert!(!IpSet::default().contains("::1".parse().unwrap()));
    }

    #[test]
    fn an_address_is_in_a_set_if_a_block_around_it_is_one_of_the_sets() {
        let sets = [
            vec!["0.0.0.0/0"],
            vec!["::/0"],
            vec!["10.0.0.0/8", "11.0.0.0/8", "12.0.0.0/32"],
            vec!["255.255.255.255/32", "10.0.0.1/32", "10.0.0.2/31"],
            vec!["fd00::/8", "fe00::1/128", "ffff::/16"],
        ];
        let ips = [
            "0.0.0.0",
            "10.0.0.0",
            "10.0.0.1",
            "10.0.0.2",
            "10.0.0.3",
            "10.0.0.4",
            "11.255.0.1",
            "12.0.0.0",
            "12.0.0.1",
            "255.255.255.255",
            "::",
            "::ffff:10.0.0.1",
            "fd00::1",
            "fe00::1",
            "fe00::2",
            "ffff:ffff::1",
        ];
        for prefixes in sets {
            let set = IpSet::new(&prefixes.iter().map(|p| prefix(p)).collect::<Vec<_>>());
            let blocks: Vec<Block> = set.blocks().collect();
            for ip in ips.map(|ip| ip.parse::<IpAddr>().unwrap()) {
                let around = |b: &Block| Block::around(ip, b.v6, b.bits) == Some(*b);
                assert_eq!(
                    blocks.iter().any(around),
                    set.contains(ip),
                    "{ip} {prefixes:?}"
                );
            }
        }
        let halves = IpSet::new(&[prefix("10.0.0.0/9"), prefix("10.128.0.0/9")]);
        assert_eq!(halves.blocks().count(), 2, "they only touch");
    }
}
