//! From a format string to tokens.

use super::operators::{PLAIN, SPECIAL, WITHOUT_VALUE, nearest};
use super::time::TimeFormat;
use super::{Field, FormatError, Headers};

/// One piece of a format.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Literal(Box<str>),
    Value {
        what: What,
        max_length: Option<usize>,
    },
}

/// What an operator shows.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    Header {
        of: Headers,
        name: Box<str>,
        alternative: Option<Box<str>>,
        /// The value ends at its `?`.
        without_query: bool,
    },
    Field {
        field: Field,
        part: Part,
    },
    StartTime(TimeFormat),
    EmitTime(TimeFormat),
    GrpcStatus(GrpcStatusStyle),
    QueryParameter(Box<str>),
    /// A value that a filter has set, or all of its namespace.
    DynamicMetadata {
        namespace: Box<str>,
        path: Box<[Box<str>]>,
    },
    Nothing,
}

/// Which part of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Ip,
    Port,
}

/// How `%GRPC_STATUS(..)%` is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GrpcStatusStyle {
    /// `InvalidArgument`.
    Camel,
    /// `INVALID_ARGUMENT`.
    Snake,
    Number,
}

pub(super) fn tokens(
    format: &str,
    without_effect: &mut Vec<String>,
) -> Result<Vec<Token>, FormatError> {
    let mut tokens = Vec::new();
    let mut literal = String::new();
    let mut rest = format;
    while let Some(percent) = rest.find('%') {
        literal.push_str(&rest[..percent]);
        let after = &rest[percent + 1..];
        if let Some(after) = after.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        if !literal.is_empty() {
            tokens.push(Token::Literal(std::mem::take(&mut literal).into()));
        }
        let (token, after) = operator(after, without_effect)?;
        tokens.push(token);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        tokens.push(Token::Literal(literal.into()));
    }
    Ok(tokens)
}

/// Everything wrong with a format, not only the first.
pub(super) fn problems(format: &str) -> Vec<FormatError> {
    let mut found: Vec<FormatError> = Vec::new();
    let mut rest = format;
    while let Some((_, after)) = rest.split_once('%') {
        rest = if let Some(after) = after.strip_prefix('%') {
            after
        } else if let Some(length) = strftime(after) {
            let time = &after[..length];
            found.push(error(format!(
                "'%{time}' is the format of a time; write %START_TIME(%{time})%"
            )));
            &after[length..]
        } else {
            match operator(after, &mut Vec::new()) {
                Ok((_, rest)) => rest,
                Err(error) => {
                    if !found.contains(&error) {
                        found.push(error);
                    }
                    // Goes on behind what was meant as its end.
                    after.split_once('%').map_or("", |(_, rest)| rest)
                }
            }
        };
    }
    found
}

/// The length of a time format such as `%Y-%m-%dT%H:%M:%S` after its first `%`.
fn strftime(text: &str) -> Option<usize> {
    let end = |c: char| c.is_whitespace() || matches!(c, ']' | '"' | ')');
    let length = text.find(end).unwrap_or(text.len());
    let run = &text[..length];
    let specifiers = run.split('%').collect::<Vec<_>>();
    let is_specifier = |part: &&str| {
        let mut chars = part.chars();
        chars.next().is_some_and(|c| c.is_ascii_alphabetic())
            && chars
                .next()
                .is_none_or(|c| !c.is_ascii_uppercase() || c == 'T' || c == 'Z')
            && part.len() <= 3
    };
    (specifiers.len() > 1 && specifiers.iter().all(is_specifier)).then_some(length)
}

/// One operator after its first `%`, and what follows it: `NAME`, `NAME(arguments)`,
/// `NAME(arguments):length`, then `%`.
fn operator<'f>(
    text: &'f str,
    without_effect: &mut Vec<String>,
) -> Result<(Token, &'f str), FormatError> {
    let name_end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .ok_or_else(|| unclosed(text))?;
    let (name, mut rest) = text.split_at(name_end);
    let mut arguments = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let end = inner
            .find(')')
            .ok_or_else(|| error(format!("'%{name}(' has no closing ')'")))?;
        arguments = Some(&inner[..end]);
        rest = &inner[end + 1..];
    }
    let mut max_length = None;
    if let Some(digits) = rest.strip_prefix(':') {
        let end = digits
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(digits.len());
        let length = digits[..end]
            .parse()
            .map_err(|_| error(format!("'%{name}:' must be followed by a length")))?;
        max_length = Some(length);
        rest = &digits[end..];
    }
    let rest = rest.strip_prefix('%').ok_or_else(|| unclosed(text))?;
    let what = meaning(name, arguments, without_effect)?;
    Ok((Token::Value { what, max_length }, rest))
}

fn unclosed(text: &str) -> FormatError {
    let shown: String = text.chars().take(24).collect();
    error(format!(
        "'%{shown}' has no closing '%'; write '%%' for a percent sign"
    ))
}

