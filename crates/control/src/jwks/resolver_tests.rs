//! Many sources, some of which never answer.

use super::*;
use lateen_testkit::tokens::{Issuer, KeyServer};
use tokio::net::TcpListener;

fn at(uri: String) -> KeySource {
    KeySource {
        issuer: "issuer".to_owned(),
        uri,
    }
}

fn resolver() -> Resolver {
    Resolver {
        fetcher: Arc::new(Fetcher::new(Vec::new(), None, None).unwrap()),
        settings: Settings {
            refresh: Duration::from_secs(600),
            retry: Duration::from_millis(10),
        },
        known: BTreeMap::new(),
        entries: BTreeMap::new(),
        under_way: JoinSet::new(),
        first: Arc::new(Semaphore::new(PARALLEL)),
        again: Arc::new(Semaphore::new(PARALLEL)),
    }
}

impl Resolver {
    /// Goes on until one more fetch has ended.
    async fn step(&mut self) {
        self.start_due(Instant::now());
        let ended = tokio::time::timeout(Duration::from_secs(20), self.under_way.join_next()).await;
        self.end(ended.expect("a fetch ends").unwrap());
    }
}

#[tokio::test]
async fn sources_that_nobody_wants_any_more_give_their_places_back() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().unwrap();
    let server = KeyServer::start().await;
    server.page("/keys", 200, &Issuer::new("issuer").jwks());
    let good = at(server.url("/keys"));
    let year = Duration::from_secs(365 * 24 * 3600);
    let mut wanted: Wanted = (0..2 * PARALLEL)
        .map(|i| (at(format!("http://{silent}/{i}")), year))
        .collect();
    let mut resolver = resolver();
    resolver.want(&wanted);
    resolver.start_due(Instant::now());
    // All of them are at it.
    while resolver.first.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    wanted.clear();
    wanted.insert(good.clone(), Duration::from_secs(5));
    resolver.want(&wanted);
    while resolver.entries[&good].set.keys.is_none() {
        resolver.step().await;
    }
}

#[tokio::test]
async fn who_has_failed_waits_among_those_who_have() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().unwrap();
    let server = KeyServer::start().await;
    server.page("/keys", 200, &Issuer::new("issuer").jwks());
    let mut wanted: Wanted = (0..PARALLEL)
        .map(|i| {
            let source = at(format!("http://{silent}/{i}"));
            (source, Duration::from_millis(50))
        })
        .collect();
    let mut resolver = resolver();
    resolver.want(&wanted);
    for _ in 0..PARALLEL {
        resolver.step().await;
    }
    // From now on they take as long as they are let.
    for limit in wanted.values_mut() {
        *limit = Duration::from_secs(3600);
    }
    let good = at(server.url("/keys"));
    wanted.insert(good.clone(), Duration::from_secs(5));
    resolver.want(&wanted);
    tokio::time::sleep(Duration::from_millis(50)).await;
    while resolver.entries[&good].set.keys.is_none() {
        resolver.step().await;
    }
}

#[tokio::test]
async fn sources_beyond_the_bound_are_told_and_asked_when_there_is_room() {
    let mut wanted: Wanted = (0..=MAX_SOURCES)
        .map(|i| (at(format!("http://127.0.0.1:1/{i:04}")), LONGEST_FETCH))
        .collect();
    let mut resolver = resolver();
    resolver.want(&wanted);
    let told = resolver.sets();
    let last = at(format!("http://127.0.0.1:1/{MAX_SOURCES:04}"));
    assert_eq!(told.keys().collect::<Vec<_>>(), [&last]);
    let error = told[&last].error.as_deref().unwrap();
    assert!(error.contains("more than 1000 sources"), "{error}");
    assert_eq!(resolver.entries[&last].due(), None);

    wanted.pop_first();
    resolver.want(&wanted);
    assert!(resolver.entries[&last].due().is_some());
    assert_eq!(resolver.sets(), KeySets::new());
}
