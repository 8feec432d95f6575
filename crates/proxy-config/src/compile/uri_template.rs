//! URI templates of Envoy's path matcher (`envoy.path.match.uri_template.uri_template_matcher`), as a
//! regex for the whole path: `/v1/*/x`, `/files/**`, `/{name=a/*}/b`.
//!
//! Syntax and meaning are Envoy's (`source/extensions/path/uri_template_lib`): `*` is one segment,
//! `**` any number of them and the last operator; both stand alone in their segment, but a literal
//! may follow the last one.

/// What an operator stands for, in a class of a regex: all of RFC 3986's `pchar`. A character that is
/// missing here is a way past every policy that denies by a template (CVE-2025-46821).
const PCHAR: &str = r"a-zA-Z0-9\-._~%!$&'()+,;:@=*";
const MAX_VARIABLES: usize = 5;
const MAX_NAME: usize = 16;

/// The regex of a template.
pub(crate) fn regex(template: &str) -> Result<String, String> {
    let wrong = |what: &str| Err(format!("'{template}' is no URI template: {what}"));
    let Some(mut rest) = template.strip_prefix('/') else {
        return wrong("it must begin with '/'");
    };
    if !template.bytes().all(|b| b.is_ascii_graphic()) {
        return wrong("it has characters that no path has");
    }
    let mut parser = Parser {
        out: String::from("/"),
        ..Parser::default()
    };
    while !rest.is_empty() {
        rest = match parser.segment(rest) {
            Ok(rest) => rest,
            Err(what) => return wrong(what),
        };
        match rest.strip_prefix('/') {
            Some(after) => {
                parser.out.push('/');
                rest = after;
            }
            None if rest.is_empty() => {}
            // What follows an operator in its segment ends the template.
            None => match parser.literal(rest) {
                Ok("") => break,
                Ok(_) => return wrong("a segment is an operator or a text, not both"),
                Err(what) => return wrong(what),
            },
        }
    }
    Ok(parser.out)
}

#[derive(Default)]
struct Parser<'t> {
    out: String,
    names: Vec<&'t str>,
    /// `**` has been seen.
    last: bool,
}

impl<'t> Parser<'t> {
    fn segment(&mut self, text: &'t str) -> Result<&'t str, &'static str> {
        match text.as_bytes() {
            [b'*', ..] => self.operator(text),
            [b'{', ..] => self.variable(text),
            _ => self.literal(text),
        }
    }

    fn operator(&mut self, text: &'t str) -> Result<&'t str, &'static str> {
        if self.last {
            return Err("nothing but text may follow '**'");
        }
        if let Some(rest) = text.strip_prefix("**") {
            self.last = true;
            self.out.push_str(&format!("[{PCHAR}/]*"));
            return Ok(rest);
        }
        self.out.push_str(&format!("[{PCHAR}]+"));
        text.strip_prefix('*').ok_or("a segment is missing")
    }

    fn literal(&mut self, text: &'t str) -> Result<&'t str, &'static str> {
        let (literal, rest) = text.split_at(text.find('/').unwrap_or(text.len()));
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&b);
        if literal.is_empty() || !literal.bytes().all(fits) {
            return Err("a text between slashes is empty or has characters that no path has");
        }
        self.out.push_str(&regex::escape(literal));
        Ok(rest)
    }

    /// `{name}` or `{name=a/*/b}`.
    fn variable(&mut self, text: &'t str) -> Result<&'t str, &'static str> {
        let inner = text.strip_prefix('{').and_then(|t| t.split_once('}'));
        let (inner, rest) = inner.ok_or("a '{' has no '}'")?;
        let (name, pattern) = match inner.split_once('=') {
            Some((_, "")) => return Err("a variable has nothing behind its '='"),
            Some((name, pattern)) => (name, pattern),
            None => (inner, "*"),
        };
        let mut bytes = name.bytes();
        let fits = bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && name.len() <= MAX_NAME;
        if !fits || self.names.contains(&name) || self.names.len() >= MAX_VARIABLES {
            return Err(
                "at most five variables, each with a name of its own of 1 to 16 characters",
            );
        }
        self.names.push(name);
        let mut pattern = pattern;
        loop {
            pattern = match pattern.starts_with('*') {
                true => self.operator(pattern)?,
                false => self.literal(pattern)?,
            };
            match pattern.strip_prefix('/') {
                None if pattern.is_empty() => return Ok(rest),
                Some(more) if !more.is_empty() => {
                    self.out.push('/');
                    pattern = more;
                }
                _ => return Err("segments of a variable are parted by '/'"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::regex;
    use crate::re2;

    #[test]
    fn templates_match_as_in_envoy() {
        for (template, path, expect) in [
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/", false),
            ("/a/*", "/a/b/c", false),
            ("/a/*/c", "/a/b/c", true),
            ("/a/**", "/a/", true),
            ("/a/**", "/a/b/c", true),
            ("/a/**", "/a", false),
            ("/a/**", "/a/b;c=d/*", true),
            ("/a/*", "/a/b;c=d", true),
            ("/a/*", "/a/*", true),
            ("/a/**", "/a/[b]", false),
            ("/a=1/*", "/a=1/b", true),
            ("/a/b/", "/a/b/", true),
            ("/a/b/", "/a/b", false),
            ("/**.mp4", "/x/y.mp4", true),
            ("/**.mp4", "/x/y-mp4", false),
            ("/a.b", "/axb", false),
            ("/*/**", "/a/", true),
            ("/{x}/c", "/b/c", true),
            ("/{x=a/*}/c", "/a/b/c", true),
            ("/{x=a/**}/c", "/a/b/d/c", true),
            ("/", "/", true),
            ("/a%20b", "/a%20b", true),
        ] {
            let regex = re2::full_match(&regex(template).unwrap()).unwrap();
            assert_eq!(regex.is_match(path.as_bytes()), expect, "{template} {path}");
        }
        for template in [
            "a", "", "/**/*", "/a*", "/a//b", "/{x", "/{x}/{x}", "/{}", "/{x=}", "/{x=a/}",
            "/*b/c", "/a b", "/{1}",
        ] {
            assert!(regex(template).is_err(), "{template}");
        }
    }
}
