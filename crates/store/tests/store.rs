//! The store's promises to its writers, readers and watchers.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::path::PathBuf;
use std::sync::Arc;

use lateen_store::{
    Author, Change, Draft, Event, Limits, ObjectKey, Outcome, Source, Store, StoreError, Verdict,
    Write,
};
use serde_json::{Value, json};

struct Bench {
    _dir: tempfile::TempDir,
    path: PathBuf,
    store: Arc<Store>,
}

fn bench() -> Bench {
    bench_with(Limits::default())
}

fn bench_with(limits: Limits) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    let store = Arc::new(Store::open(&path, limits).unwrap());
    Bench {
        _dir: dir,
        path,
        store,
    }
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("networking.istio.io", "VirtualService", "default", name)
}

fn body(name: &str, host: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"hosts": [host]},
    })
}

fn draft(name: &str, host: &str) -> Draft {
    Draft {
        key: key(name),
        body: body(name, host),
        expected: None,
        file: None,
    }
}

fn by_api() -> Change {
    let author = Author {
        agent: "test".into(),
        user: "ann".into(),
    };
    Change {
        author,
        id: "c1".into(),
        source: Source::Api,
    }
}

fn from_file(file: &str) -> Change {
    let source = Source::Directory {
        directory: "/etc/mesh".into(),
        file: file.into(),
    };
    Change { source, ..by_api() }
}

impl Bench {
    fn write(&self, write: Write) -> Result<Outcome, StoreError> {
        let mut done = self.store.commit(&by_api(), vec![write])?;
        Ok(done.outcomes.remove(0))
    }

    fn apply(&self, name: &str, host: &str) -> Outcome {
        self.write(Write::Apply(draft(name, host))).unwrap()
    }

    fn reopen(self) -> Bench {
        let Bench { _dir, path, store } = self;
        drop(store);
        let store = Arc::new(Store::open(&path, Limits::default()).unwrap());
        Bench { _dir, path, store }
    }
}

#[test]
fn an_applied_object_gets_the_stores_metadata() {
    let bench = bench();
    let outcome = bench.apply("reviews", "reviews");
    assert_eq!(outcome.verdict, Verdict::Created);
    let document = outcome.object.document();
    assert_eq!(document["metadata"]["resourceVersion"], "1");
    assert_eq!(document["metadata"]["generation"], 1);
    assert_eq!(document["metadata"]["uid"].as_str().unwrap().len(), 36);
    assert!(
        document["metadata"]["creationTimestamp"]
            .as_str()
            .unwrap()
            .ends_with('Z')
    );
    assert_eq!(document["spec"]["hosts"][0], "reviews");
}

#[test]
fn applying_the_same_again_makes_no_revision() {
    let bench = bench();
    bench.apply("reviews", "reviews");
    let mut again = draft("reviews", "reviews");
    // What the store owns, and the version a document is written in, are no change.
    again.body["metadata"]["uid"] = json!("made up");
    again.body["apiVersion"] = json!("networking.istio.io/v1alpha3");
    again.body["status"] = json!({"anything": true});
    let done = bench
        .store
        .commit(&by_api(), vec![Write::Apply(again)])
        .unwrap();
    assert_eq!(done.outcomes[0].verdict, Verdict::Unchanged);
    assert_eq!(done.revision, None);
    assert_eq!(bench.store.revision(), 1);
}

#[test]
fn the_generation_counts_changes_of_the_spec_only() {
    let bench = bench();
    bench.apply("reviews", "reviews");
    let mut labelled = draft("reviews", "reviews");
    labelled.body["metadata"]["labels"] = json!({"team": "a"});
    let outcome = bench.write(Write::Apply(labelled)).unwrap();
    assert_eq!(
        (outcome.verdict, outcome.object.generation),
        (Verdict::Configured, 1)
    );
    let outcome = bench.apply("reviews", "other");
    assert_eq!(
        (outcome.object.generation, outcome.object.resource_version),
        (2, 3)
    );
}

#[test]
fn a_stale_resource_version_is_a_conflict() {
    let bench = bench();
    bench.apply("reviews", "one");
    bench.apply("reviews", "two");
    let stale = Draft {
        expected: Some("1".into()),
        ..draft("reviews", "three")
    };
    let error = bench.write(Write::Replace(stale)).unwrap_err();
    assert!(
        matches!(error, StoreError::Conflict { current: 2, .. }),
        "{error}"
    );
    let fresh = Draft {
        expected: Some("2".into()),
        ..draft("reviews", "three")
    };
    bench.write(Write::Replace(fresh)).unwrap();
}

