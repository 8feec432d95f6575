//! A full disk: the write that does not fit is refused and said so, nothing else is lost, and the
//! store goes on when there is room again.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::path::Path;
use std::process::Command;

use lateen_store::{
    Author, Change, Draft, Limits, ObjectKey, Source, Store, StoreError, Stored, Write,
};
use serde_json::json;

fn apply(store: &Store, n: usize) -> Result<(), StoreError> {
    let key = ObjectKey::new("", "Service", "default", format!("s{n}"));
    let body = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("s{n}"), "namespace": "default"},
        "spec": {"padding": "x".repeat(20_000)},
    });
    let change = Change {
        author: Author::default(),
        id: String::new(),
        source: Source::Api,
    };
    let draft = Draft {
        key,
        body,
        expected: None,
        file: None,
    };
    store.commit(&change, vec![Write::Apply(draft)]).map(drop)
}

/// Not a test of its own: runs where `LATEEN_TEST_SMALL_DISK` is a file system of a few megabytes.
#[test]
#[ignore = "run by a_full_disk_refuses_the_write_and_nothing_else in a small file system"]
fn in_a_small_file_system() {
    let Ok(disk) = std::env::var("LATEEN_TEST_SMALL_DISK") else {
        return;
    };
    let path = Path::new(&disk).join("store.redb");
    let filler = Path::new(&disk).join("filler");
    std::fs::write(&filler, vec![0; 4 << 20]).unwrap();
    let store = Store::open(&path, Limits::default()).unwrap();
    let mut written = 0;
    let error = loop {
        match apply(&store, written) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 10_000, "the disk never fills");
    };
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
    assert!(
        error.to_string().contains("Free space and retry"),
        "{error}"
    );
    let count = |store: &Store| store.list(|_: &Stored| true).1.len();
    assert_eq!(count(&store), written, "the refused one is not there");
    assert_eq!(store.revision(), written as u64);

    std::fs::remove_file(&filler).unwrap();
    apply(&store, written).unwrap();
    drop(store);
    let store = Store::open(&path, Limits::default()).unwrap();
    assert_eq!(count(&store), written + 1);
    println!("done after {written}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_refuses_the_write_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    // A user and mount namespace of its own: a small file system without being root.
    let script = "mount -t tmpfs -o size=8m tmpfs \"$0\" || exit 77; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(directory.path())
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "in_a_small_file_system",
            "--ignored",
            "--nocapture",
        ])
        .env("LATEEN_TEST_SMALL_DISK", directory.path())
        .output();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output {
        Ok(output) if text(&output.stdout).contains("done after") && output.status.success() => {}
        Ok(output) if text(&output.stdout).contains("running 1 test") => {
            panic!("{}{}", text(&output.stdout), text(&output.stderr));
        }
        // Not every machine lets a test make namespaces.
        _ => eprintln!("SKIPPED a_full_disk: no user and mount namespaces here"),
    }
}
