//! The sockets of the DNS server. Everything runs on the runtime of its owner.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::answer::{Answer, answer, server_failure};
use super::forward;
use super::table::{Place, Table, TableError};

/// Questions on their way to servers; more are refused.
const MOST_FORWARDED: usize = 512;
/// Connections; more wait to be taken.
const MOST_CONNECTIONS: usize = 64;
/// A connection without a question is closed after this.
const IDLE: Duration = Duration::from_secs(10);
/// A question over UDP is never longer (RFC 6891 section 6.2.5 recommends so).
const LARGEST_QUESTION: usize = 4_096;
/// After an error that only time can heal.
const PAUSE: Duration = Duration::from_millis(100);

/// What a DNS server is told.
#[derive(Clone, Debug)]
pub struct Settings {
    pub address: SocketAddr,
    /// Who is asked what the mesh does not know.
    pub servers: Vec<SocketAddr>,
    pub place: Place,
}

/// A DNS server that runs; dropping it ends it.
pub struct Server {
    address: SocketAddr,
    place: Place,
    table: watch::Sender<Option<Arc<Table>>>,
    _tasks: JoinSet<()>,
}

struct Shared {
    servers: Vec<SocketAddr>,
    table: watch::Receiver<Option<Arc<Table>>>,
    forwarded: Semaphore,
}

impl Server {
    /// Binds UDP and TCP and begins to answer. Must be called within a tokio runtime.
    pub async fn start(settings: Settings) -> std::io::Result<Self> {
        let udp = UdpSocket::bind(settings.address).await?;
        let address = udp.local_addr()?;
        let tcp = TcpListener::bind(address).await?;
        let (table, receiver) = watch::channel(None);
        let shared = Arc::new(Shared {
            servers: settings.servers,
            table: receiver,
            forwarded: Semaphore::new(MOST_FORWARDED),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_udp(Arc::new(udp), shared.clone()));
        tasks.spawn(serve_tcp(tcp, shared));
        Ok(Self {
            address,
            place: settings.place,
            table,
            _tasks: tasks,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes what the control plane sent. A table that cannot be taken leaves the one before.
    pub fn update(&self, bytes: &[u8]) -> Result<(), TableError> {
        let table = Table::decode(bytes, &self.place)?;
        tracing::debug!(names = table.size(), "name table");
        self.table.send_replace(Some(Arc::new(table)));
        Ok(())
    }
}

impl Shared {
    fn answer(&self, question: &[u8], is_udp: bool) -> Answer {
        let table = self.table.borrow().clone();
        answer(question, table.as_deref(), is_udp)
    }

    async fn forward(&self, question: &[u8], is_udp: bool) -> Option<Vec<u8>> {
        let Ok(_turn) = self.forwarded.try_acquire() else {
            return server_failure(question);
        };
        match forward::ask(&self.servers, question, is_udp).await {
            Some(answer) => Some(answer),
            None => server_failure(question),
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; LARGEST_QUESTION];
    // Ends what is under way when the server ends.
    let mut forwarding = JoinSet::new();
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // An earlier answer that found nobody is told here too.
                tracing::debug!(%error, "DNS over UDP");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while forwarding.try_join_next().is_some() {}
        let question = buffer.get(..length).unwrap_or_default();
        match shared.answer(question, true) {
            Answer::Nothing => {}
            Answer::Reply(bytes) => drop(socket.send_to(&bytes, client).await),
            Answer::Forward if forwarding.len() >= MOST_FORWARDED => {
                if let Some(bytes) = server_failure(question) {
                    let _ = socket.send_to(&bytes, client).await;
                }
            }
            Answer::Forward => {
                let (question, shared) = (question.to_vec(), shared.clone());
                let socket = socket.clone();
                forwarding.spawn(async move {
                    if let Some(bytes) = shared.forward(&question, true).await {
                        let _ = socket.send_to(&bytes, client).await;
                    }
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MOST_CONNECTIONS {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(serve_connection(stream, shared.clone()));
            }
            Err(error) => {
                tracing::debug!(%error, "DNS over TCP");
                tokio::time::sleep(PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// One question after the other, each answered before the next is read.
async fn serve_connection(mut stream: TcpStream, shared: Arc<Shared>) {
    loop {
        let reading = forward::read_message(&mut stream);
        let Ok(Ok(question)) = tokio::time::timeout(IDLE, reading).await else {
            return;
        };
        let reply = match shared.answer(&question, false) {
            Answer::Nothing => return,
            Answer::Reply(bytes) => Some(bytes),
            Answer::Forward => shared.forward(&question, false).await,
        };
        let Some(reply) = reply else { return };
        let writing = forward::write_message(&mut stream, &reply);
        if !matches!(tokio::time::timeout(IDLE, writing).await, Ok(Ok(()))) {
            return;
        }
    }
}
