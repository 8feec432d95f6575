//! The packet filter rules in real network namespaces, with plain listeners in the place of the
//! proxy. Needs root; without it the test says that it did not run.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use lateen_local::capture::Parameters;
use lateen_local::capture::rules::{self, Surroundings};
use lateen_testkit::tools;
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

const PATIENCE: Duration = Duration::from_secs(20);
/// The workload, and a machine beside it that has the other addresses.
const WORKLOAD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const PROBING: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 3);
const OTHERS: [Ipv4Addr; 2] = [Ipv4Addr::new(9, 9, 1, 1), Ipv4Addr::new(1, 1, 2, 2)];
/// Users: the proxy's and an application's.
const PROXY: u32 = rules::PROXY_ID;
const APP: u32 = 65_534;

/// A network namespace that ends with the test.
#[derive(Clone)]
struct Net(Arc<File>);

impl Net {
    fn new() -> Option<Self> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).ok()?;
            File::open("/proc/thread-self/ns/net").ok()
        });
        Some(Self(Arc::new(made.join().unwrap()?)))
    }

    /// Does `work` in the namespace, as a user. Sockets keep both.
    fn within<T: Send>(&self, user: u32, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&*self.0, CloneFlags::CLONE_NEWNET).unwrap();
                // Of this thread only; it is what the rules look at.
                setfsgid(Gid::from_raw(user));
                setfsuid(Uid::from_raw(user));
                work()
            });
            thread.join().unwrap()
        })
    }

    fn run(&self, program: &str, args: &[&str], input: &str) {
        self.within(0, || {
            let mut child = Command::new(program)
                .args(args)
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(input.as_bytes())
                .unwrap();
            assert!(
                child.wait().unwrap().success(),
                "{program} {args:?}:\n{input}"
            );
        });
    }

    /// Answers every connection with a name and where the connection was going.
    fn listen(&self, name: &'static str, user: u32, address: &str) {
        let listener = self.within(user, || TcpListener::bind(address).unwrap());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let original = socket2::SockRef::from(&stream).original_dst_v4();
                let original = original.ok().and_then(|to| to.as_socket());
                let to = original.or(stream.local_addr().ok()).unwrap();
                let _ = write!(stream, "{name} {to}");
            }
        });
    }

    fn listen_udp(&self, name: &'static str, user: u32, address: &str) {
        let socket = self.within(user, || UdpSocket::bind(address).unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, client)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), client);
            }
        });
    }

    /// Who answers a connection of this user, or why nobody does.
    fn ask(&self, user: u32, from: Option<Ipv4Addr>, to: SocketAddr) -> String {
        self.within(user, || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let socket = socket.unwrap();
            if let Some(from) = from {
                socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
            }
            if let Err(error) = socket.connect_timeout(&to.into(), PATIENCE) {
                return error.kind().to_string();
            }
            let mut stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
    }

    fn ask_udp(&self, user: u32, to: SocketAddr) -> String {
        self.within(user, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect(to).unwrap();
            socket.send(b"?").unwrap();
            let mut buffer = [0; 64];
            match socket.recv(&mut buffer) {
                Ok(length) => String::from_utf8_lossy(&buffer[..length]).into_owned(),
                Err(error) => error.kind().to_string(),
            }
        })
    }
}

struct World {
    workload: Net,
    peer: Net,
}

