//! What is wrong with the files of `--config DIR`, said on the terminal as it happens.
//!
//! The control plane reads the directory and knows; this only asks it. Each error is said once,
//! and that it is gone.

use std::collections::BTreeSet;
use std::time::Duration;

use lateen_local::http::Client;
use serde_json::Value;

/// How often the control plane is asked: soon enough for a person who has just saved a file.
const INTERVAL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);

/// Follows the directory of the control plane whose API is at `port`; never ends.
pub async fn follow(port: u16, say: impl Fn(&str)) {
    let client = Client::direct();
    let url = format!("http://127.0.0.1:{port}/debug/directoryz");
    let mut known = BTreeSet::new();
    loop {
        // A control plane that is away for a moment is said elsewhere.
        if let Ok(answer) = client.get(&url, PATIENCE).await
            && let Ok(status) = serde_json::from_slice::<Value>(answer.body())
            && status.is_object()
        {
            news(&mut known, &status).iter().for_each(|line| say(line));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The lines to say about this state, after the one that `known` remembers.
fn news(known: &mut BTreeSet<String>, status: &Value) -> Vec<String> {
    let directory = status["directory"].as_str().unwrap_or_default();
    let files = status["files"].as_object().into_iter().flatten();
    let errors = files.flat_map(|(_, file)| file["errors"].as_array().into_iter().flatten());
    let errors = errors.chain(std::iter::once(&status["error"]));
    let now: BTreeSet<String> = errors
        .filter_map(Value::as_str)
        .map(|error| error.trim().to_owned())
        .collect();
    let mut lines: Vec<String> = now
        .difference(known)
        .map(|error| format!("{directory}: {error}; what was in force stays"))
        .collect();
    if now.is_empty() && !known.is_empty() {
        lines.push(format!("{directory}: every file is right again"));
    }
    *known = now;
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_is_said_once_and_that_it_is_gone() {
        let mut known = BTreeSet::new();
        let good = json!({"directory": "d", "files": {"a.yaml": {"objects": 1}}});
        let bad = json!({
            "directory": "d",
            "files": {"a.yaml": {"objects": 1, "errors": ["a.yaml:1:1: error: kind is missing"]}},
        });
        let away = json!({"directory": "d", "error": "cannot be read", "files": {}});
        let mut check = |status: &Value, expect: &[&str]| {
            assert_eq!(news(&mut known, status), expect);
        };
        check(&good, &[]);
        let said = "d: a.yaml:1:1: error: kind is missing; what was in force stays";
        check(&bad, &[said]);
        check(&bad, &[]);
        check(&away, &["d: cannot be read; what was in force stays"]);
        check(&good, &["d: every file is right again"]);
        check(&good, &[]);
    }
}
