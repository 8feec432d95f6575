//! What a person sees while a mesh comes up: a list that is redrawn on a terminal, plain lines
//! anywhere else.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use lateen_local::mesh::{Row, rows};
use lateen_local::plan::Plan;
use lateen_local::supervise::Table;
use tokio::sync::watch;

use crate::session;

/// Between two drawings of the list.
const FRAME: Duration = Duration::from_millis(60);
const WAITING: &str = "waiting";

/// The progress of one start.
#[derive(Debug)]
pub struct Progress {
    plan: Plan,
    logs: PathBuf,
    shown: Vec<String>,
    /// Lines on the terminal that the next drawing replaces.
    drawn: usize,
}

impl Progress {
    /// Shows progress until aborted; what was drawn on a terminal is removed then.
    pub async fn follow(plan: Plan, logs: PathBuf, mut table: watch::Receiver<Table>) {
        let mut progress = Self {
            plan,
            logs,
            shown: Vec::new(),
            drawn: 0,
        };
        let interactive = session::is_interactive();
        loop {
            let rows = rows(&progress.plan, &table.borrow_and_update(), &progress.logs);
            if interactive {
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
        self.shown.resize(rows.len(), WAITING.to_owned());
        for (shown, row) in self.shown.iter_mut().zip(rows) {
            if *shown != row.state {
                // Starting and waiting come and go within milliseconds.
                if row.ready || !is_passing(&row.state) {
                    session::say(&format!("{}: {}", row.workload, row.state));
                }
                shown.clone_from(&row.state);
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
            let (mark, color) = match (row.ready, is_passing(&row.state)) {
                (true, _) => ("✓", AnsiColor::Green),
                (false, true) => ("·", AnsiColor::BrightBlack),
                (false, false) => ("✗", AnsiColor::Red),
            };
            let style = Style::new().fg_color(Some(color.into()));
            let state: String = row.state.chars().take(60).collect();
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

fn is_passing(state: &str) -> bool {
    let state = state.trim_start_matches("sidecar ");
    state == "starting" || state == WAITING
}
