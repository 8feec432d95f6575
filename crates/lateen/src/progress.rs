//! What a person sees while a mesh comes up: a list that is redrawn on a terminal, plain lines
//! anywhere else.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use lateen_local::mesh::{Condition, Row, rows};
use lateen_local::plan::Plan;
use lateen_local::supervise::Table;
use tokio::sync::watch;

use crate::session::{self, Events};

/// Between two drawings of the list.
const FRAME: Duration = Duration::from_millis(60);
/// A list with more rows scrolls away on a small terminal and cannot be redrawn.
const TALLEST: usize = 20;
/// A state with more characters wraps there.
const WIDEST: usize = 48;

/// The progress of one start.
#[derive(Debug)]
pub struct Progress {
    ready: BTreeSet<String>,
    failures: Events,
    /// Lines on the terminal that the next drawing replaces.
    drawn: usize,
}

impl Progress {
    /// Shows progress until aborted; what was drawn on a terminal is removed then.
    pub async fn follow(plan: Plan, logs: PathBuf, mut table: watch::Receiver<Table>) {
        let mut progress = Self {
            ready: BTreeSet::new(),
            failures: Events::new(logs),
            drawn: 0,
        };
        let interactive = session::is_interactive();
        loop {
            let rows = rows(&plan, &table.borrow_and_update());
            if interactive && rows.len() <= TALLEST {
                progress.draw(&rows);
                tokio::time::sleep(FRAME).await;
            } else {
                progress.print_new(&rows);
            }
            if table.changed().await.is_err() {
                return;
            }
        }
    }

    fn print_new(&mut self, rows: &[Row]) {
        self.failures
            .of(rows)
            .iter()
            .for_each(|event| session::say(event));
        for row in rows.iter().filter(|row| row.is_ready()) {
            if self.ready.insert(row.workload.clone()) {
                session::say(&format!("{} is {}", row.workload, row.state()));
            }
        }
    }

    fn draw(&mut self, rows: &[Row]) {
        let width = rows.iter().map(|row| row.workload.len()).max().unwrap_or(0);
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A", self.drawn));
        }
        for row in rows {
            let (mark, color) = match row.condition {
                Condition::Ready | Condition::ExternalProxy => ("✓", AnsiColor::Green),
                Condition::Failing { .. } => ("✗", AnsiColor::Red),
                _ => ("·", AnsiColor::BrightBlack),
            };
            let style = Style::new().fg_color(Some(color.into()));
            let state: String = row.state().chars().take(WIDEST).collect();
            let name = &row.workload;
            text.push_str(&format!(
                "\x1b[2K  {style}{mark}{style:#} {name:width$}  {state}\n"
            ));
        }
        self.drawn = rows.len();
        let _ = anstream::stderr().write_all(text.as_bytes());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn > 0 {
            let _ = write!(anstream::stderr(), "\x1b[{}A\x1b[J", self.drawn);
        }
    }
}
