//! Keeps the control plane's objects in step with what runs: services and workloads at the start,
//! then whether each workload is ready.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::sync::watch;

use super::api::{Api, ApiError};
use super::launch::{app_name, dns_name, sidecar_name};
use crate::objects::{self, MANAGED_BY};
use crate::plan::{Plan, Workload};
use crate::supervise::{State, Table};

/// Between attempts while the control plane is away.
const RETRY: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub struct Publisher {
    api: Api,
    plan: Arc<Plan>,
    table: watch::Receiver<Table>,
    unready: watch::Sender<usize>,
}

impl Publisher {
    pub fn new(api: Api, plan: Arc<Plan>, table: watch::Receiver<Table>) -> Self {
        Self {
            api,
            plan,
            table,
            unready: watch::Sender::default(),
        }
    }

    /// How many workloads the control plane holds to be unready, or is just being told to. It
    /// lags behind the processes, and never says fewer than the control plane does.
    pub fn unready(&self) -> watch::Receiver<usize> {
        self.unready.subscribe()
    }

    /// Puts every object of the plan. Workloads count as ready until they are known not to be, so
    /// that a quick start needs no second round.
    pub async fn put_all(&self) -> Result<(), ApiError> {
        let mut wanted = objects::of_plan(&self.plan);
        let workloads = self.plan.workloads.iter();
        wanted.extend(workloads.map(|workload| objects::workload(workload, Ok(()))));
        // Namespaces first, what is in them then.
        let (namespaces, rest): (Vec<_>, Vec<_>) = wanted
            .iter()
            .partition(|object| object.json["kind"] == "Namespace");
        try_join_all(namespaces.into_iter().map(|object| self.api.apply(object))).await?;
        try_join_all(rest.into_iter().map(|object| self.api.apply(object))).await?;
        self.delete_stale(&wanted).await
    }

    /// Deletes workloads and services that an earlier version of the mesh file had.
    async fn delete_stale(&self, wanted: &[objects::Object]) -> Result<(), ApiError> {
        let collections = [
            "/apis/networking.istio.io/v1/workloadentries",
            "/api/v1/services",
        ];
        for collection in collections {
            for object in self.api.list(collection).await? {
                let metadata = &object["metadata"];
                let (Some(name), Some(namespace)) =
                    (metadata["name"].as_str(), metadata["namespace"].as_str())
                else {
                    continue;
                };
                let (root, plural) = collection.rsplit_once('/').unwrap_or(("", collection));
                let path = format!("{root}/namespaces/{namespace}/{plural}/{name}");
                let ours = metadata["annotations"][MANAGED_BY].is_string();
                if ours && !wanted.iter().any(|object| object.path == path) {
                    self.api.delete(&path).await?;
                }
            }
        }
        Ok(())
    }

    /// Publishes the readiness of every workload whenever it changes. Never returns.
    pub async fn follow(mut self) {
        let mut published: BTreeMap<String, Result<(), String>> = BTreeMap::new();
        loop {
            let table = self.table.borrow_and_update().clone();
            let changed: Vec<(&Workload, Result<(), String>)> = self
                .plan
                .workloads
                .iter()
                .map(|workload| (workload, health(&table, workload)))
                .filter(|(workload, health)| {
                    // What was put at the start says that it is ready.
                    let before = published.get(&workload.name).unwrap_or(&Ok(()));
                    before.is_ok() != health.is_ok()
                })
                .collect();
            // A change to `Err` is of a workload that is not among the published failures.
            let failing = changed.iter().filter(|(_, health)| health.is_err());
            self.unready
                .send_replace(count_failing(&published) + failing.count());
            let puts = changed.into_iter().map(async |(workload, health)| {
                let object = objects::workload(workload, health.clone());
                match self.api.apply(&object).await {
                    Ok(()) => Some((workload.name.clone(), health)),
                    Err(error) if error.is_temporary() => None,
                    Err(error) => {
                        tracing::warn!(%error, "cannot publish the state of a workload");
                        Some((workload.name.clone(), health))
                    }
                }
            });
            let done = join_all(puts).await;
            let all = done.iter().all(Option::is_some);
            published.extend(done.into_iter().flatten());
            self.unready.send_replace(count_failing(&published));
            if all {
                if self.table.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            } else {
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn count_failing(published: &BTreeMap<String, Result<(), String>>) -> usize {
    published.values().filter(|health| health.is_err()).count()
}

/// Why a workload should get no requests, if it should not.
fn health(table: &Table, workload: &Workload) -> Result<(), String> {
    let name = &workload.name;
    for name in [app_name(name), sidecar_name(name), dns_name(name)] {
        let Some(status) = table.iter().find(|status| status.name == name) else {
            continue;
        };
        match &status.state {
            State::Ready | State::Stopped => {}
            State::Starting => return Err(format!("{name} is starting")),
            State::Unready(reason) => return Err(format!("{name} is not ready: {reason}")),
            State::Restarting { reason, .. } => return Err(format!("{name} {reason}")),
        }
    }
    Ok(())
}
