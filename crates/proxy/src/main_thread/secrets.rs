//! Secrets that do not come from the control plane: from the agent inside this process, or from one
//! behind a socket (Istio's, SPIRE's, `lateen agent`).
//!
//! Each secret that is asked for has a task; what arrives goes to the main loop, whose verdict goes
//! back to where the secret came from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_agent::{Agent, Config as Identity, FileSecret, Material, sds, secret};
use lateen_proxy_config::{SecretRef, SecretSource};
use lateen_xds::Node;
use lateen_xds::client::secret::{SecretEvent, Verdict, follow};
use lateen_xds::client::{Config as ClientConfig, Received, Target};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// The cluster that Istio's configuration asks for the workload's own secrets.
const OWN: &str = "sds-grpc";

/// A secret that came, and who is to be told whether it applies.
pub(super) struct Arrived {
    pub(super) whose: SecretRef,
    pub(super) received: Received,
    pub(super) verdict: oneshot::Sender<Verdict>,
}

enum Source {
    Agent(Agent),
    Socket(Target),
}

/// Asks for secrets.
pub(super) struct Follower {
    node: Node,
    sources: BTreeMap<Arc<str>, Source>,
    tasks: BTreeMap<SecretRef, JoinHandle<()>>,
    arrived: mpsc::Sender<Arrived>,
}

/// The clusters that can be asked. An identity of our own stands for Istio's agent.
pub(super) fn sources(
    sockets: &BTreeMap<Arc<str>, Target>,
    identity: Option<&Identity>,
) -> BTreeSet<Arc<str>> {
    let own = identity.map(|_| Arc::from(OWN));
    sockets.keys().cloned().chain(own).collect()
}

impl Follower {
    /// Starts the agent, if the proxy has an identity of its own.
    pub(super) fn new(
        node: Node,
        sockets: BTreeMap<Arc<str>, Target>,
        identity: Option<Identity>,
    ) -> (Self, mpsc::Receiver<Arrived>) {
        let (arrived, arrivals) = mpsc::channel(4);
        let sockets = sockets.into_iter();
        let mut sources: BTreeMap<Arc<str>, Source> = sockets
            .map(|(name, target)| (name, Source::Socket(target)))
            .collect();
        if let Some(identity) = identity {
            sources.insert(OWN.into(), Source::Agent(Agent::start(identity)));
        }
        let follower = Self {
            node,
            sources,
            tasks: BTreeMap::new(),
            arrived,
        };
        (follower, arrivals)
    }

    pub(super) fn follow(&mut self, whose: &SecretRef) {
        let SecretSource::Cluster(cluster) = &whose.source else {
            return;
        };
        let (whose, arrived) = (whose.clone(), self.arrived.clone());
        let task = match self.sources.get(cluster) {
            // What names such a source is refused before anybody asks.
            None => return,
            Some(Source::Agent(agent)) => {
                tokio::spawn(of_agent(whose.clone(), agent.watch(), arrived))
            }
            Some(Source::Socket(target)) => {
                let config = ClientConfig::new(target.clone(), self.node.clone());
                tokio::spawn(of_socket(whose.clone(), config, arrived))
            }
        };
        self.tasks.insert(whose, task);
    }

    pub(super) fn unfollow(&mut self, whose: &SecretRef) {
        if let Some(task) = self.tasks.remove(whose) {
            task.abort();
        }
    }
}

async fn of_agent(
    whose: SecretRef,
    mut material: watch::Receiver<Material>,
    arrived: mpsc::Sender<Arrived>,
) {
    let mut file = FileSecret::named(&whose.name);
    if file.is_none() && !secret::is_known(&whose.name) {
        tracing::warn!(
            name = &*whose.name,
            "the workload's own agent has no such secret"
        );
    }
    let mut sent = String::new();
    loop {
        let news = match &mut file {
            Some(file) => file.look().cloned(),
            None => secret::of(&material.borrow_and_update(), &whose.name),
        };
        if let Some(news) = news.filter(|news| news.version != sent) {
            sent.clone_from(&news.version);
            let received = Received {
                name: news.name.to_string(),
                version: news.version.clone(),
                any: news.take().into(),
            };
            let (verdict, decided) = oneshot::channel();
            let whose = whose.clone();
            let arrival = Arrived {
                whose,
                received,
                verdict,
            };
            if arrived.send(arrival).await.is_err() {
                return;
            }
            if let Ok(Err(reason)) = decided.await {
                tracing::warn!(reason, "the workload's own secret is of no use");
            }
        }
        match file {
            Some(_) => tokio::time::sleep(sds::LOOK).await,
            None if material.changed().await.is_err() => return,
            None => {}
        }
    }
}

async fn of_socket(whose: SecretRef, config: ClientConfig, arrived: mpsc::Sender<Arrived>) {
    let (sender, mut events) = mpsc::channel(1);
    let asking = follow(config, whose.name.to_string(), sender);
    let passing_on = async {
        let mut told = false;
        while let Some(event) = events.recv().await {
            match event {
                SecretEvent::Arrived { received, verdict } => {
                    told = false;
                    let whose = whose.clone();
                    let arrival = Arrived {
                        whose,
                        received,
                        verdict,
                    };
                    if arrived.send(arrival).await.is_err() {
                        return;
                    }
                }
                // Once is news; the attempts that follow are not.
                SecretEvent::Lost { reason, retry_in } if told => {
                    tracing::debug!(secret = &*whose.name, reason, ?retry_in, "still no agent");
                }
                SecretEvent::Lost { reason, retry_in } => {
                    told = true;
                    let secret = &*whose.name;
                    tracing::warn!(secret, reason, ?retry_in, "no agent for secrets");
                }
            }
        }
    };
    tokio::join!(asking, passing_on);
}