#[test]
fn create_replace_and_delete_check_that_the_object_is_there() {
    let bench = bench();
    let missing = Write::Replace(draft("reviews", "reviews"));
    assert!(matches!(
        bench.write(missing),
        Err(StoreError::NotFound { .. })
    ));
    bench.apply("reviews", "reviews");
    let twice = Write::Create(draft("reviews", "reviews"));
    assert!(matches!(
        bench.write(twice),
        Err(StoreError::AlreadyExists { .. })
    ));
    let delete = || Write::Delete {
        key: key("reviews"),
        expected: None,
        uid: None,
    };
    assert_eq!(bench.write(delete()).unwrap().verdict, Verdict::Deleted);
    assert!(matches!(
        bench.write(delete()),
        Err(StoreError::NotFound { .. })
    ));
    assert!(bench.store.get(&key("reviews")).is_none());
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let bench = bench();
    let writes = vec![
        Write::Apply(draft("one", "one")),
        Write::Replace(draft("missing", "missing")),
    ];
    bench.store.commit(&by_api(), writes).unwrap_err();
    assert_eq!(bench.store.revision(), 0);
    assert!(bench.store.get(&key("one")).is_none());
}

#[test]
fn a_dry_run_changes_nothing() {
    let bench = bench();
    let done = bench
        .store
        .dry_run(&by_api(), vec![Write::Apply(draft("one", "one"))])
        .unwrap();
    assert_eq!(done.outcomes[0].verdict, Verdict::Created);
    assert_eq!(bench.store.revision(), 0);
    assert!(bench.store.get(&key("one")).is_none());
}

#[test]
fn objects_and_log_survive_a_restart() {
    let bench = bench();
    bench.apply("one", "one");
    bench.apply("two", "two");
    bench.apply("one", "changed");
    bench
        .write(Write::Delete {
            key: key("two"),
            expected: None,
            uid: None,
        })
        .unwrap();
    let before = bench.store.list(|_| true);
    let bench = bench.reopen();
    assert_eq!(bench.store.list(|_| true), before);
    assert_eq!(bench.store.revision(), 4);
    let history = bench.store.history(Some(&key("one")), None, 10).unwrap();
    assert_eq!(history.iter().map(|r| r.number).collect::<Vec<_>>(), [3, 1]);
    let change = &history[0].changes[0];
    assert_eq!(
        change.before.as_ref().unwrap().body.value()["spec"]["hosts"][0],
        "one"
    );
    assert_eq!(
        change.after.as_ref().unwrap().body.value()["spec"]["hosts"][0],
        "changed"
    );
    assert_eq!(
        (&*history[0].author.user, &*history[0].change),
        ("ann", "c1")
    );
    assert!(
        bench.store.revision_at(4).unwrap().changes[0]
            .after
            .is_none()
    );
}

#[test]
fn the_log_is_bounded_and_the_objects_are_not_affected() {
    let bench = bench_with(Limits {
        revisions: 5,
        ..Limits::default()
    });
    for n in 0..20 {
        bench.apply("one", &format!("host-{n}"));
    }
    let kept = bench.store.history(None, None, 100).unwrap();
    assert_eq!(
        kept.iter().map(|r| r.number).collect::<Vec<_>>(),
        [20, 19, 18, 17, 16]
    );
    assert!(matches!(
        bench.store.revision_at(1),
        Err(StoreError::Compacted(1))
    ));
    assert_eq!(
        bench.store.get(&key("one")).unwrap().body.value()["spec"]["hosts"][0],
        "host-19"
    );

    let bench = bench_with(Limits {
        log_bytes: 4_000,
        ..Limits::default()
    });
    for n in 0..100 {
        bench.apply("one", &format!("host-{n}"));
    }
    let kept = bench.store.history(None, None, 1_000).unwrap();
    assert!(
        (1..10).contains(&kept.len()),
        "{} revisions kept",
        kept.len()
    );
}

#[test]
fn objects_are_bounded_in_size_and_number() {
    let bench = bench_with(Limits {
        object_bytes: 500,
        objects: 2,
        ..Limits::default()
    });
    let error = bench
        .write(Write::Apply(draft("big", &"x".repeat(600))))
        .unwrap_err();
    assert!(
        matches!(error, StoreError::TooLarge { limit: 500, .. }),
        "{error}"
    );
    bench.apply("one", "one");
    bench.apply("two", "two");
    let error = bench
        .write(Write::Apply(draft("three", "three")))
        .unwrap_err();
    assert!(matches!(error, StoreError::TooMany { limit: 2 }), "{error}");
    bench.apply("two", "changed");
    let swap = vec![
        Write::Delete {
            key: key("one"),
            expected: None,
            uid: None,
        },
        Write::Apply(draft("three", "three")),
    ];
    bench.store.commit(&by_api(), swap).unwrap();
}

