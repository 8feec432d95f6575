//! When a started process counts as ready.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::http::Client;

/// How readiness is found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// A GET of this URL answers 200; asked again and again while the process runs.
    Http(String),
    /// Something accepts connections there; asked until it does, then no more, since a connection
    /// without a request is noise in many servers' logs.
    Tcp(SocketAddr),
    /// Running for a moment is being ready: there is nothing to ask.
    Running,
}

/// Patience with one answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// A program that cannot start at all has ended by then.
const MOMENT: Duration = Duration::from_millis(300);
/// Between questions, while a process starts: short, the whole demo waits for it.
const WHILE_STARTING: Duration = Duration::from_millis(20);
/// Between questions, when it has not become ready quickly.
const WHILE_UNREADY: Duration = Duration::from_millis(200);
/// Between questions, while it is ready.
const WHILE_READY: Duration = Duration::from_secs(2);
/// Quick questions before the slower pace begins: two seconds of them.
const QUICK: u32 = 100;
/// Wrong answers in a row that make a ready process unready.
const FAILURES: u32 = 2;

impl Readiness {
    /// Calls `changed` with `Ok` when the process becomes ready and with the reason when it stops
    /// being so. Never returns: it is dropped when the process ends.
    pub async fn watch(
        &self,
        client: &Client,
        mut changed: impl FnMut(Result<(), String>),
    ) -> Infallible {
        let mut ready = false;
        let mut tries = 0u32;
        let mut failures = 0u32;
        loop {
            match self.ask(client).await {
                Ok(()) => {
                    failures = 0;
                    if !ready {
                        ready = true;
                        changed(Ok(()));
                    }
                    if !matches!(self, Self::Http(_)) {
                        std::future::pending::<()>().await;
                    }
                }
                Err(reason) => {
                    failures = failures.saturating_add(1);
                    tries = tries.saturating_add(1);
                    if ready && failures >= FAILURES {
                        ready = false;
                        changed(Err(reason));
                    } else if !ready && tries == QUICK {
                        changed(Err(reason));
                    }
                }
            }
            let pause = if ready && failures == 0 {
                WHILE_READY
            } else if tries < QUICK {
                WHILE_STARTING
            } else {
                WHILE_UNREADY
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn ask(&self, client: &Client) -> Result<(), String> {
        match self {
            Self::Running => {
                tokio::time::sleep(MOMENT).await;
                Ok(())
            }
            Self::Http(url) => match client.get(url, PATIENCE).await {
                Ok(response) if response.status().is_success() => Ok(()),
                Ok(response) => Err(format!("{url} answers {}", response.status().as_u16())),
                Err(error) => Err(error.to_string()),
            },
            Self::Tcp(address) => {
                let connect = tokio::time::timeout(PATIENCE, TcpStream::connect(address));
                match connect.await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(error)) => Err(format!("nothing listens on {address}: {error}")),
                    Err(_) => Err(format!("nothing answers on {address}")),
                }
            }
        }
    }
}
