//! Rules of `Pod`: of the fields that are read, and of no other.

use super::{Checker, Validate, kubernetes, names};
use crate::object::{Object, Spec};
use crate::pod::{Container, Pod, PodStatus};

impl Validate for Pod {
    fn validate(&self, check: &mut Checker) {
        let spec = &self.spec;
        check.list("containers", &spec.containers, container);
        check.list("initContainers", &spec.init_containers, container);
        for (field, name) in [
            ("serviceAccountName", &spec.service_account_name),
            ("serviceAccount", &spec.service_account),
        ] {
            if !name.is_empty() {
                check.field(field, |check| check.syntax(names::subdomain(name)));
            }
        }
        for (field, name) in [("hostname", &spec.hostname), ("subdomain", &spec.subdomain)] {
            if !name.is_empty() {
                check.field(field, |check| check.syntax(names::label(name)));
            }
        }
    }
}

fn container(check: &mut Checker, container: &Container) {
    check.list("ports", &container.ports, |check, port| {
        check.field("containerPort", |check| check.port(port.container_port));
        if !port.name.is_empty() {
            check.field("name", |check| {
                check.syntax(kubernetes::port_name(&port.name))
            });
        }
    });
}

/// The status of a Pod says where it is and whether it serves.
pub fn status(object: &Object, check: &mut Checker) {
    let Spec::Pod(_) = &object.spec else {
        return;
    };
    let (status, problems) = PodStatus::read(object.status.as_ref());
    check.embedded(problems);
    let address = |check: &mut Checker, text: &String| {
        if !text.is_empty() && !names::is_ip(text) {
            check.error(format!("{text:?} is not an IP address"));
        }
    };
    check.field("podIP", |check| address(check, &status.pod_ip));
    check.list("podIPs", &status.pod_ips, |check, one| {
        check.field("ip", |check| address(check, &one.ip));
    });
}
