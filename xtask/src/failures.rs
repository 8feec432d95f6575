//! What failed, said once more at the end: there are some eighty test binaries, and what one of them
//! printed about a failure is thousands of lines above the end.
//!
//! A few tests that failed are run again, alone, and have to pass each of several times
//! (docs/decisions/0007). That they failed once is said at the end all the same.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::Result;

/// Lines kept of one test binary's failures.
const KEPT: usize = 400;

/// More failures than this are not by chance: nothing is run again.
const BY_CHANCE: usize = 3;

/// So often in a row a test that failed has to pass.
const AGAIN: usize = 5;

/// What the test binaries said so far.
#[derive(Default)]
struct Heard {
    passed: u64,
    /// Names of tests that failed.
    failed: Vec<String>,
    /// How many failed, by the results of the binaries.
    failures_counted: u64,
    /// Test binaries that began and have not said their result.
    unfinished: i64,
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
            self.passed += number(counts, " passed");
            self.failures_counted += number(counts, " failed");
            self.unfinished -= 1;
            if let Some(section) = self.section.take() {
                self.failures.extend(section);
            }
            return;
        }
        if let Some(section) = &mut self.section {
            if section.len() < KEPT {
                section.push(line.to_owned());
            }
        } else if let Some(name) = failed(line) {
            self.failed.push(name.to_owned());
        } else if line.starts_with("running ") && line.contains(" test") {
            self.unfinished += 1;
        }
    }

    /// Whether all that went wrong is that few tests failed, each of which has a name: no binary died,
    /// nothing did not compile, no other output stood in a line with a name.
    fn may_be_chance(&self) -> bool {
        let all_named = self.failures_counted == self.failed.len() as u64;
        self.unfinished == 0 && all_named && (1..=BY_CHANCE).contains(&self.failed.len())
    }
}

/// The name in `test NAME ... FAILED`.
fn failed(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

/// The 12 before ` passed` in `ok. 12 passed; 0 failed; ...`.
fn number(counts: &str, of: &str) -> u64 {
    let before = counts.split(of).next().unwrap_or_default();
    let number = before.rsplit(' ').next().unwrap_or_default();
    number.parse().unwrap_or(0)
}

/// Runs the tests with their output shown, and shows what failed again at the end. `tests` makes the
/// command, with these arguments for the test binaries.
pub fn run(
    what: &str,
    tests: impl Fn(&[String]) -> Command,
    rest: &[String],
    mut shown: impl Write,
) -> Result {
    let (passed, heard) = run_once(what, &mut tests(rest), &mut shown)?;
    eprintln!("==> {} tests passed", heard.passed);
    if passed {
        return Ok(());
    }
    let by_chance = heard.may_be_chance() && pass_again(&tests, &heard.failed)?;
    eprintln!("==> what failed");
    for line in &heard.failures {
        eprintln!("{line}");
    }
    if !by_chance {
        return Err(format!("{what} failed"));
    }
    for name in &heard.failed {
        eprintln!(
            "==> BY CHANCE: {name} failed, then passed {AGAIN} times alone: it has to be mended"
        );
    }
    Ok(())
}

/// Whether each of these tests passes every time.
fn pass_again(tests: &impl Fn(&[String]) -> Command, failed: &[String]) -> Result<bool> {
    let mut rest = vec!["--exact".to_owned(), "--test-threads=1".to_owned()];
    rest.extend_from_slice(failed);
    for time in 1..=AGAIN {
        let what = format!("what failed, alone, {time} of {AGAIN}");
        // All the binaries that have none of these tests would say so.
        let (passed, heard) = run_once(&what, &mut tests(&rest), &mut std::io::sink())?;
        if !passed || heard.passed < failed.len() as u64 {
            for line in &heard.failures {
                eprintln!("{line}");
            }
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether all passed, and what was heard.
fn run_once(what: &str, tests: &mut Command, shown: &mut impl Write) -> Result<(bool, Heard)> {
    eprintln!("==> {what}");
    let child = tests.stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| format!("{what}: cannot start {tests:?}: {e}"))?;
    let mut heard = Heard::default();
    if let Some(output) = child.stdout.take() {
        hear_all(BufReader::new(output), shown, &mut heard).map_err(|e| format!("{what}: {e}"))?;
    }
    let status = child.wait().map_err(|e| format!("{what}: {e}"))?;
    Ok((status.success(), heard))
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
        assert_eq!(heard.failed, ["b"]);
        assert!(heard.may_be_chance());
    }

    #[test]
    fn many_failures_and_a_binary_that_died_are_not_by_chance() {
        let heard = |output: &str| {
            let mut heard = Heard::default();
            hear_all(output.as_bytes(), Vec::new(), &mut heard).unwrap();
            heard
        };
        let failures = "test a ... FAILED\ntest b ... FAILED\ntest c ... FAILED\n";
        let ended = "test result: FAILED. 0 passed; 3 failed\n";
        let three = format!("running 3 tests\n{failures}{ended}");
        assert!(heard(&three).may_be_chance());
        let ended = "test result: FAILED. 0 passed; 4 failed\n";
        let four = format!("running 4 tests\ntest d ... FAILED\n{failures}{ended}");
        assert!(!heard(&four).may_be_chance());
        let unnamed = format!("running 4 tests\nnoisetest d ... FAILED\n{failures}{ended}");
        assert!(!heard(&unnamed).may_be_chance());
        assert!(!heard(&format!("{three}running 1 test\n")).may_be_chance());
        assert!(!heard("").may_be_chance());
    }

    #[test]
    fn what_fails_is_run_again_alone() {
        // Stands for a test binary: `a` fails the first time, `b` always.
        let folder = tempfile::tempdir().unwrap();
        let script = |name: &'static str| {
            let mark = folder.path().join(name);
            move |rest: &[String]| {
                let mut sh = Command::new("sh");
                let text = r#"
                    echo 'running 1 test'
                    if [ $0 = a ] && [ -e "$1" ]; then echo 'test result: ok. 1 passed; 0 failed'; exit 0; fi
                    touch "$1"
                    echo "test $0 ... FAILED"; echo 'test result: FAILED. 0 passed; 1 failed'; exit 101"#;
                sh.args(["-c", text, name]).arg(&mark).args(rest);
                sh
            }
        };
        assert!(run("a", script("a"), &[], std::io::sink()).is_ok());
        assert!(run("b", script("b"), &[], std::io::sink()).is_err());
    }
}
