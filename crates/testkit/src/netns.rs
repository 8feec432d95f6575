//! A small network of its own for a test: namespaces on a bridge, and packet filter rules that lead
//! the traffic of some of them through a proxy, as Istio's do in a pod.
//!
//! The test itself runs in the namespace of the bridge (`10.77.0.1`), with its control plane and
//! everything else that listens on loopback. A workload is a namespace with an address of its own;
//! sockets of its applications are made in there and used by the test. Needs root, `ip` and `nft`.
//!
//! Nothing outside the namespaces is touched.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use nix::sched::{CloneFlags, setns};

use crate::tools;

/// User and group of the proxy, by which the rules know its traffic.
pub const PROXY_ID: u32 = 1337;
/// The proxy's admin page is reached past the rules.
pub const ADMIN: u16 = 15000;
const NETWORK: [u8; 3] = [10, 77, 0];

/// The bridge and its workloads; removed on drop.
pub struct Network {
    /// Also the beginning of the names of the workloads' namespaces.
    name: String,
    workloads: Vec<Workload>,
}

/// A namespace with an address.
#[derive(Clone, Debug)]
pub struct Workload {
    namespace: String,
    pub address: Ipv4Addr,
}

/// Runs a test inside a network of its own, or says loudly that it cannot.
pub fn run<F: Future<Output = ()>>(test: &str, body: impl FnOnce(Network) -> F + Send) {
    if tools::program("ip", &["-V"]).is_none() || tools::program("nft", &["-v"]).is_none() {
        return tools::skip(test, "iproute2 or nftables");
    }
    let Some(network) = Network::new() else {
        return tools::skip(test, "the right of root to make network namespaces");
    };
    let namespace = network.name.clone();
    std::thread::scope(|scope| {
        // Threads that this thread starts, and the programs, are in its namespace as well.
        let inside = scope.spawn(move || {
            enter(&namespace);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(body(network));
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

impl Network {
    /// None where the system does not allow it.
    fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remove_leftovers();
        let number = NEXT.fetch_add(1, Relaxed);
        let name = format!("lateen-{}-{number}", std::process::id());
        if !try_command("ip", &["netns", "add", &name]) {
            return None;
        }
        let network = Network {
            name,
            workloads: Vec::new(),
        };
        ip_in(&network.name, "link set lo up");
        ip_in(&network.name, "link add bridge type bridge");
        let address = format!("addr add {}/24 dev bridge", network.hub());
        ip_in(&network.name, &address);
        ip_in(&network.name, "link set bridge up");
        Some(network)
    }

    /// The address at which workloads reach the test.
    pub fn hub(&self) -> Ipv4Addr {
        address(1)
    }

    /// A namespace whose traffic is not redirected.
    pub fn workload(&mut self) -> Workload {
        let number = 2 + u8::try_from(self.workloads.len()).expect("few workloads");
        let workload = Workload {
            namespace: format!("{}-{number}", self.name),
            address: address(number),
        };
        command("ip", &["netns", "add", &workload.namespace]);
        let pair = format!(
            "link add to{number} type veth peer name eth0 netns {}",
            workload.namespace
        );
        ip_in(&self.name, &pair);
        ip_in(&self.name, &format!("link set to{number} master bridge up"));
        let inside = |words: &str| ip_in(&workload.namespace, words);
        inside("link set lo up");
        inside(&format!("addr add {}/24 dev eth0", workload.address));
        inside("link set eth0 up");
        inside(&format!("route add default via {}", self.hub()));
        self.workloads.push(workload.clone());
        workload
    }

    /// A namespace whose traffic goes through ports 15001 and 15006 of its proxy.
    pub fn captured_workload(&mut self) -> Workload {
        let workload = self.workload();
        workload.redirect();
        workload
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let names = self.workloads.iter().map(|w| w.namespace.as_str());
        for name in names.chain([self.name.as_str()]) {
            try_command("ip", &["netns", "del", name]);
        }
    }
}

impl Workload {
    /// The least that Istio's rules do (`tools/istio-iptables`).
    fn redirect(&self) {
        let rules = format!(
            "table ip capture {{
               chain output {{
                 type nat hook output priority -100;
                 oifname \"lo\" ip saddr 127.0.0.6 return
                 oifname \"lo\" ip daddr != 127.0.0.1 meta skgid {PROXY_ID} meta l4proto tcp redirect to :15006
                 oifname \"lo\" return
                 meta skgid {PROXY_ID} return
                 ip daddr 127.0.0.1 return
                 meta l4proto tcp redirect to :15001
               }}
               chain prerouting {{
                 type nat hook prerouting priority -100;
                 tcp dport {{ {ADMIN}, 15020, 15021, 15090 }} return
                 meta l4proto tcp redirect to :15006
               }}
             }}"
        );
        let args = ["netns", "exec", &self.namespace, "nft", &rules];
        command("ip", &args);
    }

    /// An address at this workload.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.address, port))
    }

    /// The command with what runs it in here as the proxy's group. The user stays root, who may
    /// read programs wherever they are installed.
    pub fn as_proxy(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        let group = PROXY_ID.to_string();
        command
            .args(["netns", "exec", &self.namespace])
            .args(["setpriv", "--regid", &group, "--clear-groups"])
            .arg(program);
        command
    }

    /// The command as an application in here.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// A listening socket of an application in here, on every address.
    pub fn listen(&self, port: u16) -> TcpListener {
        let bind = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
        let listener = self.inside(bind).expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        listener
    }

    /// A connection that an application in here makes.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = self.inside(|| TcpStream::connect_timeout(&to, crate::PATIENCE))?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    fn inside<T: Send>(&self, make: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&self.namespace);
                make()
            });
            inside.join().expect("a thread in the namespace")
        })
    }
}

fn address(number: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORK;
    Ipv4Addr::new(a, b, c, number)
}

/// Puts the calling thread into a namespace.
fn enter(namespace: &str) {
    let file = File::open(Path::new("/run/netns").join(namespace)).expect("the namespace");
    setns(file, CloneFlags::CLONE_NEWNET).expect("root may enter it");
}

/// Namespaces of tests that were killed.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix("lateen-")
            .and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            try_command("ip", &["netns", "del", &name]);
        }
    }
}

fn ip_in(namespace: &str, words: &str) {
    let mut args = vec!["-n", namespace];
    args.extend(words.split(' '));
    command("ip", &args);
}

fn try_command(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    let status = command.args(args).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn command(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output();
    let output = output.expect("ip and nft are there");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {error}");
}
