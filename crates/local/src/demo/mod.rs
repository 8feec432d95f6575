//! The files of `lateen demo`: a mesh file like any other, its first configuration, and an example
//! to try.

/// The mesh file.
pub const MESH: &str = include_str!("mesh.yaml");
/// The gateway and the routes into it, applied at the first start.
pub const GATEWAY: &str = include_str!("gateway.yaml");
/// What the demo suggests to apply: file name and content.
pub const EXAMPLE: (&str, &str) = (
    "canary.yaml",
    include_str!("../../../../examples/bookinfo/canary.yaml"),
);
/// The page that the demo is about.
pub const PAGE: &str = "/productpage";

#[cfg(test)]
mod tests {
    use lateen_api::{Mode, parse, parse_mesh_file};

    use crate::plan::{PlanOptions, plan};

    #[test]
    fn the_embedded_files_are_correct_and_give_the_documented_ports() {
        for text in [super::GATEWAY, super::EXAMPLE.1] {
            let parsed = parse("embedded", text, Mode::Strict);
            assert!(!parsed.has_errors(), "{}", parsed.render(text, false));
            assert_eq!(parsed.objects.len(), 2);
        }
        let file = parse_mesh_file("mesh.yaml", super::MESH).unwrap();
        let options = PlanOptions {
            port_base: 15000,
            gateway_port: Some(8080),
            directory: "/".into(),
            network: None,
        };
        let plan = plan(&file, &options).unwrap();
        let ports = |index: usize| {
            let workload = &plan.workloads[index];
            let port = &workload.ports[0];
            (
                workload.name.as_str(),
                workload.admin,
                workload.outbound,
                port.inbound,
                port.app,
            )
        };
        assert_eq!(ports(0), ("productpage-v1", 15100, 15101, 15102, 15103));
        assert_eq!(ports(5), ("reviews-v3", 15150, 15151, 15152, 15153));
        let control = plan.control;
        assert_eq!(
            (control.xds, control.monitoring, control.api),
            (15010, 15014, 15088)
        );
        let gateway = &plan.gateways[0];
        assert_eq!(
            (gateway.admin, gateway.http, gateway.https),
            (15000, 8080, 8443)
        );
        assert_eq!(plan.services.len(), 4);
    }
}
