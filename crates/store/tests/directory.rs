//! A directory as the source of objects: what is written there is what the store has.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests stop at what is not as expected"
)]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_store::{
    Author, Change, Directory, DirectoryOptions, Draft, Limits, ObjectKey, Source, Store, Write,
};
use serde_json::json;

struct Bench {
    _temporary: tempfile::TempDir,
    config: PathBuf,
    database: PathBuf,
    store: Arc<Store>,
}

fn bench() -> Bench {
    let temporary = tempfile::tempdir().unwrap();
    let config = temporary.path().join("config");
    fs::create_dir(&config).unwrap();
    let database = temporary.path().join("store.redb");
    let store = Arc::new(Store::open(&database, Limits::default()).unwrap());
    Bench {
        _temporary: temporary,
        config,
        database,
        store,
    }
}

fn rule(name: &str, host: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: {name}\n\
         spec:\n  host: {host}\n"
    )
}

impl Bench {
    fn write(&self, file: &str, text: &str) {
        let path = self.config.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn start(&self) -> Directory {
        let options = DirectoryOptions {
            settle: Duration::from_millis(20),
            poll: Duration::from_millis(300),
            ..DirectoryOptions::default()
        };
        Directory::start(self.store.clone(), &self.config, options).unwrap()
    }

    /// `name=host` of every DestinationRule.
    fn rules(&self) -> Vec<String> {
        let (_, objects) = self.store.list(|o| o.key.kind == "DestinationRule");
        let rule = |o: &Arc<lateen_store::Stored>| {
            format!(
                "{}={}",
                o.key.name,
                o.body.value()["spec"]["host"].as_str().unwrap()
            )
        };
        objects.iter().map(rule).collect()
    }

    fn becomes(&self, expect: &[&str]) {
        wait_for(
            || self.rules() == expect,
            || format!("{:?} != {expect:?}", self.rules()),
        );
    }

    /// The thread of a directory that was dropped may still hold the store for a moment.
    fn is_left_alone(&self) {
        wait_for(
            || Arc::strong_count(&self.store) == 1,
            || "still followed".into(),
        );
    }

    fn change(&self) -> Change {
        Change {
            author: Author::default(),
            id: String::new(),
            source: Source::Api,
        }
    }
}

fn wait_for(done: impl Fn() -> bool, state: impl Fn() -> String) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(30), "{}", state());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn files_are_in_the_store_before_start_returns_and_changes_follow() {
    let bench = bench();
    bench.write("a.yaml", &rule("a", "one"));
    bench.write("sub/b.yml", &rule("b", "one"));
    bench.write(".hidden.yaml", &rule("hidden", "x"));
    bench.write("notes.txt", "not configuration");
    let directory = bench.start();
    assert_eq!(bench.rules(), ["a=one", "b=one"]);
    assert_eq!(bench.store.revision(), 1, "one reading is one revision");

    bench.write("a.yaml", &rule("a", "two"));
    bench.becomes(&["a=two", "b=one"]);
    bench.write(
        "c.yaml",
        &format!("{}---\n{}", rule("c", "one"), rule("d", "one")),
    );
    bench.becomes(&["a=two", "b=one", "c=one", "d=one"]);
    fs::remove_file(bench.config.join("a.yaml")).unwrap();
    bench.becomes(&["b=one", "c=one", "d=one"]);
    fs::rename(bench.config.join("c.yaml"), bench.config.join("z.yaml")).unwrap();
    wait_for(
        || {
            directory
                .status()
                .files
                .get("z.yaml")
                .is_some_and(|f| f.objects == 2)
        },
        || format!("{:?}", directory.status()),
    );
    assert_eq!(bench.rules(), ["b=one", "c=one", "d=one"]);
    let key = ObjectKey::new("networking.istio.io", "DestinationRule", "default", "c");
    let moved = bench.store.get(&key).unwrap();
    assert_eq!(moved.generation, 1, "a move is no change of the object");
}

#[test]
fn another_file_in_the_place_of_one_is_read_however_alike_they_look() {
    let bench = bench();
    bench.write("a.yaml", &rule("a", "one"));
    let then = std::time::SystemTime::now() - Duration::from_secs(60);
    let dated = |file: &str| {
        let file = fs::File::options()
            .write(true)
            .open(bench.config.join(file));
        file.unwrap().set_modified(then).unwrap();
    };
    dated("a.yaml");
    let _directory = bench.start();
    bench.becomes(&["a=one"]);
    // What is hidden is not read.
    bench.write(".next", &rule("a", "two"));
    dated(".next");
    fs::rename(bench.config.join(".next"), bench.config.join("a.yaml")).unwrap();
    bench.becomes(&["a=two"]);
}

