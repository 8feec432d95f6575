//! RE2 patterns on the `regex` crate.
//!
//! Envoy's regexes are RE2 and its route and header regexes must match the whole value. The two
//! engines read nearly the same syntax; this file rewrites where they differ
//! (<https://github.com/google/re2/wiki/Syntax>):
//! `\d \w \s` are ASCII in RE2, a `[` inside a class is literal, `\Q..\E` quotes, and `&&`, `--`, `~~`
//! mean nothing special in a class. Not supported: `\C` (one byte).

use regex::bytes::{Regex, RegexBuilder};

/// Upper limit of a compiled program, so that one pattern cannot take the proxy's memory.
const SIZE_LIMIT: usize = 1 << 20;

/// Compiles a pattern that must match the whole value.
pub fn full_match(pattern: &str) -> Result<Regex, String> {
    compile(&format!(r"\A(?:{})\z", translate(pattern)?), pattern)
}

/// Compiles a pattern that is searched for.
pub fn search(pattern: &str) -> Result<Regex, String> {
    compile(&translate(pattern)?, pattern)
}

fn compile(translated: &str, original: &str) -> Result<Regex, String> {
    RegexBuilder::new(translated)
        .size_limit(SIZE_LIMIT)
        .build()
        .map_err(|e| {
            let detail = match e {
                regex::Error::CompiledTooBig(_) => "it compiles to more than 1 MiB".to_owned(),
                // The crate's message quotes the translated pattern over several lines; its last line
                // says what is wrong.
                other => {
                    let text = other.to_string();
                    let last = text.lines().last().unwrap_or_default();
                    last.trim_start_matches("error: ").to_owned()
                }
            };
            format!("invalid regex '{original}': {detail}")
        })
}

/// RE2's replacement (`\1`, `\\`) in the `regex` crate's syntax (`${1}`).
pub(crate) fn replacement(substitution: &str, groups: usize) -> Result<String, String> {
    let mut out = String::with_capacity(substitution.len() + 8);
    let mut chars = substitution.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some('\\') => out.push('\\'),
                Some(d) if d.is_ascii_digit() => {
                    let group = d as usize - '0' as usize;
                    if group > groups {
                        return Err(format!(
                            "'\\{d}' in '{substitution}': the regex has {groups} groups"
                        ));
                    }
                    out.push_str(&format!("${{{d}}}"));
                }
                _ => {
                    return Err(format!(
                        "'\\' in '{substitution}' must be followed by a digit or '\\'"
                    ));
                }
            },
            other => out.push(other),
        }
    }
    Ok(out)
}

fn translate(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let chars: Vec<char> = pattern.chars().collect();
    let mut i = 0;
    let mut in_class = false;
    while let Some(&c) = chars.get(i) {
        let next = chars.get(i + 1).copied();
        i += 1;
        match (c, next) {
            ('\\', Some('Q')) if !in_class => i = quote(&chars, i + 1, &mut out),
            ('\\', Some(e)) => {
                i += 1;
                escape(e, in_class, pattern, &mut out)?;
            }
            ('[', _) if !in_class => {
                in_class = true;
                out.push('[');
                if chars.get(i) == Some(&'^') {
                    out.push('^');
                    i += 1;
                }
                // A `]` right at the start is literal.
                if chars.get(i) == Some(&']') {
                    out.push_str(r"\]");
                    i += 1;
                }
            }
            ('[', Some(':')) => i = posix_class(&chars, i, &mut out),
            ('[', _) => out.push_str(r"\["),
            (']', _) if in_class => {
                in_class = false;
                out.push(']');
            }
            ('&' | '~', Some(n)) if in_class && n == c => {
                out.push('\\');
                out.push(c);
            }
            // A range that ends in `-`.
            ('-', Some('-')) if in_class => {
                out.push_str(r"-\-");
                i += 1;
            }
            _ => out.push(c),
        }
    }
    Ok(out)
}

/// `[:alpha:]` as it stands; anything else beginning with `[` is literal.
fn posix_class(chars: &[char], at: usize, out: &mut String) -> usize {
    let rest: String = chars.iter().skip(at).take(12).collect();
    match rest.find(":]") {
        Some(end)
            if end > 0
                && rest[1..end]
                    .chars()
                    .all(|c| c.is_ascii_alphabetic() || c == '^') =>
        {
            out.push('[');
            out.push_str(&rest[..end + 2]);
            at + end + 2
        }
        _ => {
            out.push_str(r"\[");
            at
        }
    }
}

fn quote(chars: &[char], from: usize, out: &mut String) -> usize {
    let mut i = from;
    while let Some(&c) = chars.get(i) {
        if c == '\\' && chars.get(i + 1) == Some(&'E') {
            return i + 2;
        }
        out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
        i += 1;
    }
    i
}

fn escape(e: char, in_class: bool, pattern: &str, out: &mut String) -> Result<(), String> {
    let class = match e {
        'd' => "[0-9]",
        'D' => "[^0-9]",
        'w' => "[0-9A-Za-z_]",
        'W' => "[^0-9A-Za-z_]",
        's' => r"[\t\n\f\r ]",
        'S' => r"[^\t\n\f\r ]",
        'b' if !in_class => r"(?-u:\b)",
        'B' if !in_class => r"(?-u:\B)",
        'C' => {
            return Err(format!(
                "invalid regex '{pattern}': '\\C' is not supported; use '.'"
            ));
        }
        _ => {
            out.push('\\');
            out.push(e);
            return Ok(());
        }
    };
    out.push_str(class);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, value: &str, expect: bool) {
        let regex = full_match(pattern).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            regex.is_match(value.as_bytes()),
            expect,
            "{pattern} on {value}"
        );
    }

    #[test]
    fn the_whole_value_must_match() {
        check("/api", "/api", true);
        check("/api", "/apix", false);
        check("api|apix", "apix", true);
        check(".*user=x.*", "a; user=x; b", true);
        check("a$", "a", true);
    }

    #[test]
    fn perl_classes_are_ascii() {
        check(r"\d+", "42", true);
        check(r"\d", "٣", false);
        check(r"\w", "é", false);
        check(r"[\w.-]+", "a.b-c_1", true);
        check(r"[^\d]", "é", true);
        check(r"\W", "é", true);
    }

    #[test]
    fn brackets_inside_a_class_are_literal() {
        check(r"[[a]", "[", true);
        check(r"[]a]", "]", true);
        check(r"[[:alpha:]-]+", "ab-c", true);
        check(r"[a&&b]+", "a&b", true);
        check(r"[+--]", ",", true);
    }

    #[test]
    fn quoted_text_is_literal() {
        check(r"\Qa.b\E.", "a.bc", true);
        check(r"\Qa.b\E", "axb", false);
    }

    #[test]
    fn errors_show_the_pattern_and_the_cause() {
        for (pattern, cause) in [
            ("(", "unclosed group"),
            (r"\C", "'\\C' is not supported"),
            (r"(?:x{1000}){1000}", "more than 1 MiB"),
            (r"(?!a)", "look-around"),
        ] {
            let error = full_match(pattern).expect_err(pattern);
            assert!(error.contains(pattern) && error.contains(cause), "{error}");
        }
    }

    #[test]
    fn replacements_keep_dollars_and_check_groups() {
        assert_eq!(replacement(r"/v2\1$x\\", 1), Ok(r"/v2${1}$$x\".to_owned()));
        assert!(replacement(r"\2", 1).is_err());
        assert!(replacement(r"\x", 1).is_err());
    }
}
