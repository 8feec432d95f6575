//! How verbs name objects: `KIND`, `KIND NAME`, `KIND/NAME`, and the paths of the API.

use lateen_api::Kind;

use crate::failure::Failure;

/// `virtualservice.networking.istio.io`, `service`: as kubectl prints a kind before a name.
pub fn dotted(kind: Kind) -> String {
    let info = kind.info();
    match info.group {
        "" => info.singular.to_owned(),
        group => format!("{}.{group}", info.singular),
    }
}

/// The kinds of `vs,dr` (or `all`).
pub fn kinds(text: &str) -> Result<Vec<Kind>, Failure> {
    if text == "all" || text == "istio-io" {
        return Ok(Kind::ALL.to_vec());
    }
    let kinds = text.split(',').filter(|name| !name.is_empty()).map(kind);
    kinds.collect()
}

pub fn kind(text: &str) -> Result<Kind, Failure> {
    text.parse::<Kind>().map_err(|error| {
        let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.info().plural).collect();
        Failure::usage(format!("{error}; the known kinds are {}", known.join(", ")))
    })
}

/// The names in `KIND NAME...` or `KIND/NAME...`.
pub fn named(arguments: &[String]) -> Result<Vec<(Kind, String)>, Failure> {
    let Some(first) = arguments.first() else {
        return Ok(Vec::new());
    };
    if first.contains('/') {
        let pair = |argument: &String| match argument.split_once('/') {
            Some((kind_name, name)) if !name.is_empty() => Ok((kind(kind_name)?, name.to_owned())),
            _ => Err(Failure::usage(format!("{argument:?} is not KIND/NAME"))),
        };
        return arguments.iter().map(pair).collect();
    }
    let kind = kind(first)?;
    Ok(arguments[1..]
        .iter()
        .map(|name| (kind, name.clone()))
        .collect())
}

/// The path of a kind's objects; all namespaces if none is given.
pub fn collection(kind: Kind, namespace: Option<&str>) -> String {
    let info = kind.info();
    let root = match info.group {
        "" => "/api/v1".to_owned(),
        group => format!("/apis/{group}/{}", info.storage_version),
    };
    match namespace.filter(|_| info.namespaced) {
        Some(namespace) => format!("{root}/namespaces/{}/{}", escape(namespace), info.plural),
        None => format!("{root}/{}", info.plural),
    }
}

pub fn path(kind: Kind, namespace: &str, name: &str) -> String {
    format!("{}/{}", collection(kind, Some(namespace)), escape(name))
}

/// For a path segment or a query value.
pub fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                escaped.push(byte as char);
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_both_forms() {
        let check = |arguments: &[&str], expect: &[&str]| {
            let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
            let named = named(&arguments).unwrap();
            let named: Vec<_> = named
                .iter()
                .map(|(k, n)| format!("{}/{n}", dotted(*k)))
                .collect();
            assert_eq!(named, expect);
        };
        check(
            &["vs", "a", "b"],
            &[
                "virtualservice.networking.istio.io/a",
                "virtualservice.networking.istio.io/b",
            ],
        );
        check(
            &["svc/a", "dr/b"],
            &["service/a", "destinationrule.networking.istio.io/b"],
        );
        check(&[], &[]);
        for bad in [&["nonsense", "a"][..], &["vs/a", "b"], &["vs/"]] {
            let bad: Vec<String> = bad.iter().map(|a| (*a).to_owned()).collect();
            assert!(named(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_are_kubernetes() {
        let check = |kind: &str, namespace: &str, expect: &str| {
            assert_eq!(path(kind.parse().unwrap(), namespace, "x"), expect);
        };
        check(
            "vs",
            "a",
            "/apis/networking.istio.io/v1/namespaces/a/virtualservices/x",
        );
        check("svc", "a/b", "/api/v1/namespaces/a%2Fb/services/x");
        check("ns", "a", "/api/v1/namespaces/x");
    }
}
