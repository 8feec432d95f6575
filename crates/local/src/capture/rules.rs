//! The packet filter rules of one workload's namespace, as text for `nft -f`. Pure.
//!
//! They do what Istio's iptables rules do (`tools/istio-iptables/pkg/capture`), chain by chain:
//!
//! | here | Istio | what |
//! |---|---|---|
//! | `inbound` | `ISTIO_INBOUND` | connections from outside go to port 15006 |
//! | `outbound` | `ISTIO_OUTPUT` | connections of the application go to port 15001 |
//! | `outbound_dns` | `ISTIO_OUTPUT_DNS` | questions about names go to port 15053 |
//! | `zones_*` | table `raw` | the proxy's own questions are tracked apart from the application's |
//!
//! What the proxy (uid or gid 1337) sends is never redirected, except to itself: a call of the
//! application to its own service comes back through the inbound listener. What the application
//! sends over loopback is its own business. Two things are ours: the admin port is only for the
//! machine that runs the mesh, and readiness is asked on a port of its own, past the proxy, as
//! Istio's agent rewrites probes.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use super::parameters::{Parameters, Ports, Ranges};

/// User and group of the proxy.
pub const PROXY_ID: u32 = 1337;
/// Where the proxy takes the application's connections.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where the proxy takes connections from outside.
pub const INBOUND_PORT: u16 = 15006;
/// Where the proxy answers questions about names.
pub const DNS_PORT: u16 = 15053;
/// The proxy's admin interface.
pub const ADMIN_PORT: u16 = 15000;
/// Tunnels end at the proxy itself.
const TUNNEL_PORT: u16 = 15008;
/// Ports of the proxy that take part in no mesh: admin, agent, readiness, metrics.
const OWN_PORTS: [u16; 4] = [ADMIN_PORT, 15020, 15021, 15090];
/// Source address of the proxy when it connects to its own application.
const INBOUND_SOURCE: [&str; 2] = ["ip saddr 127.0.0.6", "ip6 saddr ::6"];
const NOT_LOOPBACK: [&str; 2] = ["ip daddr != 127.0.0.1", "ip6 daddr != ::1"];

/// Which ports of a workload cannot be an application's.
pub fn is_reserved(port: u16) -> bool {
    let ours = [
        OUTBOUND_PORT,
        INBOUND_PORT,
        DNS_PORT,
        TUNNEL_PORT,
        PROBE_PORT,
    ];
    ours.contains(&port) || OWN_PORTS.contains(&port)
}

/// Readiness is asked here.
pub const PROBE_PORT: u16 = 15905;

/// What of a namespace is not the person's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surroundings {
    /// The machine that runs the mesh, as the namespace sees it.
    pub host: Ipv4Addr,
    /// The application's port that readiness is asked of.
    pub probe: Option<u16>,
    /// Names are resolved by the proxy.
    pub dns: bool,
}

/// The table, ready for `nft -f`.
pub fn table(parameters: &Parameters, around: &Surroundings) -> String {
    let mut text = String::from("table inet lateen {\n");
    let mut chain = |name: &str, rules: Vec<String>| {
        let _ = writeln!(text, "  chain {name} {{");
        for rule in rules {
            let _ = writeln!(text, "    {rule}");
        }
        text.push_str("  }\n");
    };
    let to = |port: u16| vec![format!("meta l4proto tcp redirect to :{port}")];
    chain("to_inbound", to(INBOUND_PORT));
    chain("to_outbound", to(OUTBOUND_PORT));
    chain("inbound", inbound(&parameters.inbound_ports));
    if around.dns {
        chain("outbound_dns", outbound_dns());
    }
    chain("outbound", outbound(parameters, around.dns));
    let nat = |hook: &str, rest: Vec<String>| {
        let head = format!("type nat hook {hook} priority -100; policy accept;");
        [vec![head], rest].concat()
    };
    let probe = around.probe.map(|port| {
        let host = around.host;
        format!("ip saddr {host} tcp dport {PROBE_PORT} redirect to :{port}")
    });
    let inbound = probe
        .into_iter()
        .chain(["meta l4proto tcp jump inbound".to_owned()]);
    chain("prerouting", nat("prerouting", inbound.collect()));
    let jump = match around.dns {
        true => "jump outbound",
        false => "meta l4proto tcp jump outbound",
    };
    chain("output", nat("output", vec![jump.to_owned()]));
    if around.dns {
        let raw = |hook: &str, rest: Vec<String>| {
            let head = format!("type filter hook {hook} priority -300; policy accept;");
            [vec![head], rest].concat()
        };
        chain("zones_output", raw("output", zones_of_own()));
        let answers = vec!["udp sport 53 ct zone set 1".to_owned()];
        chain("zones_prerouting", raw("prerouting", answers));
    }
    let admin = vec![
        "type filter hook input priority 0; policy accept;".to_owned(),
        format!(
            "iifname != \"lo\" ip saddr != {} tcp dport {ADMIN_PORT} reject with tcp reset",
            around.host
        ),
    ];
    chain("input", admin);
    text.push_str("}\n");
    text
}