impl World {
    fn new() -> Option<Self> {
        let (workload, peer) = (Net::new()?, Net::new()?);
        let there = format!("/proc/{}/fd/{}", std::process::id(), fd(&peer));
        let batch = format!(
            "link set lo up\nlink add eth0 type veth peer name eth0 netns {there}\n\
             addr add {WORKLOAD}/24 dev eth0\nlink set eth0 up\nroute add default via {PEER}\n"
        );
        workload.run("ip", &["-batch", "-"], &batch);
        let mut batch = format!("link set lo up\naddr add {PEER}/24 dev eth0\n");
        batch.push_str(&format!(
            "addr add {PROBING}/24 dev eth0\nlink set eth0 up\n"
        ));
        for other in OTHERS {
            batch.push_str(&format!("addr add {other}/32 dev lo\n"));
        }
        peer.run("ip", &["-batch", "-"], &batch);
        workload.listen("outbound", PROXY, "0.0.0.0:15001");
        workload.listen("inbound", PROXY, "0.0.0.0:15006");
        workload.listen("names", PROXY, "127.0.0.1:15053");
        workload.listen_udp("names", PROXY, "127.0.0.1:15053");
        for port in [80, 9080, 15020, 15021, 15090, 15000, 15008] {
            workload.listen("app", APP, &format!("0.0.0.0:{port}"));
        }
        for port in [53, 80, 7777, 32000] {
            peer.listen("peer", 0, &format!("0.0.0.0:{port}"));
        }
        peer.listen_udp("peer", 0, "0.0.0.0:53");
        Some(Self { workload, peer })
    }

    fn load(&self, annotations: &[(&str, &str)], dns: bool) {
        let annotations = annotations.iter().map(|(name, value)| {
            let name = format!("traffic.sidecar.istio.io/{name}");
            (name, (*value).to_owned())
        });
        let parameters = Parameters::from_annotations(&annotations.collect::<BTreeMap<_, _>>());
        let around = Surroundings {
            host: PROBING,
            probe: Some(9080),
            dns,
        };
        let table = rules::table(&parameters.unwrap(), &around);
        let text = format!("table inet lateen\ndelete table inet lateen\n{table}");
        self.workload.run("nft", &["-f", "-"], &text);
    }

    /// What the workload's users reach.
    fn out(&self, cases: &[(u32, &str, &str)]) {
        for (user, to, expect) in cases {
            let got = self.workload.ask(*user, None, to.parse().unwrap());
            assert_eq!(got, *expect, "user {user} to {to}");
        }
    }

    /// What others reach in the workload.
    fn into(&self, cases: &[(u16, &str)]) {
        for (port, expect) in cases {
            let got = self.peer.ask(0, None, (WORKLOAD, *port).into());
            assert_eq!(got, *expect, "to port {port}");
        }
    }
}

fn fd(net: &Net) -> i32 {
    use std::os::fd::AsRawFd;
    net.0.as_raw_fd()
}

#[test]
fn traffic_in_a_namespace_goes_where_istios_rules_lead_it() {
    let root = nix::unistd::geteuid().is_root();
    let world = match root {
        true => World::new(),
        false => None,
    };
    let Some(world) = world else {
        let test = "traffic_in_a_namespace_goes_where_istios_rules_lead_it";
        tools::skip(test, "root, which makes network namespaces,");
        return;
    };
    everything_is_captured(&world);
    names_are_asked_of_the_proxy(&world);
    ranges_and_ports_are_left_out(&world);
    only_what_is_named_is_captured(&world);
    own_ports_are_reached_past_the_proxy(&world);
}

fn everything_is_captured(world: &World) {
    world.load(&[], false);
    world.out(&[
        (APP, "10.9.0.2:80", "outbound 10.9.0.2:80"),
        (0, "9.9.1.1:7777", "outbound 9.9.1.1:7777"),
        // The proxy itself reaches what it asks for.
        (PROXY, "10.9.0.2:80", "peer 10.9.0.2:80"),
        // The application and itself, by loopback and by its own address.
        (APP, "127.0.0.1:9080", "app 127.0.0.1:9080"),
        (APP, "10.9.0.1:9080", "app 10.9.0.1:9080"),
        // The proxy to its application, and to its own service's address: in again.
        (PROXY, "127.0.0.1:9080", "app 127.0.0.1:9080"),
        (PROXY, "10.9.0.1:9080", "inbound 10.9.0.1:9080"),
    ]);
    // From its inbound source address the proxy reaches the application's.
    let loopback = Some(Ipv4Addr::new(127, 0, 0, 6));
    let got = world.workload.ask(PROXY, loopback, (WORKLOAD, 9080).into());
    assert_eq!(got, "app 10.9.0.1:9080");
    world.into(&[
        (9080, "inbound 10.9.0.1:9080"),
        (1, "inbound 10.9.0.1:1"),
        (15008, "app 10.9.0.1:15008"),
        (15020, "app 10.9.0.1:15020"),
        (15021, "app 10.9.0.1:15021"),
        (15090, "app 10.9.0.1:15090"),
    ]);
    // Without DNS capture a question goes on; over TCP it is a connection like any.
    assert_eq!(world.workload.ask_udp(APP, (PEER, 53).into()), "peer");
    world.out(&[(APP, "10.9.0.2:53", "outbound 10.9.0.2:53")]);
}

