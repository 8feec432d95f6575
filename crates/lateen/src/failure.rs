//! How a verb fails: the message a person reads and the exit code a script reads.
//!
//! Exit codes are istioctl's (`istioctl/cmd/root.go`), so that scripts keep working: 1 for any
//! other failure, 64 (`EX_USAGE`) for a wrong command line, 65 (`EX_DATAERR`) for wrong input data.

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

/// The result of a verb.
pub type Outcome = Result<(), Failure>;

/// Why a verb failed. The message says what is wrong, where, and what to do about it.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// A failure that is neither the command line's nor the input's: exit code 1.
    pub fn other(message: impl fmt::Display) -> Self {
        Self {
            code: 1,
            message: message.to_string(),
        }
    }

    /// A wrong command line: exit code 64.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self {
            code: 64,
            message: message.to_string(),
        }
    }

    /// Wrong input data, such as a file that does not parse: exit code 65.
    pub fn data(message: impl fmt::Display) -> Self {
        Self {
            code: 65,
            message: message.to_string(),
        }
    }

    /// A failure that has already been reported: only the exit code remains.
    pub fn silent(code: u8) -> Self {
        Self {
            code,
            message: String::new(),
        }
    }

    /// Prints the message to stderr, in colour on a terminal only, and gives the exit code.
    pub fn report(&self) -> ExitCode {
        if !self.message.is_empty() {
            let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
            // With standard error gone too, the exit code is all that is left to say.
            let _ = writeln!(anstream::stderr(), "{red}error:{red:#} {}", self.message);
        }
        ExitCode::from(self.code)
    }
}