#[test]
fn an_object_belongs_to_its_source() {
    let bench = bench();
    let apply = || vec![Write::Apply(draft("reviews", "reviews"))];
    bench.store.commit(&from_file("a.yaml"), apply()).unwrap();
    let error = bench
        .store
        .commit(&by_api(), apply())
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "VirtualService default/reviews belongs to the file /etc/mesh/a.yaml and cannot be \
         changed through the API; change it there"
    );
    // Within one directory it may move to another file.
    let done = bench.store.commit(&from_file("b.yaml"), apply()).unwrap();
    assert_eq!(done.outcomes[0].verdict, Verdict::Configured);
    assert_eq!(done.outcomes[0].object.generation, 1);
}

#[test]
fn a_second_process_is_told_that_the_store_is_in_use() {
    let bench = bench();
    let error = Store::open(&bench.path, Limits::default()).err().unwrap();
    assert!(matches!(error, StoreError::Locked { .. }), "{error:?}");
    assert!(
        error.to_string().contains("in use by another process"),
        "{error}"
    );
}

#[test]
fn a_damaged_file_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store.redb");
    for garbage in [b"not a database at all".to_vec(), vec![0x5a; 64 * 1024]] {
        std::fs::write(&path, garbage).unwrap();
        let error = Store::open(&path, Limits::default()).err().unwrap();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains("move the file away"), "{error}");
    }
}

#[test]
fn an_unwritable_place_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Store::open(&file.join("store.redb"), Limits::default())
        .err()
        .unwrap();
    assert!(error.to_string().contains("store.redb"), "{error}");
}

async fn next(watch: &mut lateen_store::Watch) -> Option<u64> {
    match tokio::time::timeout(std::time::Duration::from_secs(5), watch.next())
        .await
        .unwrap()
    {
        Event::Revision(revision) => Some(revision.number),
        Event::Resync => None,
    }
}

#[tokio::test]
async fn a_watch_gives_the_log_and_then_what_happens() {
    let bench = bench();
    for name in ["one", "two", "three"] {
        bench.apply(name, name);
    }
    let mut watch = bench.store.watch(1).unwrap();
    assert_eq!(next(&mut watch).await, Some(2));
    bench.apply("four", "four");
    assert_eq!(next(&mut watch).await, Some(3));
    assert_eq!(next(&mut watch).await, Some(4));
    let idle = std::time::Duration::from_millis(20);
    assert!(tokio::time::timeout(idle, watch.next()).await.is_err());
}

#[tokio::test]
async fn a_watcher_that_lags_is_told_to_read_anew() {
    let bench = bench_with(Limits {
        watch_lag: 4,
        ..Limits::default()
    });
    let mut watch = bench.store.watch(0).unwrap();
    for n in 0..50 {
        bench.apply("one", &format!("host-{n}"));
    }
    assert_eq!(next(&mut watch).await, None);
    assert_eq!(bench.store.list(|_| true).0, 50);
    bench.apply("one", "last");
    assert_eq!(next(&mut watch).await, Some(51));
}

#[tokio::test]
async fn a_watch_from_before_the_log_starts_with_a_resync() {
    let bench = bench_with(Limits {
        revisions: 3,
        ..Limits::default()
    });
    for n in 0..10 {
        bench.apply("one", &format!("host-{n}"));
    }
    let mut watch = bench.store.watch(2).unwrap();
    assert_eq!(next(&mut watch).await, None);
    bench.apply("one", "last");
    assert_eq!(next(&mut watch).await, Some(11));
    let mut watch = bench.store.watch(9).unwrap();
    assert_eq!(next(&mut watch).await, Some(10));
}

#[tokio::test]
async fn concurrent_writers_get_distinct_revisions_and_watchers_see_each_once() {
    let bench = bench();
    let mut watch = bench.store.watch(0).unwrap();
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let store = bench.store.clone();
            std::thread::spawn(move || {
                for n in 0..10 {
                    let write = Write::Apply(draft(&format!("o{w}"), &format!("host-{n}")));
                    store.commit(&by_api(), vec![write]).unwrap();
                }
            })
        })
        .collect();
    for number in 1..=40 {
        assert_eq!(next(&mut watch).await, Some(number));
    }
    writers.into_iter().for_each(|w| w.join().unwrap());
}
