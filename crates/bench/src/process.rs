//! Processes we measure: started in a group of their own, accounted for as a group, and killed as
//! a group however the run ends.
//!
//! CPU time comes from `/proc/PID/task/*/schedstat` (nanoseconds of the scheduler), memory from
//! `/proc/PID/smaps_rollup` (proportional set size: shared pages are divided by their users).

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::error::{Error, Result};

/// Process groups that are alive, for the signal handler.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Kills everything that was started. Called when a signal ends the run.
pub fn kill_all() {
    let groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    for group in groups.iter() {
        kill_group(*group);
    }
}

fn kill_group(group: i32) {
    // A group that is gone already is what we want.
    let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
}

fn register(group: i32) {
    let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    groups.insert(group);
}

fn forget(group: i32) {
    let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
    groups.remove(&group);
}

/// Runs a program that ends by itself, and gives what it printed. A signal that ends the run
/// ends the program as well.
pub fn output(command: &mut Command) -> std::io::Result<String> {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = child.id() as i32;
    register(group);
    let output = child.wait_with_output();
    forget(group);
    Ok(String::from_utf8_lossy(&output?.stdout).into_owned())
}

/// A running program with all its children. Dropping it kills them.
pub struct Running {
    name: String,
    child: Child,
    group: i32,
    log: PathBuf,
}

impl Running {
    /// Starts `command`; its error output goes to `NAME.log` in `directory`, its output (where
    /// access logs go) nowhere.
    pub fn start(name: &str, command: &mut Command, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log)
            .map_err(|source| Error::io(format!("create {}", log.display()), source))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .process_group(0)
            .spawn()
            .map_err(|source| Error::io(format!("start {name} ({command:?})"), source))?;
        let group = child.id() as i32;
        register(group);
        Ok(Self {
            name: name.to_owned(),
            child,
            group,
            log,
        })
    }

    /// An error when the program has ended, which it never should.
    pub fn check(&mut self) -> Result {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(Error::Ended {
                status: status.to_string(),
                log: self.log_end(),
            }),
            Err(source) => Err(Error::io(format!("look after {}", self.name), source)),
        }
    }

    /// The last lines of the log, for errors.
    pub fn log_end(&self) -> String {
        const LINES: usize = 12;
        let bytes = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// User and system time of all threads of all processes of the group so far.
    pub fn cpu(&self) -> Duration {
        self.members().iter().map(|pid| cpu_of(*pid)).sum()
    }

    /// Proportional set size of the group, in bytes.
    pub fn pss(&self) -> u64 {
        self.members().iter().map(|pid| pss_of(*pid)).sum()
    }

    /// The file that runs, for its size.
    pub fn executable(&self) -> Option<PathBuf> {
        std::fs::read_link(format!("/proc/{}/exe", self.child.id())).ok()
    }

    fn members(&self) -> Vec<u32> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| group_of(*pid) == Some(self.group))
            .collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        kill_group(self.group);
        // Reaps the child; nothing can be done about a failure here.
        let _ = self.child.wait();
        forget(self.group);
    }
}

/// proc(5), `/proc/PID/stat`: after the name in parentheses come state, parent and group.
fn group_of(pid: u32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(2)?.parse().ok()
}

/// User and system time of all threads of this process so far.
pub fn own_cpu() -> Duration {
    cpu_of(std::process::id())
}

fn cpu_of(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let nanoseconds = tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split_ascii_whitespace().next()?.parse::<u64>().ok())
        .sum();
    Duration::from_nanos(nanoseconds)
}

fn pss_of(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    pss_in(&text)
}

/// The `Pss:` line of smaps_rollup, in bytes.
fn pss_in(smaps_rollup: &str) -> u64 {
    let kilobytes = smaps_rollup
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proportional_set_size_is_read_and_its_parts_are_not() {
        let text = "55-7f ---p 00000000 00:00 0 [rollup]\nRss:  5312 kB\nPss:  1301 kB\n\
                    Pss_Dirty:  99 kB\nPss_Anon:  12 kB\n";
        assert_eq!(pss_in(text), 1301 * 1024);
        assert_eq!(pss_in(""), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_group_is_accounted_for_and_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "sleep 300 & sleep 300 & i=0; while :; do i=$((i+1)); done",
        ]);
        let mut running = Running::start("spinner", &mut command, directory.path()).unwrap();
        let eventually = |what: &str, is: &dyn Fn() -> bool| {
            let started = std::time::Instant::now();
            while !is() {
                assert!(started.elapsed() < Duration::from_secs(30), "{what}");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        eventually("three processes, of which one works", &|| {
            running.members().len() == 3 && running.cpu() > Duration::from_millis(20)
        });
        let members = running.members();
        assert!(running.pss() > 0);
        running.check().unwrap();
        drop(running);
        // A zombie is one that nobody has waited for: where the first process of a container
        // does not, orphans stay so.
        let runs = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        eventually("none of them is left", &|| !members.iter().any(runs));
    }
}
