//! Consistent hashing: a ring (Ketama) and Maglev's table, built as Envoy builds them, so that the
//! same request goes to the same endpoint through either proxy.

use super::Host;
use lateen_proxy_config::HashKey;
use std::io::Write;
use std::rc::Rc;
use xxhash_rust::xxh64::xxh64;

/// Places on a ring, by hash.
#[derive(Debug)]
pub(super) struct Ring(Vec<(u64, u32)>);

impl Ring {
    /// `weights` add up to 1. The last numbers are how many places there are at least and at most.
    pub(super) fn new(
        hosts: &[Rc<Host>],
        weights: &[f64],
        (minimum, maximum): (u64, u64),
        key: HashKey,
    ) -> Ring {
        let least = weights.iter().copied().fold(1.0, f64::min);
        if hosts.is_empty() || least <= 0.0 {
            return Ring(Vec::new());
        }
        // The lightest endpoint gets a whole number of places.
        let scale = ((least * minimum as f64).ceil() / least).min(maximum as f64);
        let mut places = Vec::with_capacity(scale.ceil() as usize);
        let (mut current, mut target) = (0.0, 0.0);
        let mut text = Vec::new();
        for (index, (host, weight)) in hosts.iter().zip(weights).enumerate() {
            text.clear();
            write_key(host, key, &mut text);
            text.push(b'_');
            let prefix = text.len();
            target += scale * weight;
            let mut number = 0u64;
            while current < target {
                text.truncate(prefix);
                let _ = write!(text, "{number}");
                places.push((xxh64(&text, 0), index as u32));
                number += 1;
                current += 1.0;
            }
        }
        places.sort_by_key(|(hash, _)| *hash);
        Ring(places)
    }

    /// The first place at or after the hash.
    pub(super) fn pick(&self, hash: u64, attempt: u32) -> Option<usize> {
        let at = self.0.partition_point(|(place, _)| *place < hash);
        let at = (at + attempt as usize).checked_rem(self.0.len())?;
        self.0.get(at).map(|(_, index)| *index as usize)
    }
}

/// For each remainder of a hash an endpoint.
#[derive(Debug)]
pub(super) struct Maglev(Box<[u32]>);

/// The order in which an endpoint takes places in the table.
struct Permutation {
    index: u32,
    offset: u64,
    skip: u64,
    weight: f64,
    target: f64,
    next: u64,
}

impl Maglev {
    pub(super) fn new(
        hosts: &[Rc<Host>],
        weights: &[f64],
        table_size: u32,
        key: HashKey,
    ) -> Maglev {
        const FREE: u32 = u32::MAX;
        let size = u64::from(table_size);
        let heaviest = weights.iter().copied().fold(0.0, f64::max);
        let least = weights.iter().copied().fold(1.0, f64::min);
        // An endpoint without a share would never take its place.
        if hosts.is_empty() || least <= 0.0 || heaviest <= 0.0 || size < 2 {
            return Maglev(Box::default());
        }
        let mut permutations: Vec<(Vec<u8>, Permutation)> = hosts
            .iter()
            .zip(weights)
            .enumerate()
            .map(|(index, (host, weight))| {
                let mut text = Vec::new();
                write_key(host, key, &mut text);
                let permutation = Permutation {
                    index: index as u32,
                    offset: xxh64(&text, 0) % size,
                    skip: xxh64(&text, 1) % (size - 1) + 1,
                    weight: *weight,
                    target: 0.0,
                    next: 0,
                };
                (text, permutation)
            })
            .collect();
        // The order of the endpoints must not matter.
        permutations.sort_by(|a, b| a.0.cmp(&b.0));
        let mut table = vec![FREE; table_size as usize];
        let mut left = table.len();
        let mut round = 0.0;
        while left > 0 {
            round += 1.0;
            for (_, one) in &mut permutations {
                if left == 0 {
                    break;
                }
                // The heaviest takes a place in every round.
                if round * one.weight < one.target {
                    continue;
                }
                one.target += heaviest;
                let place = loop {
                    let at = (one.offset + one.skip * one.next) % size;
                    one.next += 1;
                    if let Some(place) = table.get_mut(at as usize).filter(|p| **p == FREE) {
                        break place;
                    }
                };
                *place = one.index;
                left -= 1;
            }
        }
        Maglev(table.into())
    }

