//! Virtual hosts by name: which are sent with which table.

use envoy_types::pb::envoy::config::core::v3::ConfigSource;
use envoy_types::pb::envoy::config::route::v3::{RouteConfiguration, Vhds};

use super::*;
use crate::type_url::VIRTUAL_HOST;

/// Route tables of this content and above have their virtual hosts apart.
pub(super) const APART: u32 = 100;

pub(super) fn table(name: &str, content: u32) -> Arc<Resource> {
    let message = RouteConfiguration {
        name: name.to_owned(),
        vhds: Some(Vhds {
            config_source: Some(ConfigSource::default()),
        }),
        ..Default::default()
    };
    let version = content.to_string();
    Arc::new(Resource::with_version(name, version, ROUTE, &message))
}

const HOSTS: [(&str, &str, u32); 5] = [
    (ROUTE, "r", APART),
    (ROUTE, "s", APART),
    (VIRTUAL_HOST, "r/a", 1),
    (VIRTUAL_HOST, "r/b", 1),
    (VIRTUAL_HOST, "s/a", 1),
];

fn set(driver: &mut Driver, name: &str, content: Option<u32>) {
    let hosts = driver.world.0.entry(VIRTUAL_HOST).or_default();
    match content {
        Some(content) => hosts.insert(name.to_owned(), content),
        None => hosts.remove(name),
    };
}

/// A client that follows the table `r`.
fn started() -> Driver {
    let mut driver = Driver::new(Protocol::Delta, World::of(&HOSTS));
    let first = driver.delta(delta(ROUTE, &["r"]));
    assert_eq!(show(&first), "rds +r@100");
    driver.ack_all(&first);
    let hosts = driver.delta(delta(VIRTUAL_HOST, &[]));
    assert_eq!(show(&hosts), "vhds +r/a@1 +r/b@1");
    driver.ack_all(&hosts);
    driver
}

fn push(driver: &mut Driver, names: &[&str]) -> String {
    let mut changed = Changed::names(VIRTUAL_HOST, names.iter().copied());
    changed.add(ROUTE, Names::All);
    let responses = driver.push(changed);
    driver.ack_all(&responses);
    show(&responses)
}

#[test]
fn a_changed_virtual_host_is_sent_alone_and_one_that_went_is_told_with_what_came() {
    let mut driver = started();
    set(&mut driver, "r/b", Some(2));
    assert_eq!(push(&mut driver, &["r/b"]), "vhds +r/b@2");
    set(&mut driver, "r/b", None);
    set(&mut driver, "r/c", Some(1));
    assert_eq!(push(&mut driver, &["r/b", "r/c"]), "vhds +r/c@1 -r/b");
    // Of a table that was not asked for.
    set(&mut driver, "s/a", Some(2));
    assert_eq!(push(&mut driver, &["s/a"]), "");
    // The same when everything has to be looked at.
    set(&mut driver, "r/a", None);
    set(&mut driver, "r/d", Some(1));
    let all = driver.push(Changed::All);
    assert_eq!(show(&all), "vhds +r/d@1 -r/a");
}

#[test]
fn a_table_that_is_asked_for_later_brings_its_virtual_hosts_right_behind() {
    let mut driver = started();
    let both = driver.delta(delta(ROUTE, &["s"]));
    assert_eq!(show(&both), "rds +s@100; vhds +s/a@1");
    driver.ack_all(&both);
    // Envoy drops them with the table, and asks for the table alone when it needs it again.
    let mut without = delta(ROUTE, &[]);
    without.resource_names_unsubscribe = vec!["s".into()];
    assert_eq!(show(&driver.delta(without)), "");
    set(&mut driver, "s/a", Some(2));
    assert_eq!(push(&mut driver, &["s/a"]), "");
    let again = driver.delta(delta(ROUTE, &["s"]));
    assert_eq!(show(&again), "rds +s@100; vhds +s/a@2");
}

#[test]
fn a_table_whose_content_changes_keeps_its_virtual_hosts() {
    let mut driver = started();
    let tables = driver.world.0.get_mut(ROUTE).unwrap();
    tables.insert("r".into(), APART + 1);
    assert_eq!(push(&mut driver, &[]), "rds +r@101");
    // And one that went leaves them to the client, which goes on with what it has.
    driver.world.0.get_mut(ROUTE).unwrap().remove("r");
    set(&mut driver, "r/a", None);
    set(&mut driver, "r/b", None);
    let gone = driver.push(Changed::All);
    assert_eq!(show(&gone), "rds -r");
    driver.ack_all(&gone);
    // When it is back the client may have dropped everything.
    driver.world = World::of(&HOSTS);
    let back = driver.push(Changed::All);
    assert_eq!(show(&back), "rds +r@100; vhds +r/a@1 +r/b@1");
}

#[test]
fn after_a_reconnect_only_what_differs_is_sent_but_all_of_a_table_that_is_new() {
    let mut driver = Driver::new(Protocol::Delta, World::of(&HOSTS));
    let held = |url: &str, names: &[&str], versions: &[(&str, &str)]| DeltaDiscoveryRequest {
        initial_resource_versions: versions
            .iter()
            .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
            .collect(),
        ..delta(url, names)
    };
    let routes = driver.delta(held(ROUTE, &["r", "s"], &[("r", "100")]));
    assert_eq!(show(&routes), "rds +s@100");
    let versions = [
        ("r/a", "1"),
        ("r/b", "0"),
        ("r/gone", "1"),
        ("s/a", "1"),
        ("t/a", "1"),
    ];
    let hosts = driver.delta(held(VIRTUAL_HOST, &[], &versions));
    assert_eq!(show(&hosts), "vhds +r/b@1 +s/a@1 -r/gone");
}

#[test]
fn a_refused_virtual_host_is_tried_alone_and_shown() {
    let mut driver = started();
    set(&mut driver, "r/c", Some(1));
    assert_eq!(push(&mut driver, &["r/c"]), "vhds +r/c@1");
    set(&mut driver, "r/a", Some(2));
    set(&mut driver, "r/b", Some(2));
    set(&mut driver, "r/c", None);
    let changed = Changed::names(VIRTUAL_HOST, ["r/a", "r/b", "r/c"]);
    let mut sent = driver.push(changed);
    assert_eq!(show(&sent), "vhds +r/a@2 +r/b@2 -r/c");
    // As Envoy does: it refuses all and names none.
    let refuse = |driver: &mut Driver, response: &Response| {
        driver.delta(DeltaDiscoveryRequest {
            response_nonce: response.nonce.clone(),
            error_detail: Some(rpc::Status {
                message: "Only unique values for domains are permitted".into(),
                ..Default::default()
            }),
            ..delta(VIRTUAL_HOST, &[])
        })
    };
    // With all of it, what it was to remove as well.
    sent = refuse(&mut driver, &sent[0]);
    assert_eq!(show(&sent), "vhds +r/a@2 -r/c");
    let next = driver.delta(DeltaDiscoveryRequest {
        response_nonce: sent[0].nonce.clone(),
        ..delta(VIRTUAL_HOST, &[])
    });
    assert_eq!(show(&next), "vhds +r/b@2");
    assert_eq!(show(&refuse(&mut driver, &next[0])), "");
    let status = &driver.session.status(Detail::Resources)[VIRTUAL_HOST];
    assert_eq!(status.resources["r/a"].state, ResourceState::Acked);
    assert!(matches!(
        status.resources["r/b"].state,
        ResourceState::Rejected(_)
    ));
    assert!(status.nack.is_some());
}
