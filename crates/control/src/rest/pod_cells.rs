//! Cells of a Pod's row, as kubectl's printer makes them.

use serde_json::Value;

const NONE: &str = "<none>";

/// Containers that are ready, of those there are: init containers that keep running count, too.
pub(super) fn ready(body: &Value) -> String {
    let beside = list(body, "/spec/initContainers");
    let beside: Vec<&Value> = beside
        .iter()
        .filter(|one| one["restartPolicy"] == "Always")
        .map(|one| &one["name"])
        .collect();
    let all = list(body, "/spec/containers").len() + beside.len();
    let is_ready = |one: &&Value| one["ready"] == true;
    let own = list(body, "/status/containerStatuses");
    let others = list(body, "/status/initContainerStatuses").iter();
    let others = others.filter(|one| beside.contains(&&one["name"]));
    let ready = own.iter().filter(is_ready).count() + others.filter(is_ready).count();
    format!("{ready}/{all}")
}

/// The phase, or what keeps a container from running, or that it is about to end.
pub(super) fn status(body: &Value) -> String {
    let text = |pointer: &str| {
        let text = body.pointer(pointer).and_then(Value::as_str);
        text.filter(|text| !text.is_empty())
    };
    if text("/metadata/deletionTimestamp").is_some() {
        return match text("/status/reason") {
            Some("NodeLost") => "Unknown".to_owned(),
            _ => "Terminating".to_owned(),
        };
    }
    let phase = text("/status/reason").or_else(|| text("/status/phase"));
    let of_containers = list(body, "/status/containerStatuses").iter();
    let held_up = of_containers.rev().find_map(|one| {
        let reason = |state: &str| {
            let reason = one["state"][state]["reason"].as_str();
            reason.filter(|reason| !reason.is_empty())
        };
        reason("waiting").or_else(|| reason("terminated"))
    });
    held_up.or(phase).unwrap_or("Pending").to_owned()
}

pub(super) fn restarts(body: &Value) -> String {
    let counts = list(body, "/status/containerStatuses").iter();
    let counts = counts.filter_map(|one| one["restartCount"].as_u64());
    counts.fold(0u64, u64::saturating_add).to_string()
}

pub(super) fn address(body: &Value) -> String {
    field(body, "/status/podIP")
}

pub(super) fn node(body: &Value) -> String {
    field(body, "/spec/nodeName")
}

pub(super) fn nominated_node(body: &Value) -> String {
    field(body, "/status/nominatedNodeName")
}

/// Gates that hold, of those there are.
pub(super) fn readiness_gates(body: &Value) -> String {
    let gates = list(body, "/spec/readinessGates");
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let conditions = list(body, "/status/conditions");
    let holds = |gate: &&Value| {
        let mut conditions = conditions.iter();
        conditions.any(|one| one["type"] == gate["conditionType"] && one["status"] == "True")
    };
    format!("{}/{}", gates.iter().filter(holds).count(), gates.len())
}

fn field(body: &Value, pointer: &str) -> String {
    let text = body.pointer(pointer).and_then(Value::as_str);
    text.filter(|text| !text.is_empty())
        .unwrap_or(NONE)
        .to_owned()
}

fn list<'a>(body: &'a Value, pointer: &str) -> &'a [Value] {
    let found = body.pointer(pointer).and_then(Value::as_array);
    found.map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_reads_as_in_kubectl() {
        let check = |body: Value, expect: [&str; 3]| {
            let got = [ready(&body), status(&body), restarts(&body)];
            assert_eq!(got, expect, "{body}");
        };
        check(
            json!({"spec": {"containers": [{"name": "a"}]}}),
            ["0/1", "Pending", "0"],
        );
        let spec = json!({
            "containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "once"}, {"name": "proxy", "restartPolicy": "Always"}],
        });
        let status = json!({
            "phase": "Running",
            "containerStatuses": [
                {"name": "a", "ready": true, "restartCount": 2, "state": {"running": {}}},
                {"name": "b", "ready": false, "restartCount": 1,
                 "state": {"waiting": {"reason": "CrashLoopBackOff"}}},
            ],
            "initContainerStatuses": [
                {"name": "once", "ready": true}, {"name": "proxy", "ready": true},
            ],
        });
        check(
            json!({"spec": spec, "status": status}),
            ["2/3", "CrashLoopBackOff", "3"],
        );
        check(
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": status}),
            ["1/0", "Terminating", "3"],
        );
        check(
            json!({"status": {"phase": "Failed", "reason": "Evicted"}}),
            ["0/0", "Evicted", "0"],
        );
    }
}
