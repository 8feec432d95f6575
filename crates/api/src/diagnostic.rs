//! One finding about a document: what is wrong, where, and what to do.

use std::fmt;

/// An error keeps the object from being applied; a warning does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Error,
    Warning,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// Istio's message code (`IST0130`) where Istio has one for this finding.
    pub code: Option<&'static str>,
    pub message: String,
    /// Name of the source as the caller gave it; empty for JSON that came over an API.
    pub file: String,
    /// Both count from 1; 0 when there is no source text.
    pub line: u32,
    pub column: u32,
    /// `spec.http[0].route[0].destination.subset`; empty when the document as a whole is meant.
    pub path: String,
    /// What to do, as a clause: `did you mean "match"?`, `quote it: "80"`.
    pub suggestion: Option<String>,
    /// The source line holds what may not be shown.
    pub confidential: bool,
    /// There is no such kind here: nothing else of the object was looked at.
    pub unknown_kind: bool,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        })
    }
}

impl Diagnostic {
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

/// `file:line:column: error[CODE]: path: message; suggestion`, leaving out what is not known.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
        }
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if !self.file.is_empty() || self.line > 0 {
            f.write_str(" ")?;
        }
        write!(f, "{}", self.severity)?;
        if let Some(code) = self.code {
            write!(f, "[{code}]")?;
        }
        f.write_str(": ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, "; {suggestion}")?;
        }
        Ok(())
    }
}

impl Diagnostic {
    /// The message, the source line and a mark below the place; ends with a line break.
    pub fn render(&self, source: &str, color: bool) -> String {
        self.render_in(&Lines::of(source), color)
    }

    /// The same for one of many: finding its line is no search.
    pub fn render_in(&self, source: &Lines<'_>, color: bool) -> String {
        let (tint, bold, reset) = match (color, self.severity) {
            (false, _) => ("", "", ""),
            (true, Severity::Error) => ("\x1b[31m", "\x1b[1m", "\x1b[0m"),
            (true, Severity::Warning) => ("\x1b[33m", "\x1b[1m", "\x1b[0m"),
        };
        let mut text = format!("{bold}{self}{reset}\n");
        if self.confidential {
            return text;
        }
        let Some(row) = self
            .line
            .checked_sub(1)
            .and_then(|index| source.0.get(index as usize))
        else {
            return text;
        };
        let column = (self.column.max(1) - 1) as usize;
        let (row, column) = window(row.trim_end(), column);
        let before: String = row.chars().take(column).map(blank).collect();
        let marked: usize = row
            .chars()
            .skip(column)
            .take_while(|c| is_word(*c))
            .map(|c| blank(c).len())
            .sum();
        let marks = "^".repeat(marked.max(1));
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        text.push_str(&format!(
            "{margin} |\n{number} | {row}\n{margin} | {before}{tint}{marks}{reset}\n"
        ));
        text
    }
}

/// A source by its lines.
pub struct Lines<'a>(Vec<&'a str>);

impl<'a> Lines<'a> {
    pub fn of(source: &'a str) -> Self {
        Lines(crate::yaml::lines(source).collect())
    }
}

/// The part of a long line around `column`, and where the column is in it.
fn window(row: &str, column: usize) -> (String, usize) {
    const MOST: usize = 200;
    const BEFORE: usize = 80;
    let skipped = match row.chars().nth(MOST) {
        Some(_) => column.saturating_sub(BEFORE),
        None => 0,
    };
    let mut part: String = row.chars().skip(skipped).take(MOST).collect();
    let mut column = column - skipped;
    if skipped > 0 {
        part.insert(0, '…');
        column += 1;
    }
    if row.chars().nth(skipped + MOST).is_some() {
        part.push('…');
    }
    (part, column)
}

/// Blanks as wide as the character on a terminal: tabs stay, East Asian characters take two cells.
fn blank(c: char) -> &'static str {
    match c {
        '\t' => "\t",
        '\u{1100}'..='\u{115f}'
        | '\u{2e80}'..='\u{a4cf}'
        | '\u{ac00}'..='\u{d7a3}'
        | '\u{f900}'..='\u{faff}'
        | '\u{fe30}'..='\u{fe6f}'
        | '\u{ff00}'..='\u{ff60}'
        | '\u{1f300}'..='\u{1faff}'
        | '\u{20000}'..='\u{3fffd}' => "  ",
        _ => " ",
    }
}

/// The mark goes below the whole word.
fn is_word(c: char) -> bool {
    !c.is_whitespace() && !matches!(c, ':' | ',' | '{' | '}' | '[' | ']' | '#')
}
