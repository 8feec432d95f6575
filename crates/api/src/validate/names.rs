//! Syntax of names, hosts, addresses and patterns. Each check returns the sentence that says what is
//! wrong; the caller knows where.

use std::net::IpAddr;

pub type Check = Result<(), String>;

/// RFC 1123 label: what a namespace, a subset or a port is called.
pub fn label(text: &str) -> Check {
    let valid = !text.is_empty()
        && text.len() <= 63
        && is_word(text, |c| c.is_ascii_lowercase() || c.is_ascii_digit());
    valid.then_some(()).ok_or_else(|| {
        format!("{text:?} is not a valid name: use at most 63 lower case letters, digits and '-', beginning and ending with a letter or digit")
    })
}

/// RFC 1123 subdomain: what most objects are called.
pub fn subdomain(text: &str) -> Check {
    let part = |part: &str| {
        !part.is_empty() && is_word(part, |c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    (text.len() <= 253 && text.split('.').all(part)).then_some(()).ok_or_else(|| {
        format!("{text:?} is not a valid name: use at most 253 lower case letters, digits, '-' and '.', beginning and ending with a letter or digit")
    })
}

/// `inner` characters and `-`, the latter not at the ends.
fn is_word(text: &str, inner: impl Fn(char) -> bool) -> bool {
    text.chars().all(|c| inner(c) || c == '-') && !text.starts_with('-') && !text.ends_with('-')
}

/// A DNS name without wildcard; case does not matter, a final dot is allowed.
pub fn fqdn(text: &str) -> Check {
    domain(text, text)
}

/// A DNS name whose first label may be `*` or begin with it (`*`, `*.example.com`, `*-x.example.com`).
pub fn wildcard_domain(text: &str) -> Check {
    if text == "*" {
        return Ok(());
    }
    let rest = text
        .strip_prefix("*.")
        .or_else(|| text.strip_prefix("*-"))
        .unwrap_or(text);
    if rest.contains('*') {
        return Err(format!(
            "domain name {text:?} invalid: a wildcard may only be the first label, or its first letter before '-'"
        ));
    }
    domain(rest, text)
}

fn domain(text: &str, whole: &str) -> Check {
    if text.is_empty() {
        return Err("empty domain name not allowed".to_owned());
    }
    if whole.len() > 255 {
        return Err(format!("domain name {whole:?} too long (max 255)"));
    }
    let labels = text.strip_suffix('.').unwrap_or(text).split('.');
    let mut last = "";
    for label in labels {
        let valid =
            !label.is_empty() && label.len() <= 63 && is_word(label, |c| c.is_ascii_alphanumeric());
        if !valid {
            return Err(format!(
                "domain name {whole:?} invalid (label {label:?} invalid)"
            ));
        }
        last = label;
    }
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!(
            "domain name {whole:?} invalid (top level domain {last:?} cannot be all-numeric)"
        ));
    }
    Ok(())
}

pub fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

/// Host of a rule: a domain, with or without wildcard, or an IP address.
pub fn host(text: &str) -> Check {
    if is_ip(text) {
        Ok(())
    } else {
        wildcard_domain(text)
    }
}

/// An address or a network such as `10.0.0.0/8`.
pub fn ip_or_cidr(text: &str) -> Check {
    let (address, bits) = text.split_once('/').unwrap_or((text, ""));
    let address = address
        .parse::<IpAddr>()
        .map_err(|_| format!("{text:?} is not a valid IP address or CIDR range"))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = if text.contains('/') {
        bits.parse::<u8>().ok().filter(|bits| *bits <= most)
    } else {
        Some(most)
    };
    prefix
        .map(|_| ())
        .ok_or_else(|| format!("{text:?} has no valid prefix length (0..{most})"))
}

/// `name` or `namespace/name` of a gateway; `mesh` is one.
pub fn gateway(text: &str) -> Check {
    match text.split_once('/') {
        Some((namespace, name)) if namespace.is_empty() || name.is_empty() => Err(format!(
            "config namespace and gateway name cannot be empty in {text:?}"
        )),
        Some((".", name)) => subdomain(name),
        Some((namespace, name)) => label(namespace).and_then(|()| subdomain(name)),
        None => subdomain(text),
    }
}

