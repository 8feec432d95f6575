//! What holds for any bytes that are shown as a token or a key set, and for any policies on paths and
//! callers. Fuzzing looks for bytes for which it does not.

use crate::jwt::{KeySet, Token};
use crate::rbac::reference::{Request, Said, Text, first_match};
use crate::rbac::{RbacAction, RbacPolicy, RbacRules};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use std::sync::LazyLock;

/// Key sets and tokens that were signed with them, one of each algorithm.
struct Vectors {
    keys: Option<KeySet>,
    tokens: Vec<String>,
}

static VECTORS: LazyLock<Vectors> = LazyLock::new(|| {
    let text = include_str!("jwt/vectors.json");
    let all: Value = serde_json::from_str(text).unwrap_or_default();
    let tokens = all["tokens"].as_object().into_iter().flatten();
    Vectors {
        keys: KeySet::parse(text, |_, _| {}).ok(),
        tokens: tokens
            .filter_map(|(_, token)| token.as_str())
            .map(str::to_owned)
            .collect(),
    }
});

/// Reads bytes as a token, and a first line and the rest as the header and the payload of one.
pub fn jwt(bytes: &[u8]) {
    token(bytes);
    if let Some(end) = bytes.iter().position(|b| *b == b'\n') {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (header, payload) = (part(&bytes[..end]), part(&bytes[end + 1..]));
        token(format!("{header}.{payload}.c2ln").as_bytes());
    }
}

/// A token says what its parts say, and is believed only if it was signed.
fn token(bytes: &[u8]) {
    let Ok(token) = Token::parse(bytes) else {
        return;
    };
    // Deep nesting is no error to who only looks for registered claims.
    if let Ok(claims) = serde_json::from_slice::<Value>(&token.payload) {
        let issuer = claims.get("iss").and_then(Value::as_str);
        assert_eq!(issuer.unwrap_or_default(), token.issuer);
        let audiences = match claims.get("aud") {
            Some(Value::Array(all)) => all.iter().map(Value::as_str).collect(),
            Some(one) => vec![one.as_str()],
            None => Vec::new(),
        };
        let ours: Vec<Option<&str>> = token.audiences.iter().map(|one| Some(&**one)).collect();
        assert_eq!(audiences, ours);
    }
    let vectors = &*VECTORS;
    let keys = vectors.keys.as_ref();
    if keys.is_some_and(|keys| keys.verify(&token).is_ok()) {
        let signed = |one: &String| {
            let signed = one.rsplit_once('.').map(|(signed, _)| signed.as_bytes());
            signed == Some(token.signed)
        };
        assert!(
            vectors.tokens.iter().any(signed),
            "believed without a signature"
        );
    }
}

/// Reads bytes as a key set, and tries its keys on tokens of all algorithms.
pub fn jwks(bytes: &[u8]) {
    let Ok(keys) = KeySet::parse(&String::from_utf8_lossy(bytes), |_, _| {}) else {
        return;
    };
    for token in VECTORS
        .tokens
        .iter()
        .filter_map(|t| Token::parse(t.as_bytes()).ok())
    {
        let _ = keys.verify(&token);
    }
}

/// Reads a request and policies from lines, and compares what the compiled policies decide with the
/// plain reading of the rules.
///
/// The first line is a path, the second the identity of the caller (none: a plain connection). Every
/// further line is a policy: conditions between spaces, of all of which one of the alternatives
/// between commas must hold. `=` is a whole path, `i` the same in any case, `^` its beginning, `$` its
/// end, `~` a part, `r` a regex, `t` a template, `@` an identity, `n` a namespace; `!` negates.
pub fn rbac_path(bytes: &[u8]) {
    const MOST: usize = 32;
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split('\n');
    let path = lines.next().unwrap_or_default().to_owned();
    let caller = lines.next().unwrap_or_default();
    let policies: Vec<(Vec<Said>, Vec<Said>)> = lines
        .take(MOST)
        .map(|line| {
            let all = line.split(' ').filter_map(alternatives).take(MOST);
            (vec![Said::All(all.collect())], vec![Said::Always])
        })
        .collect();
    let request = Request {
        uris: vec![caller.to_owned()],
        tls: !caller.is_empty(),
        ..Request::to(path)
    };
    let compiled = policies
        .iter()
        .enumerate()
        .map(|(i, (permissions, principals))| {
            let rules = |rules: &[Said]| rules.iter().map(Said::compiled).collect();
            RbacPolicy::new(&format!("{i:02}"), rules(permissions), rules(principals))
        });
    let rules = RbacRules::new(RbacAction::Deny, compiled.collect());
    let expect = first_match(&policies, &request).map(|i| format!("{i:02}"));
    let verdict = request.decide(&rules);
    let found = verdict.policy.map(|policy| &*policy.name);
    assert_eq!(found, expect.as_deref(), "{text:?}");
    assert_eq!(verdict.allowed, expect.is_none());
}

fn alternatives(text: &str) -> Option<Said> {
    let any: Vec<Said> = text.split(',').filter_map(condition).collect();
    (!any.is_empty()).then_some(Said::Any(any))
}

fn condition(text: &str) -> Option<Said> {
    if let Some(rest) = text.strip_prefix('!') {
        return Some(Said::Not(Box::new(condition(rest)?)));
    }
    let kind = text.chars().next()?;
    let text = text[kind.len_utf8()..].to_owned();
    Some(match kind {
        '=' => Said::Path(Text::Exact(text)),
        'i' => Said::Path(Text::ExactAnyCase(text)),
        '^' => Said::Path(Text::Prefix(text)),
        '$' => Said::Path(Text::Suffix(text)),
        '~' => Said::Path(Text::Contains(text)),
        'r' if is_pattern(&text) => Said::Path(Text::Regex(text)),
        't' if crate::compile::uri_template::regex(&text).is_ok() => Said::Template(text),
        '@' => Said::Principal(Some(Text::Exact(text))),
        'n' if is_pattern(&text) => Said::Principal(Some(Text::Regex(format!(".*/ns/{text}/.*")))),
        _ => return None,
    })
}

/// Patterns that mean the same in both engines and cost little.
fn is_pattern(text: &str) -> bool {
    let simple = |b: u8| b.is_ascii_alphanumeric() || b"/:-_.*+".contains(&b);
    text.len() < 64 && text.bytes().all(simple) && regex::Regex::new(text).is_ok()
}

#[cfg(test)]
mod tests {
    fn replay(name: &str, survive: fn(&[u8])) {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/");
        for entry in std::fs::read_dir(format!("{corpus}{name}")).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            survive(&std::fs::read(path).unwrap());
        }
    }

    #[test]
    fn the_corpora_of_tokens_keys_and_policies_are_survived() {
        assert_eq!(super::VECTORS.tokens.len(), 13);
        replay("jwt", super::jwt);
        replay("jwks", super::jwks);
        replay("rbac_path", super::rbac_path);
    }
}
