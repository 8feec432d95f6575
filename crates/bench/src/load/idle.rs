//! Connections that were used once and then stay open without traffic.

use std::io::{Read, Write};

use super::client::Client;
use crate::error::{Error, Result};

/// Opens them one after the other; they close when the result is dropped.
pub fn open<S: Read + Write>(
    count: usize,
    connect: impl Fn() -> std::io::Result<Client<S>>,
) -> Result<Vec<Client<S>>> {
    let mut clients = Vec::with_capacity(count);
    let mut buffer = Vec::with_capacity(2048);
    for number in 1..=count {
        let opened = connect().and_then(|mut client| {
            client.get(&mut buffer)?;
            Ok(client)
        });
        clients.push(
            opened.map_err(|source| {
                Error::io(format!("use connection {number} of {count}"), source)
            })?,
        );
    }
    Ok(clients)
}