/// Keys of labels: `[prefix/]name`.
pub fn label_key(text: &str) -> Check {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let valid = is_label_word(name)
        && !name.is_empty()
        && prefix.is_none_or(|prefix| subdomain(prefix).is_ok());
    valid
        .then_some(())
        .ok_or_else(|| format!("invalid label or annotation key {text:?}"))
}

pub fn label_value(text: &str) -> Check {
    is_label_word(text).then_some(()).ok_or_else(|| {
        format!("invalid label value {text:?}: use at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit")
    })
}

fn is_label_word(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && edge(text.chars().next())
        && edge(text.chars().next_back())
}

/// Name of an HTTP header: a token of RFC 9110, section 5.6.2.
pub fn header_name(text: &str) -> Check {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    match text {
        "" => Err("header name cannot be empty".to_owned()),
        _ if text.chars().all(token) => Ok(()),
        _ => Err(format!("header name {text:?} is not a valid header name")),
    }
}

/// Istio also matches some pseudo-headers and, on gateways, verified JWT claims.
pub fn matched_header_name(text: &str) -> Check {
    let pseudo = [":method", ":scheme", ":authority", ":path", ":status"];
    if pseudo.contains(&text) || crate::request_authentication::routing_claim(text).is_some() {
        Ok(())
    } else if text.starts_with('@') {
        Err(format!(
            "{text:?} is no claim; write @request.auth.claims.NAME or @request.auth.claims[NAME][NESTED]"
        ))
    } else {
        header_name(text)
    }
}

/// A value that goes into a header as it is.
pub fn header_value(text: &str) -> Check {
    let valid = text.chars().all(|c| !c.is_control() || c == '\t');
    valid
        .then_some(())
        .ok_or_else(|| format!("header value {text:?} contains control characters"))
}

/// A value that Envoy fills in: `%OPERATOR(arguments):length%`, and `%%` for a percent sign. Envoy
/// refuses a whole route table for one that it cannot read.
pub fn header_format(text: &str) -> Check {
    header_value(text)?;
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('%') {
        rest = match after.strip_prefix('%') {
            Some(after) => after,
            None => operator(after).ok_or_else(|| {
                format!(
                    "a single % is not allowed in header value {text:?}; write %% for a percent \
                     sign, or an operator such as %REQ(x-name)%"
                )
            })?,
        };
    }
    Ok(())
}

/// What follows the operator that `text` begins with, after the first `%`.
fn operator(text: &str) -> Option<&str> {
    let part_of_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let rest = text.trim_start_matches(part_of_name);
    if rest.len() == text.len() {
        return None;
    }
    let rest = match rest.strip_prefix('(') {
        Some(arguments) => arguments.split_once(')')?.1,
        None => rest,
    };
    let rest = match rest.strip_prefix(':') {
        Some(length) => length.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => rest,
    };
    rest.strip_prefix('%')
}

/// RE2, as close as the proxy's own engine comes to it (no look-around, no back references).
pub fn regex(text: &str) -> Check {
    // Envoy refuses programs that grow too large; the bound here keeps a hostile pattern cheap.
    if let Some(count) = largest_repetition(text).filter(|count| *count > MAX_REPETITION) {
        return Err(format!(
            "invalid regex {text:?}: it repeats {count} times, {MAX_REPETITION} is the most"
        ));
    }
    let built = build_regex(text);
    built.map(|_| ()).map_err(|error| {
        let reason = error.to_string();
        let reason = reason
            .lines()
            .last()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        format!("invalid regex {text:?}: {reason}")
    })
}

fn build_regex(text: &str) -> Result<regex::Regex, regex::Error> {
    // Envoy refuses programs that grow too large; the bound here keeps a hostile pattern cheap.
    regex::RegexBuilder::new(text)
        .size_limit(1 << 20)
        .nest_limit(100)
        .build()
}

