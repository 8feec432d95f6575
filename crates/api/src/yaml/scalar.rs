//! What a plain word means: Kubernetes' rules, which are YAML 1.1 as `sigs.k8s.io/yaml` (kubectl)
//! reads it. `yes`, `on` and `y` are booleans there and `010` is eight; quoting makes a string.

use crate::node::Value;

/// The value of an unquoted scalar.
pub fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            return Value::Bool(true, text.to_owned());
        }
        "false" | "False" | "FALSE" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false, text.to_owned());
        }
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Value::Float(f64::INFINITY, text.to_owned());
        }
        "-.inf" | "-.Inf" | "-.INF" => return Value::Float(f64::NEG_INFINITY, text.to_owned()),
        ".nan" | ".NaN" | ".NAN" => return Value::Float(f64::NAN, text.to_owned()),
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Value::String(text.to_owned());
    }
    if let Some(value) = integer(text) {
        return Value::Int(value, text.to_owned());
    }
    match float(text) {
        Some(value) => Value::Float(value, text.to_owned()),
        None => Value::String(text.to_owned()),
    }
}

/// Go's `strconv.ParseInt(text, 0, 64)` after removing `_`.
fn integer(text: &str) -> Option<i128> {
    let plain = text.replace('_', "");
    let (negative, digits) = match plain.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let (radix, digits) = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (16, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    // 64 bits; the parse below would also take a sign.
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).ok()?;
    let value = if negative { -value } else { value };
    (i128::from(i64::MIN)..=i128::from(u64::MAX))
        .contains(&value)
        .then_some(value)
}

/// Digits with at most one point and an exponent; Rust's own parser would also take `infinity`.
fn float(text: &str) -> Option<f64> {
    let plain = text.replace('_', "");
    let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(&plain);
    let mantissa = unsigned.split(['e', 'E']).next().unwrap_or_default();
    let numeric = mantissa.chars().all(|c| c.is_ascii_digit() || c == '.');
    let has_digit = mantissa.contains(|c: char| c.is_ascii_digit());
    if numeric && has_digit {
        plain.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::plain;
    use crate::node::Value;

    #[test]
    fn plain_words_mean_what_they_mean_to_kubectl() {
        let string = |text: &str| Value::String(text.to_owned());
        let int = |value: i128, text: &str| Value::Int(value, text.to_owned());
        for (text, expected) in [
            ("", Value::Null),
            ("~", Value::Null),
            ("null", Value::Null),
            ("nil", string("nil")),
            ("yes", Value::Bool(true, "yes".to_owned())),
            ("Off", Value::Bool(false, "Off".to_owned())),
            ("y", Value::Bool(true, "y".to_owned())),
            ("yEs", string("yEs")),
            ("80", int(80, "80")),
            ("-1", int(-1, "-1")),
            ("+7", int(7, "+7")),
            ("010", int(8, "010")),
            ("0x1F", int(31, "0x1F")),
            ("0b11", int(3, "0b11")),
            ("1_000", int(1000, "1_000")),
            (
                "18446744073709551615",
                int(u64::MAX.into(), "18446744073709551615"),
            ),
            (
                "18446744073709551616",
                Value::Float(18446744073709551616.0, "18446744073709551616".into()),
            ),
            ("1.10", Value::Float(1.1, "1.10".to_owned())),
            ("1e3", Value::Float(1000.0, "1e3".to_owned())),
            (".5", Value::Float(0.5, ".5".to_owned())),
            ("08", Value::Float(8.0, "08".to_owned())),
            ("1.2.3", string("1.2.3")),
            ("10.0.0.1/8", string("10.0.0.1/8")),
            ("5s", string("5s")),
            ("5xx,reset", string("5xx,reset")),
            ("-", string("-")),
            ("+", string("+")),
            ("0x", string("0x")),
            ("2026-01-31", string("2026-01-31")),
            ("12:30:45", string("12:30:45")),
            ("*.example.com", string("*.example.com")),
            ("infinity", string("infinity")),
            ("1e", string("1e")),
        ] {
            assert_eq!(plain(text), expected, "{text:?}");
        }
    }
}
