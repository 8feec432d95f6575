//! The compiled policies against a plain reading of the rules: random policies, random requests. And
//! that few policies are tried. What a decision costs, `cargo xtask bench --only rbac` says.

use super::reference::{Request, Said, Text, first_match};
use super::*;
use crate::CidrRange;
use proptest::prelude::*;
use serde_json::{Value, json};

// Few words, so that rules and requests often agree.

fn path() -> BoxedStrategy<String> {
    let segment = prop::sample::select(vec!["a", "b", "A", "ab", "a;x", "%61", ""]);
    prop::collection::vec(segment, 1..3)
        .prop_map(|segments| format!("/{}", segments.join("/")))
        .boxed()
}

fn identity() -> BoxedStrategy<String> {
    let word = || prop::sample::select(vec!["a", "b", "ns", "ab"]);
    (word(), word())
        .prop_map(|(ns, sa)| format!("spiffe://td/ns/{ns}/sa/{sa}"))
        .boxed()
}

fn text(words: BoxedStrategy<String>) -> BoxedStrategy<Text> {
    let cut = |from: usize, to: usize| {
        move |text: String| {
            let from = text.char_indices().nth(from).map_or(0, |(at, _)| at);
            let to = text
                .char_indices()
                .nth_back(to)
                .map_or(text.len(), |(at, _)| at.max(from));
            text[from..to].to_owned()
        }
    };
    prop_oneof![
        4 => words.clone().prop_map(Text::Exact),
        1 => words.clone().prop_map(Text::ExactAnyCase),
        2 => words.clone().prop_map(cut(0, 1)).prop_map(Text::Prefix),
        2 => words.clone().prop_map(cut(2, 0)).prop_map(Text::Suffix),
        1 => words.clone().prop_map(cut(2, 1)).prop_map(Text::Contains),
        1 => words.prop_map(cut(2, 1)).prop_map(|t| Text::Regex(format!(".*{}.*", regex::escape(&t)))),
        1 => Just(Text::Regex(".*/ns/a/.*".to_owned())),
        1 => Just(Text::Regex(".*".to_owned())),
    ]
    .boxed()
}

fn range() -> impl Strategy<Value = CidrRange> {
    let ranges = [
        ("10.0.0.0", 8),
        ("10.1.0.0", 16),
        ("10.1.1.1", 32),
        ("0.0.0.0", 0),
        ("::", 0),
    ];
    prop::sample::select(ranges.to_vec()).prop_map(|(network, prefix_len)| CidrRange {
        network: network.parse().unwrap(),
        prefix_len,
    })
}

fn said() -> impl Strategy<Value = Said> {
    let words = || {
        let words = prop::sample::select(vec!["v", "w", "V", "vw"]);
        words.prop_map(str::to_owned).boxed()
    };
    let leaf = prop_oneof![
        Just(Said::Always),
        prop::sample::select(vec!["GET", "PUT"]).prop_map(Said::Method),
        prop::sample::select(vec!["a.test", "A.test", "b.test:80"]).prop_map(Said::Host),
        (
            prop::sample::select(vec!["x-a", "x-b"]),
            text(words()),
            any::<bool>()
        )
            .prop_map(|(name, text, invert)| Said::Header(name, text, invert)),
        text(path()).prop_map(Said::Path),
        prop::sample::select(vec!["/a/*", "/{x=*}/b", "/a/**", "/ab/{x}", "/A"])
            .prop_map(|template| Said::Template(template.to_owned())),
        prop::option::weighted(0.9, text(identity())).prop_map(Said::Principal),
        range().prop_map(Said::Ip),
        range().prop_map(Said::Remote),
        (79u16..82, 80u16..83).prop_map(|(from, to)| Said::Port(from, to)),
        text(words()).prop_map(Said::ServerName),
        text(words()).prop_map(Said::Claim),
        any::<bool>().prop_map(Said::HasClaim),
    ];
    leaf.prop_recursive(3, 24, 9, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 1..4).prop_map(Said::All),
            prop::collection::vec(inner.clone(), 1..10).prop_map(Said::Any),
            inner.prop_map(|rule| Said::Not(Box::new(rule))),
        ]
    })
}