/// RE2's limit for `{n}` and `{n,m}`.
const MAX_REPETITION: u32 = 1000;

/// The largest number in a `{n,m}` outside of character classes.
fn largest_repetition(regex: &str) -> Option<u32> {
    let (mut largest, mut class) = (None, false);
    let mut rest = regex.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => {
                rest.next();
            }
            '[' => class = true,
            ']' => class = false,
            '{' if !class => {
                let bounds = rest.as_str().split('}').next().unwrap_or_default();
                let numbers = bounds.split(',').filter_map(|n| n.parse().ok());
                largest = largest.max(numbers.max());
            }
            _ => {}
        }
    }
    largest
}

/// What takes the place of a match: `\\1` is the first group of the regex, `\\\\` a backslash.
pub fn substitution(regex: &str, text: &str) -> Check {
    // A wrong regex is an error of its own.
    let Ok(built) = build_regex(regex) else {
        return Ok(());
    };
    let groups = built.captures_len() - 1;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            continue;
        }
        match rest.next() {
            Some('\\') => {}
            Some(c) if c.to_digit(10).is_some_and(|n| n as usize <= groups) => {}
            Some(c) if c.is_ascii_digit() => {
                return Err(format!(
                    "\\{c} in {text:?} is not a group of the regex, which has {groups}"
                ));
            }
            _ => {
                return Err(format!(
                    "a single backslash is not allowed in {text:?}; write \\\\ for a backslash, or \\1 \
                     for the first group of the regex"
                ));
            }
        }
    }
    Ok(())
}

/// Protocols that a port may declare.
pub const PROTOCOLS: [&str; 14] = [
    "HTTP",
    "HTTPS",
    "HTTP2",
    "GRPC",
    "GRPC-WEB",
    "HTTP_PROXY",
    "TCP",
    "TLS",
    "UDP",
    "MONGO",
    "REDIS",
    "MYSQL",
    "HBONE",
    "DOUBLE_HBONE",
];

/// Case does not matter; empty means that the protocol is detected.
pub fn protocol(text: &str, allowed: &[&str]) -> Check {
    if text.is_empty() || allowed.iter().any(|name| name.eq_ignore_ascii_case(text)) {
        return Ok(());
    }
    let near = crate::suggest::nearest(text, allowed.iter().copied());
    let near = near
        .map(|name| format!("; did you mean {name:?}?"))
        .unwrap_or_default();
    Err(format!(
        "invalid protocol {text:?}, supported protocols are {}{near}",
        allowed.join(", ")
    ))
}

/// Where a rule is visible: `.`, `*`, `~` (where allowed) or namespaces.
pub fn export_to(check: &mut super::Checker, export_to: &[String], none_allowed: bool) {
    check.list("exportTo", export_to, |check, entry| match entry.as_str() {
        "." | "*" => {}
        "~" if none_allowed => {}
        "~" => check.error_hint(
            "\"~\" (nowhere) is allowed for a ServiceEntry only",
            "delete the object instead",
        ),
        namespace => check.syntax(label(namespace)),
    });
    check.unique(
        "exportTo",
        "",
        export_to.iter().map(String::as_str),
        "entry",
    );
    let wide = export_to
        .iter()
        .find(|entry| matches!(entry.as_str(), "*" | "~"));
    if let (Some(wide), true) = (wide, export_to.len() > 1) {
        check.field("exportTo", |check| {
            check.error(format!("{wide:?} cannot stand beside other entries"))
        });
    }
}

/// Labels that select workloads.
pub fn selector(
    check: &mut super::Checker,
    name: &str,
    labels: &std::collections::BTreeMap<String, String>,
) {
    check.map(name, labels, |check, key, value| {
        check.syntax(label_key(key));
        if value.contains('*') {
            check.error(format!(
                "wildcard is not supported in the label value {value:?}"
            ));
        } else {
            check.syntax(label_value(value));
        }
    });
}