#[test]
fn a_broken_file_keeps_what_it_declared_and_is_reported() {
    let bench = bench();
    bench.write("a.yaml", &rule("a", "one"));
    bench.write("b.yaml", &rule("b", "one"));
    let directory = bench.start();
    let errors = |file: &str| directory.status().files[file].errors.join("\n");

    for broken in [
        "",
        "kind: [half written",
        "apiVersion: v9\nkind: Nonsense\n",
    ] {
        bench.write("a.yaml", broken);
        wait_for(|| !errors("a.yaml").is_empty(), || broken.to_owned());
        assert_eq!(bench.rules(), ["a=one", "b=one"], "{broken:?}");
        assert!(errors("a.yaml").contains("a.yaml"), "{}", errors("a.yaml"));
        assert_eq!(directory.status().files["a.yaml"].objects, 1);
        bench.write("a.yaml", &rule("a", "one"));
        wait_for(|| errors("a.yaml").is_empty(), || errors("a.yaml"));
    }

    // A good document beside a wrong one counts; the wrong one's last good form stays.
    bench.write(
        "a.yaml",
        &format!("{}---\n{}", rule("a", "one"), rule("c", "one")),
    );
    bench.becomes(&["a=one", "b=one", "c=one"]);
    bench.write("a.yaml", &format!("{}---\nkind: [", rule("a", "two")));
    bench.becomes(&["a=two", "b=one", "c=one"]);
}

#[test]
fn an_unknown_field_is_a_warning() {
    let bench = bench();
    bench.write(
        "a.yaml",
        &format!("{}  trafficPolicyy: {{}}\n", rule("a", "one")),
    );
    let directory = bench.start();
    assert_eq!(bench.rules(), ["a=one"]);
    let status = directory.status();
    let warnings = status.files["a.yaml"].warnings.join("\n");
    assert!(warnings.contains("trafficPolicy"), "{warnings}");
}

#[test]
fn what_the_api_owns_stays_the_apis_and_the_rest_is_read() {
    let bench = bench();
    let key = ObjectKey::new("networking.istio.io", "DestinationRule", "default", "a");
    let body = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": "a", "namespace": "default"}, "spec": {"host": "api"},
    });
    let draft = Draft {
        key: key.clone(),
        body,
        expected: None,
        file: None,
    };
    bench
        .store
        .commit(&bench.change(), vec![Write::Apply(draft)])
        .unwrap();
    bench.write("a.yaml", &rule("a", "file"));
    bench.write("b.yaml", &rule("b", "file"));
    let directory = bench.start();
    assert_eq!(bench.rules(), ["a=api", "b=file"]);
    let errors = directory.status().files["a.yaml"].errors.join("\n");
    assert!(errors.contains("belongs to the API"), "{errors}");
    // It is taken over once the API lets go of it.
    let delete = Write::Delete {
        key,
        expected: None,
        uid: None,
    };
    bench.store.commit(&bench.change(), vec![delete]).unwrap();
    bench.becomes(&["a=file", "b=file"]);
}

#[test]
fn the_same_object_in_two_files_is_reported_with_both() {
    let bench = bench();
    bench.write("a.yaml", &rule("same", "a"));
    bench.write("b.yaml", &rule("same", "b"));
    let directory = bench.start();
    assert_eq!(bench.rules(), ["same=a"]);
    let errors = directory.status().files["b.yaml"].errors.join("\n");
    assert!(
        errors.contains("b.yaml") && errors.contains("a.yaml"),
        "{errors}"
    );
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let mut bench = bench();
    bench.write("a.yaml", &rule("a", "one"));
    bench.write("b.yaml", &rule("b", "one"));
    drop(bench.start());
    let before = bench.store.revision();
    drop(bench.start());
    assert_eq!(bench.store.revision(), before, "nothing changed");

    // While nobody looked: one file broke, one vanished.
    bench.write("a.yaml", "kind: [");
    fs::remove_file(bench.config.join("b.yaml")).unwrap();
    bench.is_left_alone();
    // The file is locked as long as a store is open: let go of it before opening it again.
    let elsewhere = bench.database.with_extension("elsewhere");
    bench.store = Arc::new(Store::open(&elsewhere, Limits::default()).unwrap());
    bench.store = Arc::new(Store::open(&bench.database, Limits::default()).unwrap());
    let _directory = bench.start();
    assert_eq!(bench.rules(), ["a=one"]);
}

#[test]
fn a_directory_that_is_no_longer_configured_leaves_nothing() {
    let bench = bench();
    bench.write("a.yaml", &rule("a", "one"));
    drop(bench.start());
    bench.is_left_alone();
    assert_eq!(
        Directory::retire_others(&bench.store, Some(&bench.config)).unwrap(),
        0
    );
    assert_eq!(Directory::retire_others(&bench.store, None).unwrap(), 1);
    assert!(bench.rules().is_empty());
}

#[test]
fn a_missing_directory_is_an_error_at_start_and_keeps_everything_later() {
    let bench = bench();
    let missing = bench.config.join("missing");
    let error = Directory::start(bench.store.clone(), &missing, DirectoryOptions::default());
    assert!(error.err().unwrap().to_string().contains("missing"));

    bench.write("a.yaml", &rule("a", "one"));
    let directory = bench.start();
    let away = bench.config.with_extension("away");
    fs::rename(&bench.config, &away).unwrap();
    wait_for(
        || directory.status().error.is_some(),
        || format!("{:?}", directory.status()),
    );
    assert_eq!(bench.rules(), ["a=one"]);
    fs::rename(&away, &bench.config).unwrap();
    fs::write(bench.config.join("a.yaml"), rule("a", "two")).unwrap();
    bench.becomes(&["a=two"]);
    assert_eq!(directory.status().error, None);
}
