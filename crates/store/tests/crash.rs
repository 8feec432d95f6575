//! A writer killed at any moment: what it acknowledged is there, the rest is whole or absent.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lateen_store::{
    Author, Change, Draft, Limits, ObjectKey, Source, Store, StoreError, Verdict, Write,
};
use serde_json::json;

const ROUNDS: u64 = 20;

/// One transaction writes both objects of a pair with the same number.
fn pair(n: u64) -> Vec<Write> {
    ["left", "right"]
        .map(|name| {
            let key = ObjectKey::new("", "Service", "default", name);
            let body = json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"n": n, "padding": "x".repeat(2_000)},
            });
            Write::Apply(Draft {
                key,
                body,
                expected: None,
                file: None,
            })
        })
        .into()
}

/// Not a test of its own: the process that `acknowledged_writes_survive_kill_minus_9` kills. It
/// prints the number of each pair after the store acknowledged it.
#[test]
#[ignore = "run by acknowledged_writes_survive_kill_minus_9 as a child process"]
fn writer_process() {
    let Ok(path) = std::env::var("LATEEN_TEST_STORE") else {
        return;
    };
    let store = Store::open(
        Path::new(&path),
        Limits {
            revisions: 50,
            ..Limits::default()
        },
    )
    .unwrap();
    let change = Change {
        author: Author::default(),
        id: String::new(),
        source: Source::Api,
    };
    let first = store.revision() + 1;
    for n in first.. {
        let done = store.commit(&change, pair(n)).unwrap();
        assert_ne!(done.outcomes[0].verdict, Verdict::Unchanged);
        println!("acknowledged {n}");
        std::io::stdout().flush().unwrap();
    }
}

#[test]
fn acknowledged_writes_survive_kill_minus_9() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    for round in 0..ROUNDS {
        let acknowledged = run_and_kill(&path, Duration::from_micros(7_300 * (round + 1)));
        let store = open(&path);
        let revision = store.revision();
        assert!(
            revision >= acknowledged,
            "lost {acknowledged}, the store is at {revision}"
        );
        if revision == 0 {
            continue;
        }
        let (_, objects) = store.list(|_| true);
        let numbers: Vec<_> = objects
            .iter()
            .map(|o| o.body.value()["spec"]["n"].clone())
            .collect();
        assert_eq!(
            numbers,
            [json!(revision), json!(revision)],
            "half a transaction"
        );
        assert_eq!(store.revision_at(revision).unwrap().changes.len(), 2);
        assert!(store.history(None, None, 1_000).unwrap().len() <= 50);
    }
}

/// Starts the writer, kills it `after` its first acknowledgement, returns the last one seen.
fn run_and_kill(path: &Path, after: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "writer_process",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("LATEEN_TEST_STORE", path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let number = |line: String| {
        line.rsplit_once("acknowledged ")
            .map(|(_, n)| n.parse().unwrap())
    };
    let mut last: u64 = lines.by_ref().find_map(number).unwrap();
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    last = lines.filter_map(number).last().unwrap_or(last);
    last
}

fn open(path: &Path) -> Store {
    let started = Instant::now();
    loop {
        match Store::open(path, Limits::default()) {
            Ok(store) => return store,
            Err(StoreError::Locked { .. }) if started.elapsed() < Duration::from_secs(30) => {}
            Err(error) => panic!("{error}"),
        }
    }
}
