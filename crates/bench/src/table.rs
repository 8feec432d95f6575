//! Tables: what was measured in each round, medians, and how ours compares with the others.
//!
//! A ratio is formed within a round, between contestants measured seconds apart, and only then is
//! the median taken: a machine that grows slower during the run slows both sides.

use std::fmt::Write;

use crate::contestant::Kind;

/// One thing that is measured in every round.
pub struct Column {
    pub title: &'static str,
    pub decimals: usize,
}

/// What one contestant gave.
pub struct Row {
    pub kind: Kind,
    /// Per round, one figure per column; `None` where there is none to give.
    pub rounds: Vec<Vec<Option<f64>>>,
    /// Why there are no figures.
    pub failure: Option<String>,
}

/// Rows of one measurement. The first column is the one that ratios are formed of.
pub struct Table {
    pub title: String,
    pub note: String,
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
}

/// Middle, lowest and highest.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            (values[middle - 1] + values[middle]) / 2.0
        };
        Some(Self { median, min, max })
    }

    fn shown(self, decimals: usize) -> String {
        let Self { median, min, max } = self;
        if min == max {
            return format!("{median:.decimals$}");
        }
        format!("{median:.decimals$} ({min:.decimals$} - {max:.decimals$})")
    }
}

impl Row {
    fn column(&self, column: usize) -> Vec<f64> {
        let of_round = |round: &Vec<Option<f64>>| round.get(column).copied().flatten();
        self.rounds.iter().filter_map(of_round).collect()
    }

    /// This row's figure over the other's, round by round.
    fn over(&self, other: &Self) -> Option<Spread> {
        let rounds = self.rounds.iter().zip(&other.rounds);
        let ratios = rounds.filter_map(|(ours, theirs)| {
            let (ours, theirs) = ((*ours.first()?)?, (*theirs.first()?)?);
            (theirs > 0.0).then_some(ours / theirs)
        });
        Spread::of(ratios.collect())
    }
}

impl Table {
    /// Title, note, figures, ratios.
    pub fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n{}\n\n", self.title, self.note);
        let titles: Vec<&str> = self.columns.iter().map(|column| column.title).collect();
        // Writing into a String does not fail.
        let _ = writeln!(text, "| | {} |", titles.join(" | "));
        let _ = writeln!(text, "|---|{}", "---|".repeat(titles.len()));
        for row in &self.rows {
            let _ = writeln!(text, "| {} | {} |", row.kind.name(), self.cells(row));
        }
        for row in &self.rows {
            // A paragraph takes the first line; the log was printed when it happened.
            if let Some(reason) = row.failure.as_ref().and_then(|text| text.lines().next()) {
                let _ = writeln!(text, "\nNo figures for {}: {reason}", row.kind.name());
            }
        }
        let ratios = self.ratios();
        if !ratios.is_empty() {
            let _ = write!(text, "\n| ratio of {} | |\n|---|---|\n", titles[0]);
            text.push_str(&ratios);
        }
        text
    }

    fn cells(&self, row: &Row) -> String {
        let cells: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                Spread::of(row.column(index))
                    .map_or_else(|| "-".to_owned(), |spread| spread.shown(column.decimals))
            })
            .collect();
        cells.join(" | ")
    }

    fn ratios(&self) -> String {
        let mut text = String::new();
        for ours in self.rows.iter().filter(|row| row.kind.is_ours()) {
            for other in self.rows.iter().filter(|row| !row.kind.is_ours()) {
                if let Some(ratio) = ours.over(other) {
                    let (ours, other) = (ours.kind.name(), other.kind.name());
                    let _ = writeln!(text, "| {ours} / {other} | {} |", ratio.shown(2));
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Chain;

    fn row(kind: Kind, figures: &[f64]) -> Row {
        Row {
            kind,
            rounds: figures.iter().map(|figure| vec![Some(*figure)]).collect(),
            failure: None,
        }
    }

    #[test]
    fn medians_stand_with_their_extremes() {
        let check = |values: &[f64], expect: &str| {
            let spread = Spread::of(values.to_vec()).unwrap();
            assert_eq!(spread.shown(1), expect);
        };
        check(&[3.0], "3.0");
        check(&[3.0, 1.0, 2.0], "2.0 (1.0 - 3.0)");
        check(&[4.0, 1.0, 2.0, 3.0], "2.5 (1.0 - 4.0)");
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn ratios_are_formed_within_rounds() {
        // The machine was twice as slow in the second round; the ratio does not move.
        let ours = row(Kind::Lateen(Chain::Minimal), &[10.0, 20.0]);
        let theirs = row(Kind::Haproxy, &[20.0, 40.0]);
        let ratio = ours.over(&theirs).unwrap();
        assert_eq!((ratio.min, ratio.max), (0.5, 0.5));
    }

    #[test]
    fn who_failed_is_named_with_the_reason_and_enters_no_ratio() {
        let failed = Row {
            kind: Kind::Nginx,
            rounds: Vec::new(),
            failure: Some("nginx is not installed; apt-get install nginx-light".into()),
        };
        let table = Table {
            title: "T".into(),
            note: "N".into(),
            columns: vec![
                Column {
                    title: "us",
                    decimals: 1,
                },
                Column {
                    title: "rate",
                    decimals: 0,
                },
            ],
            rows: vec![failed, row(Kind::Lateen(Chain::Minimal), &[10.0])],
        };
        let expect = "## T\n\nN\n\n| | us | rate |\n|---|---|---|\n\
            | nginx | - | - |\n| Lateen minimal | 10.0 | - |\n\n\
            No figures for nginx: nginx is not installed; apt-get install nginx-light\n";
        assert_eq!(table.markdown(), expect);
    }
}
