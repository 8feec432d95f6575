//! Columns for people: aligned with spaces, as kubectl and istioctl align them.

/// A table that is complete before it is printed, so that every column is as wide as it needs.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<String>>,
    padding: usize,
}

impl Table {
    /// `padding` is the space between columns: 3 in kubectl, 5 in istioctl.
    pub fn new<S: Into<String>>(padding: usize, head: impl IntoIterator<Item = S>) -> Self {
        Self {
            rows: vec![head.into_iter().map(Into::into).collect()],
            padding,
        }
    }

    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    pub fn len(&self) -> usize {
        self.rows.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The width of each column, padding included.
    pub fn widths(&self) -> Vec<usize> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0) + self.padding
        };
        (0..columns).map(width).collect()
    }

    pub fn print(&self) {
        out!("{self}");
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let widths = self.widths();
        for row in &self.rows {
            writeln!(f, "{}", line(row, &widths))?;
        }
        Ok(())
    }
}

/// One row; the last cell is not padded.
pub fn line(cells: &[String], widths: &[usize]) -> String {
    let mut text = String::new();
    for (at, cell) in cells.iter().enumerate() {
        text.push_str(cell);
        if at + 1 < cells.len() {
            let width = widths.get(at).copied().unwrap_or(0);
            let missing = width.saturating_sub(cell.chars().count()).max(1);
            text.extend(std::iter::repeat_n(' ', missing));
        }
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(3, ["NAME", "AGE"]);
        table.row(["a-long-name", "1s"]);
        table.row(["b", ""]);
        assert_eq!(
            table.to_string(),
            "NAME          AGE\na-long-name   1s\nb\n"
        );
    }
}
