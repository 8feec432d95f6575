//! What failed, said once more at the end: there are some eighty test binaries, and what one of them
//! printed about a failure is thousands of lines above the end.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::Result;

/// Lines kept of one test binary's failures.
const KEPT: usize = 400;

/// What the test binaries said so far.
#[derive(Default)]
struct Heard {
    passed: u64,
    /// Of binaries in which a test failed: what it printed after `failures:`.
    failures: Vec<String>,
    /// Since the last `failures:`; that line comes twice, before the details and before the names.
    section: Option<Vec<String>>,
}

impl Heard {
    fn hear(&mut self, line: &str) {
        if line == "failures:" {
            self.section.get_or_insert_default();
            return;
        }
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += passed(counts);
            if let Some(section) = self.section.take() {
                self.failures.extend(section);
            }
            return;
        }
        if let Some(section) = &mut self.section
            && section.len() < KEPT
        {
            section.push(line.to_owned());
        }
    }
}

/// The count in `ok. 12 passed; 0 failed; ...`.
fn passed(counts: &str) -> u64 {
    let before = counts.split(" passed").next().unwrap_or_default();
    let number = before.rsplit(' ').next().unwrap_or_default();
    number.parse().unwrap_or(0)
}

/// Runs the tests with their output shown, and shows what failed again at the end.
pub fn run(what: &str, tests: &mut Command) -> Result {
    eprintln!("==> {what}");
    let child = tests.stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| format!("{what}: cannot start {tests:?}: {e}"))?;
    let mut heard = Heard::default();
    if let Some(output) = child.stdout.take() {
        hear_all(BufReader::new(output), std::io::stdout().lock(), &mut heard)
            .map_err(|e| format!("{what}: {e}"))?;
    }
    let status = child.wait().map_err(|e| format!("{what}: {e}"))?;
    eprintln!("==> {} tests passed", heard.passed);
    if status.success() {
        return Ok(());
    }
    eprintln!("==> what failed");
    for line in &heard.failures {
        eprintln!("{line}");
    }
    Err(format!("{what} failed ({status})"))
}

fn hear_all(
    mut output: impl BufRead,
    mut shown: impl Write,
    heard: &mut Heard,
) -> std::io::Result<()> {
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line)? > 0 {
        shown.write_all(&line)?;
        shown.flush()?;
        heard.hear(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_kept_and_what_passed_is_counted() {
        let mut heard = Heard::default();
        let output = "\
running 2 tests
test a ... ok
test b ... FAILED

failures:

---- b stdout ----
left is not right

failures:
    b

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out
running 3 tests
test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out
";
        let mut shown = Vec::new();
        hear_all(output.as_bytes(), &mut shown, &mut heard).unwrap();
        assert_eq!(shown, output.as_bytes());
        assert_eq!(heard.passed, 4);
        let kept = [
            "",
            "---- b stdout ----",
            "left is not right",
            "",
            "    b",
            "",
        ];
        assert_eq!(heard.failures, kept);
    }
}
