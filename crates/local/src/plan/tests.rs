//! Plans of mesh files: ports, defaults, and the example of the documentation.

use lateen_api::parse_mesh_file;
use serde_json::json;

use super::*;

fn planned(text: &str) -> Plan {
    planned_from(text, 15000).unwrap()
}

fn planned_from(text: &str, port_base: u16) -> Result<Plan, PlanError> {
    let file = parse_mesh_file("mesh.yaml", text).unwrap();
    plan(
        &file,
        &PlanOptions {
            port_base,
            gateway_port: None,
            directory: "/home/me".into(),
            network: None,
        },
    )
}

#[test]
fn the_example_of_the_documentation_can_be_run() {
    let document = include_str!("../../../../docs/mesh-file.md");
    let example = document
        .split("```yaml\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let plan = planned(example);
    assert_eq!(plan.name.as_deref(), Some("shop"));
    assert_eq!(plan.config, [PathBuf::from("/home/me/routes.yaml")]);
    let workload = |name: &str| plan.workloads.iter().find(|w| w.name == name).unwrap();
    let web = workload("web-v1");
    assert_eq!(web.directory, PathBuf::from("/home/me/./web"));
    let labels: Vec<String> = web.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(
        labels,
        [
            "app=web",
            "security.istio.io/tlsMode=istio",
            "tier=front",
            "version=v1"
        ]
    );
    assert_eq!(workload("mysql").ports[0].app, 3306);
    let tcp: Vec<String> = web
        .tcp_outbound
        .iter()
        .map(TcpOutbound::host_and_port)
        .collect();
    assert_eq!(tcp, ["mysql.default.svc.cluster.local:3306"]);
    let gateway = &plan.gateways[0];
    assert_eq!(
        (gateway.name.as_str(), gateway.http, gateway.https),
        (DEFAULT_GATEWAY, 8080, 8443)
    );
}

#[test]
fn a_workload_with_a_locality_knows_its_siblings() {
    let text = |locality: &str| {
        format!("workloads: [{{name: a, command: [x], ports: [{{port: 80}}]{locality}}}]")
    };
    let bootstrap = |text: &str| {
        let place = Place::in_run_dir(Path::new("/run"), "a");
        planned(text).bootstrap_of("a", &place).unwrap()
    };
    let nowhere = bootstrap(&text(""));
    assert_eq!(nowhere.get("cluster_manager"), None);
    assert_eq!(nowhere["node"].get("locality"), None);
    let settled = bootstrap(&text(", locality: eu/eu-1"));
    assert_eq!(
        settled["node"]["locality"],
        json!({"region": "eu", "zone": "eu-1", "sub_zone": ""})
    );
    assert_eq!(settled["node"]["metadata"]["ENABLE_SELF_DISCOVERY"], "true");
    let name = &settled["cluster_manager"]["local_cluster_name"];
    let clusters = settled["static_resources"]["clusters"].as_array().unwrap();
    assert!(
        clusters
            .iter()
            .any(|cluster| cluster["name"] == *name && cluster["type"] == "EDS")
    );
    let plan = planned(&text(", locality: eu/eu-1"));
    let entry = crate::objects::workload(&plan.workloads[0], Ok(()));
    assert_eq!(entry.json["spec"]["locality"], "eu/eu-1");
    for wrong in ["eu//x", "eu/*", "a/b/c/d"] {
        let refused = planned_from(&text(&format!(", locality: {wrong:?}")), 15000);
        assert!(matches!(refused, Err(PlanError::File(_))), "{refused:?}");
    }
}

#[test]
fn protocols_follow_the_field_then_the_name_then_http() {
    let check = |port: &str, name: &str, protocol: Protocol| {
        let text = format!("workloads: [{{name: a, command: [x], ports: [{{port: 80, {port}}}]}}]");
        let made = &planned(&text).services[0].ports[0];
        assert_eq!(
            (made.name.as_str(), made.protocol),
            (name, protocol),
            "{port}"
        );
    };
    check("", "http", Protocol::Http);
    check("name: web", "web", Protocol::Http);
    check("name: grpc-web", "grpc-web", Protocol::Grpc);
    check("name: tcp", "tcp", Protocol::Tcp);
    check("protocol: TCP", "tcp", Protocol::Tcp);
    check("name: grpc, protocol: http2", "grpc", Protocol::Http2);
}

#[test]
fn a_workload_with_many_ports_takes_more_than_one_block() {
    let plan = planned(
        "
workloads:
  - name: big
    command: [x]
    ports: [{port: 1, name: a}, {port: 2, name: b}, {port: 3, name: c}, {port: 4, name: d},
            {port: 5, name: tcp}]
  - name: small
    command: [x]
",
    );
    let [big, small] = &plan.workloads[..] else {
        panic!("two workloads")
    };
    let ports: Vec<(u16, u16)> = big
        .ports
        .iter()
        .map(|port| (port.inbound, port.app))
        .collect();
    assert_eq!((big.admin, big.outbound), (15100, 15101));
    let expect = [
        (15102, 15103),
        (15104, 15105),
        (15106, 15107),
        (15108, 15109),
        (15110, 15111),
    ];
    assert_eq!(ports, expect);
    assert_eq!(big.tcp_outbound[0].local, 15112);
    assert_eq!(
        (small.admin, small.outbound, small.tcp_outbound[0].local),
        (15120, 15121, 15122)
    );
    assert!(small.ports.is_empty());
    assert_eq!(
        plan.services.len(),
        1,
        "a workload without ports is no service"
    );
}

#[test]
fn ports_that_do_not_fit_or_collide_are_errors() {
    let text = "workloads: [{name: a, command: [x], ports: [{port: 80, appPort: 15010}]}]";
    let collision = planned_from(text, 15000).unwrap_err();
    let PlanError::Ports(error) = collision else {
        panic!("{collision:?}")
    };
    let message = error.to_string();
    assert!(
        message.starts_with("port 15010 is needed twice: by the control plane"),
        "{message}"
    );
    let beyond = planned_from("workloads: [{name: a, command: [x]}]", 65_500).unwrap_err();
    assert!(
        matches!(beyond, PlanError::Ports(PortsError::Beyond(65_500))),
        "{beyond:?}"
    );
}

#[test]
fn a_moved_proxy_keeps_its_application() {
    let mut plan = planned("workloads: [{name: a, command: [x], ports: [{port: 80}]}]");
    plan.move_proxy("a", 20_000).unwrap();
    let workload = &plan.workloads[0];
    let port = &workload.ports[0];
    assert_eq!((workload.admin, workload.outbound), (20_000, 20_001));
    assert_eq!((port.inbound, port.app), (20_002, 15_103));
    let place = Place::in_run_dir(std::path::Path::new("/run"), "a");
    let bootstrap = plan.bootstrap_of("a", &place).unwrap();
    assert_eq!(
        bootstrap["node"]["id"],
        "sidecar~127.0.0.1~a.default~default.svc.cluster.local"
    );
    assert_eq!(
        bootstrap["node"]["metadata"]["LATEEN_INBOUND"]["20002"],
        15_103
    );
    assert!(plan.move_proxy("b", 1).is_err());
}
