//! Size on disk of our release binaries, and of the programs the peers run.

use std::path::PathBuf;

use crate::contestant::{Kind, start};
use crate::ground::Ground;
use crate::process::Running;
use crate::resources::Chain;

pub fn run(ground: &Ground) -> String {
    let mut text = String::from(
        "## Size on disk\n\nRelease binaries, stripped. Peers also load shared libraries.\n\n\
         | | MB |\n|---|---|\n",
    );
    let mut line = |name: &str, path: Option<PathBuf>| {
        let cell = match path.and_then(|path| path.metadata().ok()) {
            Some(file) => format!("{:.1}", file.len() as f64 / 1e6),
            None => "missing".into(),
        };
        text.push_str(&format!("| {name} | {cell} |\n"));
    };
    for name in ["lateen-proxy", "lateen"] {
        line(name, Some(ground.binaries.join(name)));
    }
    for (name, kind) in [
        ("Envoy", Kind::Envoy(Chain::Minimal)),
        ("HAProxy", Kind::Haproxy),
        ("nginx", Kind::Nginx),
    ] {
        // What `envoy` on the path is may be a script that starts the real one.
        let running = start(ground, kind).ok().and_then(|peer| peer.process);
        line(name, running.as_ref().and_then(Running::executable));
    }
    text
}