/// Everything but what is excluded, or only what is included: then exclusions mean nothing.
fn inbound(ports: &Ports) -> Vec<String> {
    let mut rules = vec![format!("tcp dport {TUNNEL_PORT} return")];
    match ports {
        Ports::AllBut(excluded) => {
            let mut excluded: Vec<u16> = OWN_PORTS.iter().chain(excluded).copied().collect();
            excluded.sort_unstable();
            excluded.dedup();
            rules.push(format!("tcp dport {} return", set(&excluded)));
            rules.push("meta l4proto tcp jump to_inbound".to_owned());
        }
        Ports::Only(included) if included.is_empty() => {}
        Ports::Only(included) => {
            rules.push(format!("tcp dport {} jump to_inbound", set(included)));
        }
    }
    rules
}

fn outbound(parameters: &Parameters, dns: bool) -> Vec<String> {
    let Parameters {
        outbound_ranges,
        outbound_exclude_ranges,
        outbound_ports,
        outbound_exclude_ports,
        inbound_ports: _,
    } = parameters;
    let mut rules = Vec::new();
    if !outbound_exclude_ports.is_empty() {
        rules.push(format!("tcp dport {} return", set(outbound_exclude_ports)));
    }
    rules.extend(INBOUND_SOURCE.map(|source| format!("oifname \"lo\" {source} return")));
    let loopback_is_captured =
        matches!(outbound_ranges, Ranges::Only(ranges) if ranges.iter().any(|r| r.is_loopback()));
    for owner in ["skuid", "skgid"] {
        // The application called its own service: from the proxy to the proxy. Questions about
        // names must not take that way.
        let ports = match (dns, owner) {
            (true, "skuid") => format!("tcp dport != {}", set(&[53, TUNNEL_PORT])),
            _ => format!("tcp dport != {TUNNEL_PORT}"),
        };
        rules.extend(NOT_LOOPBACK.map(|away| {
            format!("oifname \"lo\" {away} {ports} meta {owner} {PROXY_ID} jump to_inbound")
        }));
        if !loopback_is_captured {
            let ports = if dns { "tcp dport != 53 " } else { "" };
            rules.push(format!(
                "oifname \"lo\" {ports}meta {owner} != {PROXY_ID} return"
            ));
        }
        rules.push(format!("meta {owner} {PROXY_ID} return"));
    }
    if dns {
        rules.push("jump outbound_dns".to_owned());
    }
    rules.push("ip daddr 127.0.0.1 return".to_owned());
    rules.push("ip6 daddr ::1 return".to_owned());
    rules.extend(
        outbound_exclude_ranges
            .iter()
            .map(|r| format!("{} return", r.destination())),
    );
    if !outbound_ports.is_empty() {
        rules.push(format!(
            "tcp dport {} jump to_outbound",
            set(outbound_ports)
        ));
    }
    match outbound_ranges {
        Ranges::All => rules.push("meta l4proto tcp jump to_outbound".to_owned()),
        Ranges::Only(ranges) => {
            let jump = |r: &super::parameters::Range| {
                format!("{} meta l4proto tcp jump to_outbound", r.destination())
            };
            rules.extend(ranges.iter().map(jump));
        }
    }
    rules
}

/// The proxy asks the real servers; everybody else asks the proxy, whatever server they name.
fn outbound_dns() -> Vec<String> {
    vec![
        format!("tcp dport 53 redirect to :{DNS_PORT}"),
        format!("udp dport 53 meta skuid {PROXY_ID} return"),
        format!("udp dport 53 meta skgid {PROXY_ID} return"),
        format!("udp dport 53 redirect to :{DNS_PORT}"),
    ]
}

/// Zone 1 is between the proxy and the servers, zone 2 between the application and the proxy: with
/// one table, two questions with the same ports would be one connection.
fn zones_of_own() -> Vec<String> {
    let owned = ["skuid", "skgid"].iter().flat_map(|owner| {
        [
            format!("udp dport 53 meta {owner} {PROXY_ID} ct zone set 1 return"),
            format!("udp sport {DNS_PORT} meta {owner} {PROXY_ID} ct zone set 2 return"),
        ]
    });
    owned
        .chain(["udp dport 53 ct zone set 2".to_owned()])
        .collect()
}

