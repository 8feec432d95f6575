//! Makes the network of a mesh: a namespace per workload, a switch between them, the way to this
//! machine and out of it; and removes what of it is on the machine itself.
//!
//! The switch (a bridge) is in a namespace of its own, so what workloads say to each other never
//! meets the machine's packet filter. The machine has one interface on that switch. Namespaces are
//! held open by this process and by those inside; nobody else can reach them by a name.
//!
//! Commands of iproute2 and nftables do the work: they exist wherever root would look at the result.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

use super::network::{Network, occupied};
use super::rules::{self, Surroundings};
use super::{CaptureError, DIRECTORY, names, tag};
use crate::plan::{Plan, Workload};
use crate::rundir::RunDir;

/// Directories that the path of an ordinary user often lacks.
const SYSTEM_PATHS: [&str; 2] = ["/usr/sbin", "/sbin"];
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// Where systemd keeps the servers behind its resolver on loopback.
const SYSTEMD_RESOLV_CONF: &str = "/run/systemd/resolve/resolv.conf";
/// Tables of every mesh on this machine begin so.
const TABLES: &str = "lateen_";

/// Checks that traffic can be captured here, and chooses the addresses of a mesh.
pub fn choose_network(run_dir: &Path) -> Result<Network, CaptureError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(CaptureError::NotRoot);
    }
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        if find(program).is_none() {
            return Err(CaptureError::Program { program, package });
        }
    }
    drop(new_namespace()?);
    let routes = run("ip", &["-4", "-o", "route", "show", "table", "all"], "")?;
    let tag = tag(run_dir);
    let mut taken = occupied(&routes, &interface(&tag));
    taken.extend(servers().into_iter().map(|server| (server, 32)));
    let begin = u32::from_str_radix(&tag, 16).unwrap_or_default();
    Network::choose(begin, &taken).ok_or(CaptureError::NoRange)
}

/// The network of a running mesh. Dropping it removes it.
#[derive(Debug)]
pub struct Namespaces {
    tag: String,
    run_dir: PathBuf,
    /// Holds the switch.
    _switch: File,
    workloads: BTreeMap<String, File>,
}

impl Namespaces {
    /// Removes what a mesh of this run directory left that was killed, and makes everything.
    pub fn create(run_dir: &RunDir, plan: &Plan, network: Network) -> Result<Self, CaptureError> {
        let tag = tag(run_dir.path());
        remove(&tag);
        let mut made = Self {
            _switch: new_namespace()?,
            workloads: BTreeMap::new(),
            run_dir: run_dir.path().to_owned(),
            tag,
        };
        for workload in &plan.workloads {
            made.workloads
                .insert(workload.name.clone(), new_namespace()?);
        }
        made.connect(plan, network)?;
        for workload in &plan.workloads {
            made.set_up(workload, network)?;
        }
        made.write_names(plan)?;
        made.write_directory(plan)?;
        Ok(made)
    }

    /// The namespace of a workload, as a file that root can open.
    pub fn path(&self, workload: &str) -> PathBuf {
        self.workloads
            .get(workload)
            .map(path_of)
            .unwrap_or_default()
    }

    /// What stands for `/etc/resolv.conf` in the mesh's namespace of this name.
    pub fn resolv_conf(&self, namespace: &str) -> PathBuf {
        self.run_dir.join(format!("resolv.conf.{namespace}"))
    }

    /// The switch, the cables, and this machine's end of one.
    fn connect(&self, plan: &Plan, network: Network) -> Result<(), CaptureError> {
        let uplink = interface(&self.tag);
        let host = format!("/proc/{}/ns/net", std::process::id());
        let mut batch = format!(
            "link set lo up\nlink add switch type bridge\nlink set switch up\n\
             link add host type veth peer name {uplink} netns {host}\n\
             link set host master switch up\n"
        );
        for (index, workload) in plan.workloads.iter().enumerate() {
            let net = self.path(&workload.name);
            batch.push_str(&format!(
                "link add w{index} type veth peer name eth0 netns {}\n\
                 link set w{index} master switch up\n",
                net.display()
            ));
        }
        within(&self._switch, move || run("ip", &["-batch", "-"], &batch))??;
        let address = network.host();
        let batch = format!("addr add {address}/17 dev {uplink}\nlink set {uplink} up\n");
        run("ip", &["-batch", "-"], &batch)?;
        let forwarded_before = forwards();
        let table = host_table(&self.tag, network, forwarded_before);
        run("nft", &["-f", "-"], &table)?;
        if !forwarded_before {
            start_forwarding();
        }
        Ok(())
    }

    fn set_up(&self, workload: &Workload, network: Network) -> Result<(), CaptureError> {
        let Some(net) = self.workloads.get(&workload.name) else {
            return Ok(());
        };
        let batch = format!(
            "link set lo up\naddr add {}/17 dev eth0\nlink set eth0 up\n\
             route add default via {}\n",
            workload.address,
            network.host()
        );
        let around = Surroundings {
            host: network.host(),
            probe: workload.ports.first().map(|port| port.app),
            dns: true,
        };
        let table = rules::table(&workload.capture, &around);
        within(net, move || {
            run("ip", &["-batch", "-"], &batch)?;
            run("nft", &["-f", "-"], &table)?;
            // As in a container: an ordinary user may listen on port 80.
            let lowest = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
            let _ = std::fs::write(lowest, "0");
            Ok(())
        })?
    }

