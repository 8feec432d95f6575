//! What `/etc/resolv.conf` says in a namespace: Kubernetes' search domains, and the servers that
//! the proxy forwards to. Whatever server the application asks, the question is led to the proxy.

use std::net::Ipv4Addr;

/// The first server of the application when the machine has none that a namespace can reach.
const NOBODY: &str = "127.0.0.1";
/// resolv.conf(5): more are ignored.
const MOST_SERVERS: usize = 3;

/// The servers of a `resolv.conf` that a namespace can reach: a server on this machine's loopback
/// is none.
pub fn reachable_servers(resolv_conf: &str) -> Vec<Ipv4Addr> {
    let words = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next())?
    });
    let servers = words.filter_map(|word| word.parse().ok());
    servers
        .filter(|server: &Ipv4Addr| !server.is_loopback() && !server.is_unspecified())
        .take(MOST_SERVERS)
        .collect()
}

/// The file for workloads of a namespace of the mesh.
pub fn resolv_conf(namespace: &str, servers: &[Ipv4Addr]) -> String {
    let mut text =
        format!("search {namespace}.svc.cluster.local svc.cluster.local cluster.local\n");
    if servers.is_empty() {
        text.push_str(&format!("nameserver {NOBODY}\n"));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_on_loopback_cannot_be_reached_from_a_namespace() {
        let text = "# local\nnameserver 127.0.0.53\n nameserver 9.9.9.9 # quad\nnameserver fd00::1\n\
                    search example.com\nnameserver\nnameserver 1.1.1.1\noptions edns0\n";
        let servers = reachable_servers(text);
        assert_eq!(
            servers,
            [Ipv4Addr::new(9, 9, 9, 9), Ipv4Addr::new(1, 1, 1, 1)]
        );
        assert_eq!(
            resolv_conf("shop", &servers),
            "search shop.svc.cluster.local svc.cluster.local cluster.local\n\
             nameserver 9.9.9.9\nnameserver 1.1.1.1\n"
        );
        assert!(resolv_conf("shop", &[]).ends_with("\nnameserver 127.0.0.1\n"));
    }
}