    pub(super) fn pick(&self, hash: u64, attempt: u32) -> Option<usize> {
        let hash = match attempt {
            0 => hash,
            attempt => hash ^ (u64::MAX - u64::from(attempt) + 1),
        };
        let at = hash.checked_rem(self.0.len() as u64)?;
        self.0.get(at as usize).map(|index| *index as usize)
    }
}

fn write_key(host: &Host, key: HashKey, text: &mut Vec<u8>) {
    match key {
        HashKey::Hostname if !host.hostname.is_empty() => {
            text.extend_from_slice(host.hostname.as_bytes());
        }
        // Writing to memory cannot fail.
        _ => drop(write!(text, "{}", host.address)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(count: u16) -> Vec<Rc<Host>> {
        let host = |i| Host::new(([127, 0, 0, 1], 90 + i).into(), Box::default());
        (0..count).map(host).collect()
    }

    fn shares(picks: impl Iterator<Item = usize>, count: usize) -> Vec<usize> {
        let mut shares = vec![0; count];
        picks.for_each(|index| shares[index] += 1);
        shares
    }

    #[test]
    fn a_ring_has_places_by_weight_and_a_hash_beyond_the_last_comes_to_the_first() {
        let hosts = hosts(3);
        let ring = Ring::new(&hosts, &[0.25, 0.5, 0.25], (8, 1 << 20), HashKey::Address);
        let shares = shares(ring.0.iter().map(|(_, index)| *index as usize), 3);
        assert_eq!(shares, [2, 4, 2]);
        let first = ring.0[0];
        assert_eq!(ring.pick(u64::MAX, 0), Some(first.1 as usize));
        assert_eq!(ring.pick(first.0, 0), Some(first.1 as usize));
        assert_eq!(ring.pick(first.0 + 1, 0), Some(ring.0[1].1 as usize));
        // Places are the hashes of the address with a number behind it.
        let place = xxh64(b"127.0.0.1:90_0", 0);
        assert_eq!(ring.pick(place, 0), Some(0));
    }

    #[test]
    fn few_places_move_when_an_endpoint_goes() {
        let all = hosts(5);
        let fewer = &all[..4];
        let (five, four) = ([0.2; 5], [0.25; 4]);
        let rings = [
            Ring::new(&all, &five, (1024, 1 << 20), HashKey::Address),
            Ring::new(fewer, &four, (1024, 1 << 20), HashKey::Address),
        ];
        let tables = [
            Maglev::new(&all, &five, 65_537, HashKey::Address),
            Maglev::new(fewer, &four, 65_537, HashKey::Address),
        ];
        let hashes = (0u64..2000).map(|n| xxh64(&n.to_le_bytes(), 0));
        let (mut ring, mut table, mut stayed) = (0, 0, [0, 0]);
        for hash in hashes {
            let before = rings[0].pick(hash, 0).unwrap();
            if before < 4 {
                stayed[0] += 1;
                ring += usize::from(rings[1].pick(hash, 0) != Some(before));
            }
            let before = tables[0].pick(hash, 0).unwrap();
            if before < 4 {
                stayed[1] += 1;
                table += usize::from(tables[1].pick(hash, 0) != Some(before));
            }
        }
        // The ring of four has more places for each, which move a little.
        assert!(ring * 4 < stayed[0], "{ring} of {}", stayed[0]);
        assert!(table * 10 < stayed[1], "{table} of {}", stayed[1]);
    }

    #[test]
    fn a_table_is_full_and_shared_by_weight_whatever_the_order() {
        let hosts = hosts(3);
        let table = Maglev::new(&hosts, &[0.25, 0.25, 0.5], 65_537, HashKey::Address);
        let counts = shares(table.0.iter().map(|index| *index as usize), 3);
        assert_eq!(counts.iter().sum::<usize>(), 65_537);
        assert!(counts[2].abs_diff(2 * counts[0]) < 10, "{counts:?}");
        let turned: Vec<_> = hosts.iter().rev().cloned().collect();
        let same = Maglev::new(&turned, &[0.5, 0.25, 0.25], 65_537, HashKey::Address);
        for hash in (0..1000u64).map(|n| n * 7_919) {
            let host =
                |hosts: &[Rc<Host>], table: &Maglev| hosts[table.pick(hash, 0).unwrap()].address;
            assert_eq!(host(&hosts, &table), host(&turned, &same));
        }
    }
}