    fn write_names(&self, plan: &Plan) -> Result<(), CaptureError> {
        let servers = servers();
        for workload in &plan.workloads {
            let path = self.resolv_conf(&workload.namespace);
            write(&path, &names::resolv_conf(&workload.namespace, &servers))?;
        }
        Ok(())
    }

    fn write_directory(&self, plan: &Plan) -> Result<(), CaptureError> {
        let workloads = plan.workloads.iter().map(|workload| {
            let place = json!({
                "net": self.path(&workload.name),
                "resolvConf": self.resolv_conf(&workload.namespace),
                "address": workload.address,
            });
            (workload.name.clone(), place)
        });
        let workloads: Value = workloads.collect::<serde_json::Map<_, _>>().into();
        let directory = json!({"pid": std::process::id(), "workloads": workloads});
        write(&self.run_dir.join(DIRECTORY), &format!("{directory:#}\n"))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.run_dir.join(DIRECTORY));
        remove(&self.tag);
    }
}

/// Removes what a mesh has on the machine itself. What is not there is no error.
fn remove(tag: &str) {
    let _ = run("ip", &["link", "delete", &interface(tag)], "");
    let _ = run(
        "nft",
        &["delete", "table", "ip", &format!("{TABLES}{tag}")],
        "",
    );
    stop_forwarding();
}

fn interface(tag: &str) -> String {
    format!("lateen{tag}")
}

/// What leaves for the world outside leaves in this machine's name, and nobody out there begins a
/// connection to a workload. Where the machine forwarded nothing before, it forwards nothing else
/// now.
fn host_table(tag: &str, network: Network, forwarded_before: bool) -> String {
    let (uplink, workloads, services) = (interface(tag), network.workloads(), network.services());
    let only_ours = match forwarded_before {
        true => String::new(),
        false => "    oifname != \"lateen*\" drop\n".to_owned(),
    };
    format!(
        "table ip {TABLES}{tag} {{\n  chain postrouting {{\n    \
         type nat hook postrouting priority 100; policy accept;\n    \
         ip saddr {workloads} oifname != \"{uplink}\" masquerade\n  }}\n  chain forward {{\n    \
         type filter hook forward priority 0; policy accept;\n    \
         ip daddr {services} reject\n    iifname \"lateen*\" accept\n    \
         oifname \"{uplink}\" ct state established,related accept\n    \
         oifname \"{uplink}\" drop\n{only_ours}  }}\n}}\n"
    )
}

fn forwards() -> bool {
    std::fs::read_to_string(FORWARDING).is_ok_and(|value| value.trim() == "1")
}

/// Says that it was us who made this machine forward. In memory only, like the setting; named
/// after the network namespace it is about.
fn forwarding_mark() -> Option<PathBuf> {
    let inode = std::fs::metadata("/proc/self/ns/net").ok()?.ino();
    Some(PathBuf::from(format!("/run/lateen-forwarding-{inode}")))
}

/// Without it the mesh works, and only the world outside this machine cannot be reached.
fn start_forwarding() {
    let done = forwarding_mark()
        .map(|mark| File::create(mark).and_then(|_| std::fs::write(FORWARDING, "1")));
    if !matches!(done, Some(Ok(()))) {
        tracing::warn!("cannot switch on {FORWARDING}: workloads reach this machine only");
    }
}

/// The last mesh that leaves turns it off again.
fn stop_forwarding() {
    let Some(mark) = forwarding_mark().filter(|mark| mark.exists()) else {
        return;
    };
    let others = run("nft", &["list", "tables", "ip"], "");
    if others.is_ok_and(|tables| !tables.contains(TABLES)) {
        let _ = std::fs::write(FORWARDING, "0");
        let _ = std::fs::remove_file(mark);
    }
}

fn servers() -> Vec<Ipv4Addr> {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    match names::reachable_servers(&read("/etc/resolv.conf")) {
        none if none.is_empty() => names::reachable_servers(&read(SYSTEMD_RESOLV_CONF)),
        servers => servers,
    }
}

/// A namespace that lasts as long as the file is open or a process is in it.
fn new_namespace() -> Result<File, CaptureError> {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net")
    });
    joined(made.join()).map_err(CaptureError::Namespace)
}

/// Calls `work` on a thread of its own in a namespace; what it starts is in there too.
fn within<T: Send>(net: &File, work: impl FnOnce() -> T + Send) -> Result<T, CaptureError> {
    let result = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(net, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        thread.join()
    });
    joined(result).map_err(CaptureError::Namespace)
}

fn joined<T>(result: thread::Result<io::Result<T>>) -> io::Result<T> {
    result.unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
}

fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        file.as_raw_fd()
    ))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = SYSTEM_PATHS.iter().map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(system);
    places.find_map(|directory| Some(directory.join(program)).filter(|path| path.is_file()))
}

/// Runs a command to its end; what it printed, or its complaint.
fn run(program: &str, args: &[&str], input: &str) -> Result<String, CaptureError> {
    let fail = |reason: String| CaptureError::Command {
        command: format!("{program} {}", args.join(" ")),
        reason,
    };
    let path = find(program).unwrap_or_else(|| PathBuf::from(program));
    let mut child = Command::new(path)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| fail(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that has failed already does not read on, and says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| fail(error.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(fail(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

fn write(path: &Path, text: &str) -> Result<(), CaptureError> {
    std::fs::write(path, text).map_err(|source| CaptureError::File {
        path: path.to_owned(),
        source,
    })
}