fn meaning(
    name: &str,
    arguments: Option<&str>,
    without_effect: &mut Vec<String>,
) -> Result<What, FormatError> {
    if let Some(plain) = PLAIN.iter().find(|p| p.name == name) {
        if arguments.is_some() {
            return Err(error(format!("%{name}% takes no arguments")));
        }
        return Ok(What::Field {
            field: plain.field,
            part: plain.part,
        });
    }
    if WITHOUT_VALUE.contains(&name) {
        without_effect.push(format!("%{name}% shows no value"));
        return Ok(What::Nothing);
    }
    if !SPECIAL.contains(&name) {
        return Err(error(match nearest(name) {
            Some(near) => format!("unknown operator %{name}%; did you mean %{near}%?"),
            None => format!("unknown operator %{name}%"),
        }));
    }
    let required = || {
        arguments
            .filter(|a| !a.is_empty())
            .ok_or_else(|| error(format!("%{name}% needs an argument, as in %{name}(x)%")))
    };
    match name {
        "REQ" | "REQUEST_HEADER" => header(Headers::Request, required()?, false),
        "REQ_WITHOUT_QUERY" => header(Headers::Request, required()?, true),
        "RESP" | "RESPONSE_HEADER" => header(Headers::Response, required()?, false),
        "TRAILER" | "RESPONSE_TRAILER" => header(Headers::ResponseTrailers, required()?, false),
        "PATH" => path(arguments.unwrap_or_default()),
        "QUERY_PARAM" => Ok(What::QueryParameter(required()?.into())),
        "DYNAMIC_METADATA" => dynamic_metadata(required()?),
        "METADATA" => match required()?.split_once(':') {
            Some(("DYNAMIC", of)) => dynamic_metadata(of),
            _ => {
                without_effect.push("%METADATA% shows no value except with DYNAMIC:".to_owned());
                Ok(What::Nothing)
            }
        },
        "GRPC_STATUS" => grpc_status(arguments.unwrap_or_default()),
        "ENVIRONMENT" => {
            required()?;
            // What runs beside the proxy is not for the control plane to read.
            without_effect.push("%ENVIRONMENT% shows no value".to_owned());
            Ok(What::Nothing)
        }
        _ => {
            if name.ends_with("_LOCAL") {
                without_effect.push(format!("%{name}% is in UTC"));
            }
            let format = TimeFormat::parse(arguments.unwrap_or_default()).map_err(error)?;
            Ok(if name.starts_with("EMIT") {
                What::EmitTime(format)
            } else {
                What::StartTime(format)
            })
        }
    }
}

fn header(of: Headers, argument: &str, without_query: bool) -> Result<What, FormatError> {
    let (name, alternative) = match argument.split_once('?') {
        Some((name, alternative)) => (name, Some(alternative)),
        None => (argument, None),
    };
    let lower = |name: &str| name.to_ascii_lowercase().into_boxed_str();
    let valid = |name: &str| !name.is_empty() && !name.contains([' ', '?', '\n', '\r']);
    if !valid(name) || !alternative.is_none_or(valid) {
        return Err(error(format!(
            "'{argument}' is not NAME or NAME?ALTERNATIVE"
        )));
    }
    Ok(What::Header {
        of,
        name: lower(name),
        alternative: alternative.map(lower),
        without_query,
    })
}

/// `%PATH(query:which)%`: `WQ` with or `NQ` without query; `ORIG`, `PATH` or `ORIG_OR_PATH`.
fn path(arguments: &str) -> Result<What, FormatError> {
    let (query, which) = arguments.split_once(':').unwrap_or((arguments, ""));
    let without_query = match query {
        "" | "WQ" => false,
        "NQ" => true,
        _ => return Err(error(format!("'{query}' in %PATH(..)% must be WQ or NQ"))),
    };
    const ORIGINAL: &str = "x-envoy-original-path";
    let (name, alternative) = match which {
        "" | "ORIG_OR_PATH" => (ORIGINAL, Some(":path".into())),
        "ORIG" => (ORIGINAL, None),
        "PATH" => (":path", None),
        _ => {
            let message = format!("'{which}' in %PATH(..)% must be ORIG, PATH or ORIG_OR_PATH");
            return Err(error(message));
        }
    };
    Ok(What::Header {
        of: Headers::Request,
        name: name.into(),
        alternative,
        without_query,
    })
}

/// `NAMESPACE:KEY:KEY...`; without keys the whole namespace.
fn dynamic_metadata(argument: &str) -> Result<What, FormatError> {
    let mut parts = argument.split(':').map(Box::from);
    let namespace: Box<str> = parts.next().unwrap_or_default();
    if namespace.is_empty() {
        return Err(error(format!("'{argument}' is not NAMESPACE:KEY:KEY...")));
    }
    Ok(What::DynamicMetadata {
        namespace,
        path: parts.collect(),
    })
}

fn grpc_status(argument: &str) -> Result<What, FormatError> {
    Ok(What::GrpcStatus(match argument {
        "" | "CAMEL_STRING" => GrpcStatusStyle::Camel,
        "SNAKE_STRING" => GrpcStatusStyle::Snake,
        "NUMBER" => GrpcStatusStyle::Number,
        other => {
            return Err(error(format!(
                "'{other}' in %GRPC_STATUS(..)% must be CAMEL_STRING, SNAKE_STRING or NUMBER"
            )));
        }
    }))
}

pub(super) fn error(reason: impl Into<String>) -> FormatError {
    FormatError {
        reason: reason.into(),
    }
}
