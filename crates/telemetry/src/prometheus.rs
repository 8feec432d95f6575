//! The Prometheus text format (version 0.0.4).
//!
//! Samples may come in any order; families come out sorted, each with its `# TYPE` line, as the format
//! demands. Meant for the thread that answers a scrape: it allocates.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The media type of an exposition.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the values of a family are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// One label: name and value.
pub type Label<'a> = (&'a str, &'a str);

/// An exposition being put together.
#[derive(Debug, Default)]
pub struct Exposition {
    families: BTreeMap<String, (Kind, String)>,
}

impl Exposition {
    /// Adds a counter or gauge.
    pub fn value(&mut self, name: &str, kind: Kind, labels: &[Label<'_>], value: u64) {
        let lines = self.family(name, kind);
        line(lines, name, "", labels, None);
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(lines, " {value}");
    }

    /// Adds a histogram: the count in each bucket (not cumulative; one more than there are bounds),
    /// and the sum of all values.
    pub fn histogram(
        &mut self,
        name: &str,
        labels: &[Label<'_>],
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) {
        let lines = self.family(name, Kind::Histogram);
        let mut cumulative = 0;
        let bounds = bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(counts) {
            cumulative += count;
            line(lines, name, "_bucket", labels, Some(&bound));
            let _ = writeln!(lines, " {cumulative}");
        }
        line(lines, name, "_sum", labels, None);
        let _ = writeln!(lines, " {sum}");
        line(lines, name, "_count", labels, None);
        let _ = writeln!(lines, " {cumulative}");
    }

    /// The text.
    pub fn finish(self) -> String {
        let mut out = String::new();
        for (name, (kind, lines)) in self.families {
            let _ = writeln!(out, "# TYPE {name} {}", kind.as_str());
            out.push_str(&lines);
        }
        out
    }

    fn family(&mut self, name: &str, kind: Kind) -> &mut String {
        &mut self
            .families
            .entry(name.to_owned())
            .or_insert_with(|| (kind, String::new()))
            .1
    }
}

fn line(out: &mut String, name: &str, suffix: &str, labels: &[Label<'_>], le: Option<&str>) {
    out.push_str(name);
    out.push_str(suffix);
    let mut separator = '{';
    for (name, value) in labels.iter().copied().chain(le.map(|bound| ("le", bound))) {
        out.push(separator);
        separator = ',';
        let _ = write!(out, "{name}=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    if separator == ',' {
        out.push('}');
    }
}

/// A metric or label name with everything that Prometheus does not allow turned into `_`.
pub fn sanitize(name: &str) -> String {
    let valid = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' {
            c
        } else {
            '_'
        }
    };
    let mut out: String = name.chars().map(valid).collect();
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_sorted_and_labels_escaped() {
        let mut exposition = Exposition::default();
        exposition.value("b", Kind::Gauge, &[], 2);
        exposition.value("a", Kind::Counter, &[("x", "1\"\\\n")], 1);
        exposition.value("a", Kind::Counter, &[("x", "2"), ("y", "3")], 4);
        let expect = "# TYPE a counter\na{x=\"1\\\"\\\\\\n\"} 1\na{x=\"2\",y=\"3\"} 4\n# TYPE b gauge\nb 2\n";
        assert_eq!(exposition.finish(), expect);
    }

    #[test]
    fn histograms_are_cumulative() {
        let mut exposition = Exposition::default();
        exposition.histogram("t", &[("c", "x")], &[0.5, 1.0], &[2, 3, 1], 4.25);
        let expect = "# TYPE t histogram\nt_bucket{c=\"x\",le=\"0.5\"} 2\nt_bucket{c=\"x\",le=\"1\"} 5\n\
            t_bucket{c=\"x\",le=\"+Inf\"} 6\nt_sum{c=\"x\"} 4.25\nt_count{c=\"x\"} 6\n";
        assert_eq!(exposition.finish(), expect);
    }

    #[test]
    fn names_are_made_valid() {
        assert_eq!(sanitize("http.a-b|c"), "http_a_b_c");
        assert_eq!(sanitize("5xx"), "_5xx");
    }
}
