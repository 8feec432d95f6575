//! The thread of one worker: its runtime, and the loop that applies configuration.

use super::Shared;
use super::mailbox::{Command, Inbox, WorkerUpdate};
use super::state::Worker;
use crate::upstream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use tokio::runtime::{Builder, LocalOptions};
use tokio::task::spawn_local;

/// Starts worker `index`. An error of its runtime comes back here.
pub(super) fn spawn(
    index: usize,
    shared: Arc<Shared>,
    inbox: Inbox,
) -> std::io::Result<JoinHandle<()>> {
    let (started, wait) = sync_channel(1);
    let thread = std::thread::Builder::new()
        .name(format!("worker-{index}"))
        .spawn(move || {
            let runtime = Builder::new_current_thread()
                .enable_all()
                // Look at sockets after every 61 tasks at the latest; the default.
                .event_interval(61)
                // What blocks is lookups of names that requests bring, if any do.
                .max_blocking_threads(32)
                .thread_stack_size(512 * 1024)
                .build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => {
                    let _ = started.send(Ok(()));
                    runtime.block_on(run(Worker::new(shared), inbox));
                }
                Err(error) => drop(started.send(Err(error))),
            }
        })?;
    match wait.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(std::io::Error::other("the thread ended at once")),
    }
}

/// Serves until told to stop. Tasks that still run then end with the runtime.
async fn run(worker: Rc<Worker>, mut inbox: Inbox) {
    spawn_local(worker.timers.clone().drive());
    spawn_local(upstream::sweep::run(worker.clone()));
    spawn_local(crate::access_log::flush_regularly(worker.clone()));
    while let Some(command) = inbox.recv().await {
        match command {
            Command::Stop => break,
            Command::Flush(done) => drop(done.send(())),
            command => apply(&worker, command),
        }
    }
    worker.listeners.stop(&worker);
    worker.logs.flush();
}

fn apply(worker: &Rc<Worker>, command: Command) {
    match command {
        Command::Update(WorkerUpdate::Cluster(cluster)) => worker.clusters.set(worker, cluster),
        Command::Update(WorkerUpdate::RemoveCluster(name)) => {
            worker.clusters.remove(worker, &name);
        }
        Command::Update(WorkerUpdate::Endpoints(cluster, endpoints)) => {
            worker.clusters.set_endpoints(worker, &cluster, endpoints);
        }
        Command::Update(WorkerUpdate::Routes(table)) => worker.set_routes(table),
        Command::Update(WorkerUpdate::RemoveRoutes(name)) => worker.remove_routes(&name),
        Command::Update(WorkerUpdate::RemoveListener(name)) => {
            worker.listeners.remove(worker, &name);
        }
        Command::Rearrange(cluster) => worker.clusters.rearrange(worker, &cluster),
        Command::Listener(open) => worker.listeners.set(worker, open.listener, open.sockets),
        Command::Draining(draining) => {
            worker.draining.set(draining);
            worker.listeners.wake_connections();
        }
        Command::StopListening => worker.listeners.stop(worker),
        // The main thread turns listeners into `Command::Listener`; the others are handled above.
        Command::Update(WorkerUpdate::Listener(_) | WorkerUpdate::Secret(..))
        | Command::Flush(_)
        | Command::Stop => {}
    }
}