fn names_are_asked_of_the_proxy(world: &World) {
    world.load(&[], true);
    for _ in 0..3 {
        assert_eq!(world.workload.ask_udp(APP, (PEER, 53).into()), "names");
        assert_eq!(world.workload.ask_udp(PROXY, (PEER, 53).into()), "peer");
    }
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 53));
    assert_eq!(world.workload.ask_udp(APP, nobody), "names");
    world.out(&[
        (APP, "10.9.0.2:53", "names 10.9.0.2:53"),
        (APP, "127.0.0.1:53", "names 127.0.0.1:53"),
        (PROXY, "10.9.0.2:53", "peer 10.9.0.2:53"),
        (APP, "10.9.0.2:80", "outbound 10.9.0.2:80"),
        (APP, "10.9.0.1:9080", "app 10.9.0.1:9080"),
        (PROXY, "10.9.0.1:9080", "inbound 10.9.0.1:9080"),
    ]);
}

fn ranges_and_ports_are_left_out(world: &World) {
    let annotations = [
        ("excludeOutboundIPRanges", "1.1.0.0/16"),
        ("excludeOutboundPorts", "7777"),
        ("excludeInboundPorts", "9080"),
    ];
    world.load(&annotations, true);
    world.out(&[
        (APP, "1.1.2.2:80", "peer 1.1.2.2:80"),
        (APP, "9.9.1.1:80", "outbound 9.9.1.1:80"),
        (APP, "9.9.1.1:7777", "peer 9.9.1.1:7777"),
    ]);
    world.into(&[(9080, "app 10.9.0.1:9080"), (80, "inbound 10.9.0.1:80")]);
}

fn only_what_is_named_is_captured(world: &World) {
    let annotations = [
        ("includeOutboundIPRanges", "9.9.0.0/16"),
        ("includeOutboundPorts", "32000"),
        ("includeInboundPorts", "9080"),
    ];
    world.load(&annotations, false);
    world.out(&[
        (APP, "9.9.1.1:80", "outbound 9.9.1.1:80"),
        (APP, "1.1.2.2:80", "peer 1.1.2.2:80"),
        (APP, "1.1.2.2:32000", "outbound 1.1.2.2:32000"),
    ]);
    world.into(&[(9080, "inbound 10.9.0.1:9080"), (80, "app 10.9.0.1:80")]);
}

fn own_ports_are_reached_past_the_proxy(world: &World) {
    world.load(&[], true);
    let ask = |from, port| world.peer.ask(0, Some(from), (WORKLOAD, port).into());
    // The admin interface and the application's readiness are for the machine of the mesh.
    assert_eq!(ask(PROBING, 15000), "app 10.9.0.1:15000");
    assert_eq!(ask(PEER, 15000), "connection refused");
    let probe = ask(PROBING, rules::PROBE_PORT);
    assert!(probe.starts_with("app "), "{probe}");
    let other = ask(PEER, rules::PROBE_PORT);
    assert_eq!(other, format!("inbound 10.9.0.1:{}", rules::PROBE_PORT));
}
