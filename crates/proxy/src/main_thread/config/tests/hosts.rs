//! Virtual hosts that come by themselves.

use lateen_xds::type_url::VIRTUAL_HOST;

use super::*;

/// A table that wants its virtual hosts so, and answers unknown hosts itself.
fn table(name: &str, version: u32, own: &[&str]) -> Received {
    let hosts = own.iter().map(|domain| rds::VirtualHost {
        name: format!("own {domain}"),
        domains: vec![(*domain).to_owned()],
        ..Default::default()
    });
    let message = rds::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: hosts.collect(),
        vhds: Some(rds::Vhds {
            config_source: Some(ads()),
        }),
        ..Default::default()
    };
    received(ROUTE, name, version, &message)
}

fn host(name: &str, version: u32, domains: &[&str], cluster: &str) -> Received {
    let Some(from) = rds::RouteConfiguration::decode(&*routes("x", 1, &[cluster]).any.value).ok()
    else {
        unreachable!("just encoded")
    };
    let message = rds::VirtualHost {
        name: name.to_owned(),
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        routes: from.virtual_hosts[0].routes.clone(),
        ..Default::default()
    };
    received(VIRTUAL_HOST, name, version, &message)
}

impl Bench {
    /// Which virtual host the table has for a host.
    fn chosen(&self, authority: &str) -> Option<String> {
        let active = self.config.routes["r"].active.as_ref().unwrap();
        let host = active.value.virtual_host(authority.as_bytes())?;
        Some(host.name.to_string())
    }

    fn started() -> Bench {
        let mut bench = Bench::new();
        bench.update(CLUSTER, &[cluster("a", 1)], &[]);
        bench.update(ENDPOINT, &[endpoints("a", 1)], &[]);
        bench.update(LISTENER, &[listener("l", 1, "r")], &[]);
        bench.update(ROUTE, &[table("r", 1, &["*"])], &[]);
        bench
    }
}

#[test]
fn a_table_and_its_listener_wait_for_the_first_virtual_hosts() {
    let mut bench = Bench::started();
    assert_eq!(bench.log(), "cluster a, endpoints a 1");
    assert!(
        bench
            .workers
            .asked
            .contains(&(VIRTUAL_HOST, "*".to_owned()))
    );
    // Not those of another table.
    bench.update(VIRTUAL_HOST, &[host("s/one", 1, &["one"], "a")], &[]);
    assert_eq!(bench.log(), "");
    bench.update(VIRTUAL_HOST, &[host("r/one", 1, &["one"], "a")], &[]);
    assert_eq!(bench.log(), "routes r, listener l");
    assert_eq!(bench.chosen("one").as_deref(), Some("r/one"));
    assert_eq!(bench.chosen("else").as_deref(), Some("own *"));
}

#[test]
fn one_that_changes_is_compiled_alone_and_the_others_stay_the_same() {
    let mut bench = Bench::started();
    let both = [
        host("r/one", 1, &["one"], "a"),
        host("r/two", 1, &["two"], "a"),
    ];
    bench.update(VIRTUAL_HOST, &both, &[]);
    let of = |bench: &Bench, authority: &str| {
        let active = bench.config.routes["r"].active.as_ref().unwrap();
        active
            .value
            .virtual_host(authority.as_bytes())
            .unwrap()
            .clone()
    };
    let (one, two) = (of(&bench, "one"), of(&bench, "two"));
    bench.log();
    bench.update(
        VIRTUAL_HOST,
        &[host("r/one", 2, &["one", "eins"], "a")],
        &[],
    );
    assert_eq!(bench.log(), "routes r");
    assert!(!Arc::ptr_eq(&one, &of(&bench, "one")));
    assert!(Arc::ptr_eq(&two, &of(&bench, "two")));
    assert_eq!(bench.chosen("eins").as_deref(), Some("r/one"));
    // What was known already changes nothing; what is gone is gone.
    bench.update(
        VIRTUAL_HOST,
        &[host("r/one", 2, &["one", "eins"], "a")],
        &[],
    );
    assert_eq!(bench.log(), "");
    bench.update(VIRTUAL_HOST, &[], &["r/one"]);
    assert_eq!(bench.log(), "routes r");
    assert_eq!(bench.chosen("one").as_deref(), Some("own *"));
    // The table itself may change around them.
    bench.update(ROUTE, &[table("r", 2, &[])], &[]);
    assert_eq!(bench.chosen("two").as_deref(), Some("r/two"));
    assert_eq!(bench.chosen("one"), None);
}