fn set(ports: &[u16]) -> String {
    match ports {
        [only] => only.to_string(),
        many => {
            let many: Vec<String> = many.iter().map(u16::to_string).collect();
            format!("{{ {} }}", many.join(", "))
        }
    }
}

impl super::parameters::Range {
    fn destination(&self) -> String {
        match self.address {
            IpAddr::V4(address) => format!("ip daddr {address}/{}", self.prefix),
            IpAddr::V6(address) => format!("ip6 daddr {address}/{}", self.prefix),
        }
    }

    fn is_loopback(&self) -> bool {
        self.address.is_loopback()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use expect_test::{Expect, expect};

    use super::*;

    const AROUND: Surroundings = Surroundings {
        host: Ipv4Addr::new(10, 77, 0, 1),
        probe: None,
        dns: false,
    };

    fn parameters(annotations: &[(&str, &str)]) -> Parameters {
        let annotations = annotations.iter().map(|(name, value)| {
            let name = format!("traffic.sidecar.istio.io/{name}");
            (name, (*value).to_owned())
        });
        Parameters::from_annotations(&annotations.collect::<BTreeMap<_, _>>()).unwrap()
    }

    /// The rules of one chain.
    fn chain(text: &str, name: &str) -> String {
        let head = format!("  chain {name} {{\n");
        let (_, rest) = text.split_once(&head).unwrap_or_else(|| panic!("{text}"));
        let (rules, _) = rest.split_once("  }\n").unwrap();
        rules
            .lines()
            .map(|line| format!("{}\n", line.trim()))
            .collect()
    }

    fn check(annotations: &[(&str, &str)], name: &str, expect: Expect) {
        expect.assert_eq(&chain(&table(&parameters(annotations), &AROUND), name));
    }

    // What follows corresponds to the files of tools/istio-iptables/pkg/capture/testdata.

    #[test]
    fn without_annotations_everything_is_captured() {
        check(
            &[],
            "inbound",
            expect![[r#"
            tcp dport 15008 return
            tcp dport { 15000, 15020, 15021, 15090 } return
            meta l4proto tcp jump to_inbound
        "#]],
        );
        check(
            &[],
            "outbound",
            expect![[r#"
            oifname "lo" ip saddr 127.0.0.6 return
            oifname "lo" ip6 saddr ::6 return
            oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skuid 1337 jump to_inbound
            oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skuid 1337 jump to_inbound
            oifname "lo" meta skuid != 1337 return
            meta skuid 1337 return
            oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skgid 1337 jump to_inbound
            oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skgid 1337 jump to_inbound
            oifname "lo" meta skgid != 1337 return
            meta skgid 1337 return
            ip daddr 127.0.0.1 return
            ip6 daddr ::1 return
            meta l4proto tcp jump to_outbound
        "#]],
        );
    }

    #[test]
    fn inbound_ports_are_all_but_some_or_only_some() {
        check(
            &[("excludeInboundPorts", "22, 15021,8080")],
            "inbound",
            expect![[r#"
                tcp dport 15008 return
                tcp dport { 22, 8080, 15000, 15020, 15021, 15090 } return
                meta l4proto tcp jump to_inbound
            "#]],
        );
        let only = [
            ("includeInboundPorts", "80,443"),
            ("excludeInboundPorts", "80"),
        ];
        check(
            &only,
            "inbound",
            expect![[r#"
            tcp dport 15008 return
            tcp dport { 80, 443 } jump to_inbound
        "#]],
        );
        check(
            &[("includeInboundPorts", "")],
            "inbound",
            expect![[r#"
            tcp dport 15008 return
        "#]],
        );
    }

    #[test]
    fn outbound_ranges_and_ports_are_included_and_excluded_in_istios_order() {
        let all = [
            ("includeOutboundIPRanges", "9.9.0.0/16,fd00::/8"),
            ("excludeOutboundIPRanges", "1.1.0.0/16"),
            ("includeOutboundPorts", "32000"),
            ("excludeOutboundPorts", "7777,8888"),
        ];
        check(
            &all,
            "outbound",
            expect![[r#"
            tcp dport { 7777, 8888 } return
            oifname "lo" ip saddr 127.0.0.6 return
            oifname "lo" ip6 saddr ::6 return
            oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skuid 1337 jump to_inbound
            oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skuid 1337 jump to_inbound
            oifname "lo" meta skuid != 1337 return
            meta skuid 1337 return
            oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skgid 1337 jump to_inbound
            oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skgid 1337 jump to_inbound
            oifname "lo" meta skgid != 1337 return
            meta skgid 1337 return
            ip daddr 127.0.0.1 return
            ip6 daddr ::1 return
            ip daddr 1.1.0.0/16 return
            tcp dport 32000 jump to_outbound
            ip daddr 9.9.0.0/16 meta l4proto tcp jump to_outbound
            ip6 daddr fd00::/8 meta l4proto tcp jump to_outbound
        "#]],
        );
        let none = [
            ("includeOutboundIPRanges", ""),
            ("includeOutboundPorts", "32000,31000"),
        ];
        check(
            &none,
            "outbound",
            expect![[r#"
            oifname "lo" ip saddr 127.0.0.6 return
            oifname "lo" ip6 saddr ::6 return
            oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skuid 1337 jump to_inbound
            oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skuid 1337 jump to_inbound
            oifname "lo" meta skuid != 1337 return
            meta skuid 1337 return
            oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skgid 1337 jump to_inbound
            oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skgid 1337 jump to_inbound
            oifname "lo" meta skgid != 1337 return
            meta skgid 1337 return
            ip daddr 127.0.0.1 return
            ip6 daddr ::1 return
            tcp dport { 31000, 32000 } jump to_outbound
        "#]],
        );
    }

    #[test]
    fn loopback_is_captured_when_a_range_names_it() {
        check(
            &[("includeOutboundIPRanges", "127.1.2.3/32")],
            "outbound",
            expect![[r#"
                oifname "lo" ip saddr 127.0.0.6 return
                oifname "lo" ip6 saddr ::6 return
                oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skuid 1337 jump to_inbound
                oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skuid 1337 jump to_inbound
                meta skuid 1337 return
                oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skgid 1337 jump to_inbound
                oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skgid 1337 jump to_inbound
                meta skgid 1337 return
                ip daddr 127.0.0.1 return
                ip6 daddr ::1 return
                ip daddr 127.1.2.3/32 meta l4proto tcp jump to_outbound
            "#]],
        );
    }

    #[test]
    fn questions_about_names_go_to_the_proxy_and_its_own_do_not() {
        let around = Surroundings {
            dns: true,
            probe: Some(9080),
            ..AROUND
        };
        let text = table(&parameters(&[]), &around);
        expect![[r#"
            table inet lateen {
              chain to_inbound {
                meta l4proto tcp redirect to :15006
              }
              chain to_outbound {
                meta l4proto tcp redirect to :15001
              }
              chain inbound {
                tcp dport 15008 return
                tcp dport { 15000, 15020, 15021, 15090 } return
                meta l4proto tcp jump to_inbound
              }
              chain outbound_dns {
                tcp dport 53 redirect to :15053
                udp dport 53 meta skuid 1337 return
                udp dport 53 meta skgid 1337 return
                udp dport 53 redirect to :15053
              }
              chain outbound {
                oifname "lo" ip saddr 127.0.0.6 return
                oifname "lo" ip6 saddr ::6 return
                oifname "lo" ip daddr != 127.0.0.1 tcp dport != { 53, 15008 } meta skuid 1337 jump to_inbound
                oifname "lo" ip6 daddr != ::1 tcp dport != { 53, 15008 } meta skuid 1337 jump to_inbound
                oifname "lo" tcp dport != 53 meta skuid != 1337 return
                meta skuid 1337 return
                oifname "lo" ip daddr != 127.0.0.1 tcp dport != 15008 meta skgid 1337 jump to_inbound
                oifname "lo" ip6 daddr != ::1 tcp dport != 15008 meta skgid 1337 jump to_inbound
                oifname "lo" tcp dport != 53 meta skgid != 1337 return
                meta skgid 1337 return
                jump outbound_dns
                ip daddr 127.0.0.1 return
                ip6 daddr ::1 return
                meta l4proto tcp jump to_outbound
              }
              chain prerouting {
                type nat hook prerouting priority -100; policy accept;
                ip saddr 10.77.0.1 tcp dport 15905 redirect to :9080
                meta l4proto tcp jump inbound
              }
              chain output {
                type nat hook output priority -100; policy accept;
                jump outbound
              }
              chain zones_output {
                type filter hook output priority -300; policy accept;
                udp dport 53 meta skuid 1337 ct zone set 1 return
                udp sport 15053 meta skuid 1337 ct zone set 2 return
                udp dport 53 meta skgid 1337 ct zone set 1 return
                udp sport 15053 meta skgid 1337 ct zone set 2 return
                udp dport 53 ct zone set 2
              }
              chain zones_prerouting {
                type filter hook prerouting priority -300; policy accept;
                udp sport 53 ct zone set 1
              }
              chain input {
                type filter hook input priority 0; policy accept;
                iifname != "lo" ip saddr != 10.77.0.1 tcp dport 15000 reject with tcp reset
              }
            }
        "#]].assert_eq(&text);
    }
}
