//! What of a workload's traffic is captured: Istio's annotations `traffic.sidecar.istio.io/...`.

use std::collections::BTreeMap;
use std::net::IpAddr;

const PREFIX: &str = "traffic.sidecar.istio.io/";
const INCLUDE_RANGES: &str = "includeOutboundIPRanges";
const EXCLUDE_RANGES: &str = "excludeOutboundIPRanges";
const INCLUDE_OUTBOUND: &str = "includeOutboundPorts";
const EXCLUDE_OUTBOUND: &str = "excludeOutboundPorts";
const INCLUDE_INBOUND: &str = "includeInboundPorts";
const EXCLUDE_INBOUND: &str = "excludeInboundPorts";
const KNOWN: [&str; 6] = [
    INCLUDE_RANGES,
    EXCLUDE_RANGES,
    INCLUDE_OUTBOUND,
    EXCLUDE_OUTBOUND,
    INCLUDE_INBOUND,
    EXCLUDE_INBOUND,
];

/// What is captured. The default is everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    pub outbound_ranges: Ranges,
    pub outbound_exclude_ranges: Vec<Range>,
    /// Captured whatever the address, unless that is excluded.
    pub outbound_ports: Vec<u16>,
    pub outbound_exclude_ports: Vec<u16>,
    pub inbound_ports: Ports,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            outbound_ranges: Ranges::All,
            outbound_exclude_ranges: Vec::new(),
            outbound_ports: Vec::new(),
            outbound_exclude_ports: Vec::new(),
            inbound_ports: Ports::AllBut(Vec::new()),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    All,
    Only(Vec<Range>),
}

/// A CIDR range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub address: IpAddr,
    pub prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    AllBut(Vec<u16>),
    Only(Vec<u16>),
}

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The annotation's whole name.
    pub annotation: String,
    pub message: String,
    pub remedy: String,
}

impl Parameters {
    /// Reads the annotations; every wrong one is said. Annotations that begin otherwise are not
    /// ours.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Self, Vec<Invalid>> {
        let mut read = Reader {
            annotations,
            wrong: Vec::new(),
        };
        let excluded = read.ports(EXCLUDE_INBOUND);
        let parameters = Self {
            outbound_ranges: match read.is_all(INCLUDE_RANGES) {
                true => Ranges::All,
                false => Ranges::Only(read.ranges(INCLUDE_RANGES)),
            },
            outbound_exclude_ranges: read.ranges(EXCLUDE_RANGES),
            outbound_ports: read.ports(INCLUDE_OUTBOUND),
            outbound_exclude_ports: read.ports(EXCLUDE_OUTBOUND),
            inbound_ports: match read.is_all(INCLUDE_INBOUND) {
                true => Ports::AllBut(excluded),
                false => Ports::Only(read.ports(INCLUDE_INBOUND)),
            },
        };
        for name in annotations.keys() {
            if let Some(rest) = name.strip_prefix(PREFIX)
                && !KNOWN.contains(&rest)
            {
                read.wrong.push(Invalid {
                    annotation: name.clone(),
                    message: format!("the annotation {name:?} has no effect here"),
                    remedy: format!("use one of {} after {PREFIX}", KNOWN.join(", ")),
                });
            }
        }
        match read.wrong.is_empty() {
            true => Ok(parameters),
            false => Err(read.wrong),
        }
    }
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    wrong: Vec<Invalid>,
}

impl Reader<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        let value = self.annotations.get(&format!("{PREFIX}{name}"))?;
        Some(value.trim())
    }

    /// Absent, or said so.
    fn is_all(&self, name: &str) -> bool {
        self.value(name).is_none_or(|value| value == "*")
    }

    fn ports(&mut self, name: &str) -> Vec<u16> {
        let port = |text: &str| text.parse().ok().filter(|port| *port > 0);
        let mut ports = self.list(name, port, "a port", "use numbers from 1 to 65535");
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    fn ranges(&mut self, name: &str) -> Vec<Range> {
        let remedy = "use ranges like 10.0.0.0/8, or 10.1.2.3/32 for one address";
        self.list(name, Range::parse, "a range of addresses", remedy)
    }

    fn list<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Option<T>,
        what: &str,
        remedy: &str,
    ) -> Vec<T> {
        let (mut good, mut wrong) = (Vec::new(), Vec::new());
        let items = self.value(name).unwrap_or_default().split(',');
        for item in items.map(str::trim).filter(|item| !item.is_empty()) {
            match parse(item) {
                Some(value) => good.push(value),
                None => wrong.push(Invalid {
                    annotation: format!("{PREFIX}{name}"),
                    message: format!("{item:?} is not {what}"),
                    remedy: format!("{remedy}, with commas between"),
                }),
            }
        }
        self.wrong.extend(wrong);
        good
    }
}

impl Range {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= longest).then_some(Self { address, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_values_are_said_all_at_once() {
        let annotations = [
            (
                "traffic.sidecar.istio.io/includeOutboundIPRanges",
                "10.0.0.1, 10.0.0.0/33",
            ),
            ("traffic.sidecar.istio.io/excludeInboundPorts", "0,80,http"),
            ("traffic.sidecar.istio.io/includeInbound", "80"),
            ("example.com/other", "anything"),
        ];
        let annotations = annotations
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let wrong = Parameters::from_annotations(&annotations.collect()).unwrap_err();
        let said: Vec<&str> = wrong.iter().map(|w| w.message.as_str()).collect();
        assert_eq!(
            said,
            [
                "\"0\" is not a port",
                "\"http\" is not a port",
                "\"10.0.0.1\" is not a range of addresses",
                "\"10.0.0.0/33\" is not a range of addresses",
                "the annotation \"traffic.sidecar.istio.io/includeInbound\" has no effect here",
            ]
        );
        assert_eq!(
            Parameters::from_annotations(&BTreeMap::new()),
            Ok(Parameters::default())
        );
    }
}
