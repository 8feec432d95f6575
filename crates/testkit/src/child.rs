//! A program that ends with the test, however the test ends.
//!
//! The program runs under a small shell that kills it as soon as the shell's standard input is
//! closed; the system closes it even when the test is killed.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Runs `"$@"` until it ends or standard input does.
const WARDEN: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- &
child=$!
{ cat <&3 >/dev/null; kill -9 "$child"; } >/dev/null 2>&1 &
exec 3<&-
wait "$child"
"#;

/// A running program; killed on drop. What it prints is in a file.
pub struct Child {
    warden: std::process::Child,
    log: PathBuf,
}

impl Child {
    /// Starts `command`; its output is written to `log`.
    pub fn start(command: &Command, log: &Path) -> Self {
        let output = std::fs::File::create(log).expect("the log can be written");
        let mut warden = Command::new("sh");
        warden
            .args(["-c", WARDEN, "sh"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output);
        if let Some(directory) = command.get_current_dir() {
            warden.current_dir(directory);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => warden.env(name, value),
                None => warden.env_remove(name),
            };
        }
        Child {
            warden: warden.spawn().expect("sh can be started"),
            log: log.to_owned(),
        }
    }

    /// How the program ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.warden.try_wait().expect("a child can be waited for")
    }

    /// Everything it printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Memory it has now, in bytes; 0 where the system does not say.
    pub fn resident(&self) -> u64 {
        let warden = self.warden.id();
        let children = format!("/proc/{warden}/task/{warden}/children");
        let children = std::fs::read_to_string(children).unwrap_or_default();
        let of = |child: &str| {
            let status = std::fs::read_to_string(format!("/proc/{child}/status")).ok()?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        children.split_whitespace().filter_map(of).sum::<u64>() * 1024
    }

    /// Kills the program.
    pub fn kill(&mut self) {
        drop(self.warden.stdin.take());
        // The shell ends after the program does.
        let _ = self.warden.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(40)..];
            eprintln!("--- {}\n{}\n---", self.log.display(), last.join("\n"));
        }
    }
}
