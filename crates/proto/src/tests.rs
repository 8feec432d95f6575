//! Messages to JSON and back.

use super::*;
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::google::protobuf::{Any, Duration};
use expect_test::expect;
use serde_json::json;

const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

fn descriptors() -> Descriptors {
    Descriptors::load().unwrap()
}

#[test]
fn a_message_keeps_proto_names_enums_durations_and_nested_types() {
    let cluster = Cluster {
        name: "outbound|9080||reviews".to_owned(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(3)),
        connect_timeout: Some(Duration {
            seconds: 10,
            nanos: 500_000_000,
        }),
        typed_extension_protocol_options: [
            (
                "known".to_owned(),
                Any {
                    type_url:
                        "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
                            .to_owned(),
                    value: vec![],
                },
            ),
            (
                "unknown".to_owned(),
                Any {
                    type_url: "type.googleapis.com/x.Y".to_owned(),
                    value: vec![1, 2],
                },
            ),
        ]
        .into(),
        ..Default::default()
    };
    let any = descriptors().any_to_json(
        "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        &cluster.encode_to_vec(),
    );
    expect![[r#"
        {
          "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
          "name": "outbound|9080||reviews",
          "type": "EDS",
          "connect_timeout": "10.500s",
          "typed_extension_protocol_options": {
            "known": {
              "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
            },
            "unknown": {
              "@type": "type.googleapis.com/x.Y",
              "value": "AQI="
            }
          }
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&any).unwrap());
}

#[test]
fn json_becomes_the_same_bytes_the_compiled_types_write() {
    let json = json!({"name": "c", "connectTimeout": "0.25s", "lb_policy": "LEAST_REQUEST"});
    let bytes = descriptors().json_to_message(CLUSTER, &json).unwrap();
    let cluster = Cluster::decode(bytes.as_slice()).unwrap();
    assert_eq!((cluster.name.as_str(), cluster.lb_policy), ("c", 1));
    assert_eq!(
        cluster.connect_timeout,
        Some(Duration {
            seconds: 0,
            nanos: 250_000_000
        })
    );
}

#[test]
fn errors_name_the_type_and_the_cause() {
    let d = descriptors();
    let unknown = d
        .json_to_message(CLUSTER, &json!({"nam": "c"}))
        .unwrap_err()
        .to_string();
    assert!(
        unknown.contains(CLUSTER) && unknown.contains("nam"),
        "{unknown}"
    );
    let missing = d.message_to_json("a.B", &[]).unwrap_err().to_string();
    assert_eq!(missing, "the message type 'a.B' is not known");
    let garbage = d.message_to_json(CLUSTER, &[255]).unwrap_err().to_string();
    assert!(garbage.contains("the bytes are no"), "{garbage}");
}

#[test]
fn damaged_bytes_of_a_known_type_are_kept_as_they_are() {
    let any = descriptors().any_to_json(
        "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        &[255],
    );
    assert_eq!(any["value"], json!("/w=="));
}

#[test]
fn istios_typed_struct_is_readable() {
    let json = json!({
        "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "type_url": "type.googleapis.com/stats.PluginConfig",
        "value": {"debug": "false", "port": 9080, "share": 0.5},
    });
    let any_json = json!({"name": "f", "typed_config": json});
    let name = "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter";
    let d = descriptors();
    let bytes = d.json_to_message(name, &any_json).unwrap();
    assert_eq!(d.message_to_json(name, &bytes).unwrap(), any_json);
}
