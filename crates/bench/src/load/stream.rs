//! Bulk TCP: reads what the backend sends through the proxy, and counts.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

const CONNECTIONS: usize = 4;
const BUFFER: usize = 256 * 1024;

/// Reads for `round` and returns the bytes read and the time that took. `started` is called when
/// the streams flow, `ended` when the time is over, both for the caller's own accounts.
pub fn run<T>(
    to: SocketAddr,
    round: Duration,
    account: impl Fn() -> T,
) -> Result<(u64, Duration, T, T)> {
    let bytes = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let io = |source| Error::io("read a TCP stream", source);
    let mut sockets = Vec::new();
    for _ in 0..CONNECTIONS {
        let socket = TcpStream::connect(to).map_err(io)?;
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .map_err(io)?;
        sockets.push(socket);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = sockets
            .into_iter()
            .map(|socket| scope.spawn(|| drain(socket, &bytes, &stop)))
            .collect();
        // Let buffers fill and windows open first.
        std::thread::sleep(Duration::from_millis(200));
        let (at, before, first) = (Instant::now(), bytes.load(Ordering::Relaxed), account());
        std::thread::sleep(round);
        let (last, after, elapsed) = (account(), bytes.load(Ordering::Relaxed), at.elapsed());
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread
                .join()
                .unwrap_or_else(|_| Err(std::io::Error::other("a thread of the loader panicked")))
                .map_err(io)?;
        }
        Ok((after - before, elapsed, first, last))
    })
}

fn drain(mut socket: TcpStream, bytes: &AtomicU64, stop: &AtomicBool) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    while !stop.load(Ordering::Relaxed) {
        let read = socket.read(&mut buffer)?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.fetch_add(read as u64, Ordering::Relaxed);
    }
    Ok(())
}
