//! Unix domain sockets. Once connected, a stream is handled by the type for TCP: reading, writing and
//! closing are the same calls for both, and what only TCP knows fails without harm.
//!
//! A path that begins with `@` is a name of the abstract namespace, as in Envoy.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::Path;
use tokio::net::TcpStream;

/// A connection to a socket.
pub(crate) async fn dial(path: &Path) -> io::Result<TcpStream> {
    let stream = match abstract_name(path)? {
        // No name of that kind is ever waited for.
        Some(address) => {
            let stream = UnixStream::connect_addr(&address)?;
            stream.set_nonblocking(true)?;
            stream
        }
        None => tokio::net::UnixStream::connect(path).await?.into_std()?,
    };
    as_tcp(stream)
}

/// A stream that was accepted or dialed; it does not block.
pub(crate) fn as_tcp(stream: UnixStream) -> io::Result<TcpStream> {
    TcpStream::from_std(std::net::TcpStream::from(OwnedFd::from(stream)))
}

/// Listens. A socket file that nobody listens on any more is replaced.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let bound = match abstract_name(path)? {
        Some(address) => UnixListener::bind_addr(&address),
        None => {
            let is_socket = |found: std::fs::Metadata| found.file_type().is_socket();
            if std::fs::symlink_metadata(path).is_ok_and(is_socket)
                && UnixStream::connect(path).is_err()
            {
                std::fs::remove_file(path)?;
            }
            UnixListener::bind(path)
        }
    }?;
    bound.set_nonblocking(true)?;
    Ok(bound)
}

/// Takes the file of a socket away that is listened on no more.
pub(crate) fn forget(path: &Path) {
    if !path.as_os_str().as_encoded_bytes().starts_with(b"@") {
        let _ = std::fs::remove_file(path);
    }
}

fn abstract_name(path: &Path) -> io::Result<Option<SocketAddr>> {
    let Some(_name) = path.as_os_str().as_encoded_bytes().strip_prefix(b"@") else {
        return Ok(None);
    };
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt;
        SocketAddr::from_abstract_name(_name).map(Some)
    }
    #[cfg(not(target_os = "linux"))]
    {
        Err(io::ErrorKind::Unsupported.into())
    }
}