fn request() -> impl Strategy<Value = Request> {
    let word = || prop::sample::select(vec!["v", "w", "V", "vw", "v,w"]);
    let header = (prop::sample::select(vec!["x-a", "x-b"]), word());
    let ip = || {
        prop::sample::select(vec![
            "10.1.1.1",
            "10.1.2.1",
            "11.0.0.1",
            "::ffff:10.2.0.1",
            "fd00::1",
        ])
    };
    let claim = prop_oneof![
        Just(Value::Null),
        word().prop_map(Value::from),
        prop::collection::vec(word(), 0..3).prop_map(|all| json!(all)),
        Just(json!(7)),
    ];
    let names = (
        prop::collection::vec(identity(), 0..3),
        prop::collection::vec(identity(), 0..2),
        prop_oneof![Just(String::new()), identity()],
        any::<bool>(),
    );
    let first = (
        prop::sample::select(vec!["GET", "PUT"]),
        (path(), prop::sample::select(vec!["", "?a=/b", "#/a"])),
        prop::sample::select(vec!["a.test", "A.TEST", "b.test:80", "b.test"]),
        prop::collection::vec(header, 0..4),
    );
    (first, names, ip(), ip(), 79u16..83, word(), claim).prop_map(
        |(
            (method, (path, query), host, headers),
            (uris, dns, name, tls),
            ip,
            remote,
            port,
            sni,
            claim,
        )| Request {
            method,
            path: path + query,
            host,
            headers,
            uris,
            dns,
            name,
            tls,
            ip: ip.parse().unwrap(),
            remote: remote.parse().unwrap(),
            port,
            server_name: sni,
            claim,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn compiled_policies_decide_as_the_plain_reading(
        policies in prop::collection::vec(
            (prop::collection::vec(said(), 1..3), prop::collection::vec(said(), 1..3)), 0..12),
        requests in prop::collection::vec(request(), 1..12),
        action in prop::sample::select(vec![RbacAction::Allow, RbacAction::Deny, RbacAction::Log]),
    ) {
        let compiled = policies.iter().enumerate().map(|(i, (permissions, principals))| {
            let rules = |rules: &[Said]| rules.iter().map(Said::compiled).collect();
            RbacPolicy::new(&format!("p{i:02}"), rules(permissions), rules(principals))
        });
        let rules = RbacRules::new(action, compiled.collect());
        for request in &requests {
            let expect = first_match(&policies, request);
            let verdict = request.decide(&rules);
            let found = verdict.policy.map(|policy| &*policy.name);
            let name = expect.map(|i| format!("p{i:02}"));
            prop_assert_eq!(found, name.as_deref(), "{:?}", request);
            let allowed = match action {
                RbacAction::Allow => expect.is_some(),
                RbacAction::Deny => expect.is_none(),
                RbacAction::Log => true,
            };
            prop_assert_eq!(verdict.allowed, allowed);
        }
    }
}

/// What a thousand policies differ in.
#[derive(Clone, Copy, Debug)]
enum By {
    Account,
    Namespace,
    Path,
    Prefix,
    Suffix,
    Template,
    Address,
    Block,
    Port,
}

/// A policy as Istio writes one: a caller, a path, a method.
fn like_istio(i: usize, by: By) -> RbacPolicy {
    let path = match by {
        By::Path => Said::Path(Text::Exact(format!("/api/v1/things/{i}"))),
        By::Prefix => Said::Path(Text::Prefix(format!("/api/v1/things/{i}"))),
        By::Suffix => Said::Path(Text::Suffix(format!("s/{i}"))),
        By::Template => Said::Template(format!("/api/v1/things/{i}")),
        By::Port => Said::Port(port(i), port(i) + 1),
        _ => Said::Path(Text::Prefix("/api/".to_owned())),
    };
    let block = |prefix_len, mask| CidrRange {
        network: std::net::Ipv4Addr::from(u32::from_be_bytes(address(i)) & mask).into(),
        prefix_len,
    };
    let caller = match by {
        By::Account => Said::Principal(Some(Text::Exact(account(i)))),
        By::Namespace => Said::Principal(Some(Text::Regex(format!(".*/ns/ns-{i}/.*")))),
        By::Address => Said::Ip(block(32, u32::MAX)),
        By::Block => Said::Remote(block(24, 0xffff_ff00)),
        _ => Said::Principal(None),
    };
    let methods = Said::Any(vec![Said::Method("GET"), Said::Method("PUT")]);
    let permission = Said::All(vec![methods, Said::Any(vec![path])]);
    let principal = Said::All(vec![Said::Any(vec![caller])]);
    let name = format!("ns[default]-policy[p{i}]-rule[0]");
    RbacPolicy::new(
        &name,
        vec![permission.compiled()],
        vec![principal.compiled()],
    )
}

fn account(i: usize) -> String {
    format!("spiffe://cluster.local/ns/ns-{i}/sa/sa-{i}")
}

fn address(i: usize) -> [u8; 4] {
    let [_, _, high, low] = (i as u32).to_be_bytes();
    [10, high, low, 1]
}

fn port(i: usize) -> u16 {
    8000 + i as u16
}

fn caller(i: usize) -> Request {
    Request {
        method: "GET",
        path: format!("/api/v1/things/{i}?q=1"),
        host: "things.default.svc.cluster.local",
        headers: vec![("x-request-id", "6d1e9a5c-6f6c-4ed8-8e5e-0c4a5f1f6a01")],
        uris: vec![account(i)],
        dns: Vec::new(),
        name: String::new(),
        tls: true,
        ip: address(i).into(),
        remote: address(i).into(),
        port: port(i),
        server_name: "outbound_.80_._.things.default.svc.cluster.local",
        claim: Value::Null,
    }
}

#[test]
fn of_a_thousand_policies_only_those_that_can_match_are_tried() {
    for by in [
        By::Account,
        By::Namespace,
        By::Path,
        By::Prefix,
        By::Suffix,
        By::Template,
        By::Address,
        By::Block,
        By::Port,
    ] {
        let policies = (0..1000).map(|i| like_istio(i, by)).collect();
        let rules = RbacRules::new(RbacAction::Allow, policies);
        for (of, allows) in [(777, true), (2000, false)] {
            let request = caller(of);
            let subject = request.subject(None);
            let verdict = rules.decide(&subject);
            // A prefix and an ending of some other number fit, too.
            let loose = matches!(by, By::Prefix | By::Suffix);
            assert!(verdict.allowed == allows || loose, "{by:?} {of}");
            let mut tried = 0;
            rules.index.candidates(&subject, &mut |list: &[u32]| {
                tried += list.len();
            });
            assert!(tried <= 3, "{by:?}: {tried} policies are tried");
        }
    }
}