#[test]
fn one_that_is_refused_leaves_the_one_before_serving() {
    let mut bench = Bench::started();
    let both = [
        host("r/one", 1, &["one"], "a"),
        host("r/two", 1, &["two"], "a"),
    ];
    bench.update(VIRTUAL_HOST, &both, &[]);
    let mut refused = bench.update(
        VIRTUAL_HOST,
        &[
            host("r/one", 2, &["one", "two"], "a"),
            host("r/three", 1, &["three"], "a"),
        ],
        &[],
    );
    assert_eq!(
        refused,
        ["r/one: domains[1]: 'two' is already a domain of this route configuration"]
    );
    assert_eq!(bench.chosen("one").as_deref(), Some("r/one"));
    assert_eq!(bench.chosen("two").as_deref(), Some("r/two"));
    assert_eq!(bench.chosen("three").as_deref(), Some("r/three"));
    refused = bench.update(VIRTUAL_HOST, &[host("r/two", 2, &[], "a")], &[]);
    assert_eq!(refused, ["r/two: domains: needs at least one domain"]);
    assert_eq!(bench.chosen("two").as_deref(), Some("r/two"));
    // Of two that change at once the one that has the domain keeps it.
    let greedy = host("r/one", 3, &["one", "TWO"], "a");
    let changed = host("r/two", 3, &["two", "zwei"], "a");
    refused = bench.update(VIRTUAL_HOST, &[greedy, changed], &[]);
    assert_eq!(refused, ["r/one: domains: 'two' is a domain of r/two"]);
    assert_eq!(bench.chosen("zwei").as_deref(), Some("r/two"));
    assert_eq!(bench.chosen("one").as_deref(), Some("r/one"));
    // A domain that moves from one to another in one update is no conflict.
    let moved = [host("r/four", 1, &["two"], "a")];
    assert!(bench.update(VIRTUAL_HOST, &moved, &["r/two"]).is_empty());
    assert_eq!(bench.chosen("two").as_deref(), Some("r/four"));
}

#[test]
fn a_new_cluster_is_waited_for_and_what_is_no_longer_asked_for_is_forgotten() {
    let mut bench = Bench::started();
    bench.update(VIRTUAL_HOST, &[host("r/one", 1, &["one"], "a")], &[]);
    bench.update(CLUSTER, &[cluster("b", 1)], &[]);
    bench.log();
    bench.update(VIRTUAL_HOST, &[host("r/one", 2, &["one"], "b")], &[]);
    assert_eq!(bench.log(), "");
    bench.update(ENDPOINT, &[endpoints("b", 1)], &[]);
    assert_eq!(bench.log(), "cluster b, endpoints b 1, routes r");
    bench.update(LISTENER, &[], &["l"]);
    assert_eq!(bench.log(), "no listener l, forget r/, no routes r");
    // Told when nobody asks any more: no reason to begin without it later.
    bench.update(ROUTE, &[], &["r"]);
    bench.update(LISTENER, &[listener("l", 1, "r")], &[]);
    bench.update(ROUTE, &[table("r", 1, &["*"])], &[]);
    assert_eq!(bench.log(), "");
    bench.update(VIRTUAL_HOST, &[host("r/one", 2, &["one"], "b")], &[]);
    assert_eq!(bench.log(), "routes r, listener l");
}
