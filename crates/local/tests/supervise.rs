//! Supervision of real processes.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use lateen_local::supervise::{Readiness, Spec, State, Status, Supervisor};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(20);

fn shell(name: &str, script: &str) -> Spec {
    Spec {
        name: name.to_owned(),
        program: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Vec::new(),
        env_remove: Vec::new(),
        directory: None,
        readiness: Readiness::Running,
        hint: None,
        grace: Duration::from_secs(5),
    }
}

/// Waits until the only process of the table is as wanted.
async fn until(
    table: &mut watch::Receiver<Vec<Status>>,
    wanted: impl Fn(&Status) -> bool,
) -> Status {
    let found = table.wait_for(|table| table.first().is_some_and(&wanted));
    let table = tokio::time::timeout(PATIENCE, found)
        .await
        .unwrap()
        .unwrap();
    table.first().unwrap().clone()
}

fn ready(status: &Status) -> bool {
    status.state == State::Ready && status.pid.is_some()
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap())
}

/// Whether a process exists and is not a zombie that nobody has waited for yet.
async fn is_gone(pid: Pid) -> bool {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if kill(pid, None).is_err() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn a_killed_process_is_started_again_after_growing_delays() {
    let logs = tempfile::tempdir().unwrap();
    let mut supervisor = Supervisor::new(logs.path());
    supervisor.start(shell("app", "exec sleep 1000"));
    let mut table = supervisor.watch();
    let mut pid = until(&mut table, ready).await.pid.unwrap();
    for delay in [100, 200, 400] {
        let killed = Instant::now();
        kill(raw(pid), Signal::SIGKILL).unwrap();
        let down = until(&mut table, |status| {
            matches!(status.state, State::Restarting { .. })
        })
        .await;
        let State::Restarting { reason, .. } = down.state else {
            unreachable!()
        };
        assert_eq!(reason, "killed by SIGKILL");
        let up = until(&mut table, ready).await;
        assert_ne!(up.pid, Some(pid));
        pid = up.pid.unwrap();
        let took = killed.elapsed();
        assert!(
            took >= Duration::from_millis(delay),
            "{took:?} for {delay} ms"
        );
    }
    supervisor.stop().await;
    assert!(is_gone(raw(pid)).await);
}

#[tokio::test]
async fn a_process_that_crashes_at_start_shows_its_exit_and_last_line() {
    let logs = tempfile::tempdir().unwrap();
    let mut supervisor = Supervisor::new(logs.path());
    supervisor.start(shell(
        "app",
        "echo starting; echo 'no such table: users' >&2; exit 3",
    ));
    let mut table = supervisor.watch();
    let down = until(&mut table, |status| status.restarts == 3).await;
    let State::Restarting { reason, last_line } = down.state else {
        panic!("{down:?}")
    };
    assert_eq!(reason, "exited with code 3");
    assert_eq!(last_line.as_deref(), Some("no such table: users"));
    supervisor.stop().await;
    let log = std::fs::read_to_string(logs.path().join("app.log")).unwrap();
    assert!(log.contains("starting\nno such table: users\n"), "{log}");
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_a_reason_and_not_an_end() {
    let logs = tempfile::tempdir().unwrap();
    let mut supervisor = Supervisor::new(logs.path());
    supervisor.start(Spec {
        program: "/no/such/program".into(),
        ..shell("app", "")
    });
    let mut table = supervisor.watch();
    let down = until(&mut table, |status| status.restarts == 2).await;
    let State::Restarting { reason, .. } = down.state else {
        panic!("{down:?}")
    };
    assert!(
        reason.starts_with("cannot start /no/such/program: "),
        "{reason}"
    );
    supervisor.stop().await;
}

#[tokio::test]
async fn stopping_lets_a_process_finish_and_kills_one_that_does_not() {
    let logs = tempfile::tempdir().unwrap();
    let mark = logs.path().join("finished");
    let polite = format!(
        "trap 'sleep 0.2; echo done > {}; exit 0' TERM; echo up; while :; do sleep 0.05; done",
        mark.display()
    );
    let stubborn = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let mut supervisor = Supervisor::new(logs.path());
    supervisor.start(shell("polite", &polite));
    let grace = Duration::from_secs(1);
    supervisor.start(Spec {
        grace,
        ..shell("stubborn", stubborn)
    });
    let said_up = |name: &str| {
        let log = std::fs::read_to_string(logs.path().join(name)).unwrap_or_default();
        log.contains("up\n")
    };
    while !said_up("polite.log") || !said_up("stubborn.log") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let table = supervisor.watch();
    let pids: Vec<u32> = table
        .borrow()
        .iter()
        .filter_map(|status| status.pid)
        .collect();
    let began = Instant::now();
    supervisor.stop().await;
    let took = began.elapsed();
    assert!(mark.exists(), "the polite one was not given its time");
    assert!(took >= grace && took < PATIENCE, "{took:?}");
    for pid in pids {
        assert!(is_gone(raw(pid)).await);
    }
    assert!(
        table
            .borrow()
            .iter()
            .all(|status| status.state == State::Stopped)
    );
}

#[tokio::test]
async fn what_a_dead_process_started_dies_before_it_is_started_again() {
    let logs = tempfile::tempdir().unwrap();
    let file = logs.path().join("grandchild");
    let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
    let mut supervisor = Supervisor::new(logs.path());
    supervisor.start(shell("app", &script));
    let mut table = supervisor.watch();
    let pid = until(&mut table, ready).await.pid.unwrap();
    let grandchild = Pid::from_raw(read_number(&file).await);
    kill(raw(pid), Signal::SIGKILL).unwrap();
    until(&mut table, |status| status.restarts == 1).await;
    assert!(is_gone(grandchild).await);
    supervisor.stop().await;
}

#[tokio::test]
async fn a_process_is_ready_when_its_port_accepts_and_unready_while_its_page_fails() {
    let logs = tempfile::tempdir().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], lateen_testkit::ports::reserve()));
    let mut supervisor = Supervisor::new(logs.path());
    let readiness = Readiness::Http(format!("http://{address}/health"));
    supervisor.start(Spec {
        readiness,
        ..shell("app", "exec sleep 1000")
    });
    let mut table = supervisor.watch();
    // Nothing listens: after two seconds of trying the reason is shown.
    let unready = until(&mut table, |status| {
        matches!(status.state, State::Unready(_))
    })
    .await;
    let State::Unready(reason) = unready.state else {
        unreachable!()
    };
    assert!(reason.contains(&address.to_string()), "{reason}");
    let page = axum::Router::new().route("/health", axum::routing::get(async || "fine"));
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, page).await });
    until(&mut table, ready).await;
    server.abort();
    supervisor.stop().await;
}

async fn read_number(file: &Path) -> i32 {
    loop {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if let Ok(number) = text.trim().parse() {
            return number;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
