//! "Did you mean": the nearest known name, the place where a misplaced field belongs, and spellings
//! that many documents have wrong.

use crate::schema::{MessageInfo, Variant};

/// (message, wrong name, what to do instead). Only what spelling distance and placement cannot find.
const KNOWN: &[(&str, &str, &str)] = &[
    (
        "OutlierDetection",
        "consecutive_5xx",
        "did you mean \"consecutive5xxErrors\"?",
    ),
    (
        "OutlierDetection",
        "consecutive5xx",
        "did you mean \"consecutive5xxErrors\"?",
    ),
    (
        "OutlierDetection",
        "consecutiveGatewayFailure",
        "did you mean \"consecutiveGatewayErrors\"?",
    ),
    (
        "LoadBalancerSettings",
        "warmupDuration",
        "did you mean \"warmup.duration\" (or the deprecated \"warmupDurationSecs\")?",
    ),
    (
        "ServiceEntry",
        "tls",
        "remove it: an HTTPS or TLS port is passed through by SNI without it; TLS origination is trafficPolicy.tls of a DestinationRule",
    ),
    (
        "DestinationRule",
        "tls",
        "did you mean \"trafficPolicy.tls\"?",
    ),
    (
        "TrafficPolicy",
        "rateLimit",
        "a DestinationRule cannot limit rates; use an EnvoyFilter with a local rate limit",
    ),
    (
        "HttpRoute",
        "rateLimit",
        "a VirtualService cannot limit rates; use an EnvoyFilter with a local rate limit",
    ),
    ("HttpRoute", "retry", "did you mean \"retries\"?"),
    ("HttpRoute", "cors", "did you mean \"corsPolicy\"?"),
    ("HttpMatchRequest", "path", "did you mean \"uri\"?"),
    ("HttpMatchRequest", "host", "did you mean \"authority\"?"),
    (
        "SidecarInjectorWebhook",
        "resources",
        "the resources of sidecars are values.global.proxy.resources",
    ),
    ("Gateway", "port", "did you mean \"servers[].port\"?"),
    (
        "JwtRule",
        "triggerRules",
        "remove it: a request without a token passes everywhere; which paths need one says an AuthorizationPolicy with notPaths",
    ),
];

/// What to do about an unknown field of a message.
pub fn field(info: &MessageInfo, name: &str) -> Option<String> {
    if let Some((_, _, remedy)) = KNOWN
        .iter()
        .find(|(message, wrong, _)| *message == info.name && *wrong == name)
    {
        return Some((*remedy).to_owned());
    }
    if let Some(place) = misplaced(info, name) {
        return Some(format!("did you mean \"{place}\"?"));
    }
    let names = info.fields.iter().map(|field| field.name);
    nearest(name, names).map(|name| format!("did you mean \"{name}\"?"))
}

/// The field stands one level too high: look for its exact name in the messages below this one.
fn misplaced(info: &MessageInfo, name: &str) -> Option<String> {
    info.fields.iter().find_map(|field| {
        let schema = (field.schema)();
        let inner = schema.message()?;
        inner.field(name)?;
        let brackets = if matches!(schema, crate::schema::Schema::List(_)) {
            "[]"
        } else {
            ""
        };
        Some(format!("{}{brackets}.{name}", field.name))
    })
}

/// What to write instead of an unknown value of an enum.
pub fn value(name: &str, variants: &[Variant]) -> String {
    let current = || {
        variants
            .iter()
            .filter(|variant| variant.deprecated.is_none())
            .map(|variant| variant.name)
    };
    match nearest(name, variants.iter().map(|variant| variant.name)) {
        Some(name) => format!("did you mean \"{name}\"?"),
        None => format!("one of {}", current().collect::<Vec<_>>().join(", ")),
    }
}

/// The nearest of `known`, if it is near: a typing mistake or two, other case, `_` or `-` for camel case.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Distance is quadratic in length; nobody misspells a name into a paragraph.
    if name.len() > 64 {
        return None;
    }
    let wanted = fold(name);
    let best = known.map(|candidate| {
        (
            strsim::damerau_levenshtein(&wanted, &fold(candidate)),
            candidate,
        )
    });
    let (distance, candidate) = best.min_by_key(|(distance, _)| *distance)?;
    // One mistake per three letters, at most three; short names must be nearly right.
    (distance <= (wanted.len() / 3).min(3)).then_some(candidate)
}

fn fold(name: &str) -> String {
    name.chars()
        .filter(|c| !matches!(c, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect()
}
