//! Starts a command in a workload's namespace: its network, its `/etc/resolv.conf`, its user.
//!
//! The command replaces this process. Files that only root can reach are opened before root is
//! given up, and the command gets them as `/proc/self/fd/N`.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

/// This very binary, whatever its directory's permissions.
const OURSELVES: &str = "/proc/self/exe";
/// Services of this machine that answer questions about names past the network.
const RESOLVERS: [&str; 2] = ["/run/systemd/resolve", "/run/nscd"];
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where and as whom a command runs.
#[derive(Debug)]
pub struct Entry {
    /// The network namespace.
    pub net: PathBuf,
    /// Stands for `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// User and group; ours if not set.
    pub user: Option<u32>,
    /// Words of the command that are files only root can reach.
    pub keep: Vec<PathBuf>,
    /// `lateen` as its first word is this very binary.
    pub command: Vec<OsString>,
}

/// Why a command could not be run in a namespace.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    #[error("cannot open {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot enter the namespace: {0}; this needs root")]
    Enter(nix::Error),
    #[error("cannot put up /etc/resolv.conf: {0}")]
    Names(io::Error),
    #[error("cannot become user {user}: {source}")]
    User { user: u32, source: nix::Error },
    #[error("cannot start {program}: {source}; is it on the path, and may this user run it?")]
    Start { program: String, source: io::Error },
}

/// Runs the command in place of this process; comes back only when that failed.
pub fn enter(entry: &Entry) -> EnterError {
    match prepare(entry) {
        Err(error) => error,
        Ok(never) => match never {},
    }
}

fn prepare(entry: &Entry) -> Result<Infallible, EnterError> {
    let net = open(&entry.net)?;
    let resolv_conf = entry.resolv_conf.as_ref().map(|path| {
        std::fs::read(path).map_err(|source| EnterError::Open {
            path: path.clone(),
            source,
        })
    });
    let resolv_conf = resolv_conf.transpose()?;
    let mut kept = Vec::new();
    for path in &entry.keep {
        let file = open(path)?;
        let inherited = fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()));
        inherited.map_err(EnterError::Enter)?;
        kept.push((path, file));
    }
    setns(&net, CloneFlags::CLONE_NEWNET).map_err(EnterError::Enter)?;
    if let (Some(path), Some(text)) = (&entry.resolv_conf, &resolv_conf) {
        unshare(CloneFlags::CLONE_NEWNS).map_err(EnterError::Enter)?;
        put_up(path, text).map_err(EnterError::Names)?;
    }
    if let Some(user) = entry.user {
        let fail = |source| EnterError::User { user, source };
        setgroups(&[]).map_err(fail)?;
        setgid(Gid::from_raw(user)).map_err(fail)?;
        setuid(Uid::from_raw(user)).map_err(fail)?;
    }
    let words: Vec<OsString> = entry
        .command
        .iter()
        .map(
            |word| match kept.iter().find(|(path, _)| path.as_os_str() == word) {
                Some((_, file)) => format!("/proc/self/fd/{}", file.as_raw_fd()).into(),
                None => word.clone(),
            },
        )
        .collect();
    let Some((program, args)) = words.split_first() else {
        let source = io::Error::from(io::ErrorKind::InvalidInput);
        return Err(EnterError::Start {
            program: String::new(),
            source,
        });
    };
    let mut command = match program == "lateen" {
        true => Command::new(OURSELVES),
        false => Command::new(program),
    };
    let source = command.arg0(program).args(args).exec();
    let program = entry.command[0].to_string_lossy().into_owned();
    Err(EnterError::Start { program, source })
}

fn open(path: &Path) -> Result<File, EnterError> {
    File::open(path).map_err(|source| EnterError::Open {
        path: path.to_owned(),
        source,
    })
}

/// In a mount namespace of our own: what is mounted here is seen by nobody else.
fn put_up(path: &Path, resolv_conf: &[u8]) -> io::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let target = Path::new(RESOLV_CONF).canonicalize();
    for directory in RESOLVERS.iter().filter(|path| Path::new(path).is_dir()) {
        let options = Some("size=64k,mode=755");
        mount(
            Some("tmpfs"),
            *directory,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )?;
    }
    // Without the file there is nothing to stand for, and the resolver asks 127.0.0.1.
    let Ok(target) = target else { return Ok(()) };
    if !target.exists() {
        // It was in one of the directories that are hidden now.
        return std::fs::write(&target, resolv_conf);
    }
    mount(Some(path), &target, none, MsFlags::MS_BIND, none)?;
    Ok(())
}
