//! Routing as a whole: which virtual host and route a request takes, and what the rewrites make of it.

use super::{PathMatcher, RedirectPath, Route, RouteAction, RouteTable};
use crate::RequestView;
use crate::compile::compile_routes;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf::{BoolValue, UInt32Value};
use pb::route_match::PathSpecifier;
use proptest::prelude::*;
use prost::Message;
use std::borrow::Cow;
use std::sync::Arc;

#[derive(Clone, Default)]
struct Request {
    method: &'static str,
    authority: String,
    path: String,
    headers: Vec<(&'static str, &'static str)>,
}

impl RequestView for Request {
    fn method(&self) -> &[u8] {
        if self.method.is_empty() {
            b"GET"
        } else {
            self.method.as_bytes()
        }
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }
    fn scheme(&self) -> &[u8] {
        b"http"
    }
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let mut values = self
            .headers
            .iter()
            .filter(|(n, _)| *n == name)
            .map(|(_, v)| *v);
        let first = values.next()?;
        let rest: Vec<&str> = values.collect();
        Some(if rest.is_empty() {
            Cow::Borrowed(first.as_bytes())
        } else {
            Cow::Owned([&[first], rest.as_slice()].concat().join(",").into_bytes())
        })
    }
    fn any_value(&self, name: &str, mut test: impl FnMut(&[u8]) -> bool) -> Option<bool> {
        let mut values = self.headers.iter().filter(|(n, _)| *n == name).peekable();
        values.peek()?;
        Some(values.any(|(_, value)| test(value.as_bytes())))
    }
}

fn get(path: &str) -> Request {
    Request {
        path: path.to_owned(),
        authority: "reviews:9080".to_owned(),
        ..Request::default()
    }
}

fn regex(pattern: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher {
        regex: pattern.to_owned(),
        engine_type: None,
    }
}

fn substitution(pattern: &str, to: &str) -> matcher::RegexMatchAndSubstitute {
    matcher::RegexMatchAndSubstitute {
        pattern: Some(regex(pattern)),
        substitution: to.to_owned(),
    }
}

fn route(name: &str, path: PathSpecifier) -> pb::Route {
    pb::Route {
        name: name.to_owned(),
        r#match: Some(pb::RouteMatch {
            path_specifier: Some(path),
            ..Default::default()
        }),
        action: Some(pb::route::Action::Route(pb::RouteAction {
            cluster_specifier: Some(pb::route_action::ClusterSpecifier::Cluster("c".to_owned())),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn table(routes: Vec<pb::Route>) -> Arc<RouteTable> {
    let message = pb::RouteConfiguration {
        name: "t".to_owned(),
        virtual_hosts: vec![pb::VirtualHost {
            name: "v".to_owned(),
            domains: vec!["*".to_owned()],
            routes,
            ..Default::default()
        }],
        ..Default::default()
    };
    compile_routes(&message.encode_to_vec())
        .unwrap_or_else(|e| panic!("{e}"))
        .value
}

fn first(table: &RouteTable, request: &Request) -> Option<Arc<Route>> {
    table
        .virtual_host(request.authority())
        .and_then(|v| v.route(request, None, 0))
        .cloned()
}

#[test]
fn the_first_matching_route_in_order_wins() {
    let prefix = |p: &str| PathSpecifier::Prefix(p.to_owned());
    let table = table(vec![
        route("regex", PathSpecifier::SafeRegex(regex("/v[0-9]+/.*"))),
        route("exact", PathSpecifier::Path("/api/health".to_owned())),
        route(
            "separated",
            PathSpecifier::PathSeparatedPrefix("/api".to_owned()),
        ),
        route("longer-after", prefix("/api/v1/")),
        route("raw-prefix", prefix("/ap")),
        route(
            "connect",
            PathSpecifier::ConnectMatcher(pb::route_match::ConnectMatcher {}),
        ),
        route("static", prefix("/static/")),
        route("static-css", prefix("/static/css/")),
        route("catch-all", prefix("/")),
    ]);
    let check = |path: &str, expect: &str| {
        let found = first(&table, &get(path)).map(|r| r.name.to_string());
        assert_eq!(found.as_deref(), Some(expect), "{path}");
    };
    check("/v1/x?y", "regex");
    check("/api/health", "exact");
    check("/api/health?deep=1", "exact");
    check("/api/healthz", "separated");
    check("/api", "separated");
    check("/api/v1/x", "separated");
    check("/apix", "raw-prefix");
    check("/static/css/a", "static");
    check("/elsewhere", "catch-all");
    let connect = Request {
        method: "CONNECT",
        path: String::new(),
        ..get("")
    };
    assert_eq!(first(&table, &connect).unwrap().name.as_ref(), "connect");
    assert!(
        first(&table, &get("")).is_none(),
        "a request without a path"
    );
}

#[test]
fn case_is_ignored_only_where_the_route_says_so() {
    let mut insensitive = route("i", PathSpecifier::Prefix("/Api".to_owned()));
    insensitive.r#match.as_mut().unwrap().case_sensitive = Some(BoolValue { value: false });
    let table = table(vec![
        insensitive,
        route("s", PathSpecifier::Path("/X".to_owned())),
    ]);
    assert_eq!(first(&table, &get("/aPI/1")).unwrap().name.as_ref(), "i");
    assert!(first(&table, &get("/x")).is_none());
}

#[test]
fn each_value_of_a_header_is_matched_and_pseudo_headers_can_be() {
    let with = |name: &str, header: &str, value: &str| {
        let mut route = route(name, PathSpecifier::Prefix("/".to_owned()));
        route.r#match.as_mut().unwrap().headers = vec![pb::HeaderMatcher {
            name: header.to_owned(),
            header_match_specifier: Some(pb::header_matcher::HeaderMatchSpecifier::StringMatch(
                matcher::StringMatcher {
                    match_pattern: Some(matcher::string_matcher::MatchPattern::Exact(
                        value.to_owned(),
                    )),
                    ignore_case: false,
                },
            )),
            ..Default::default()
        }];
        route
    };
    let table = table(vec![
        with("jason", "End-User", "jason"),
        with("second", "x", "b"),
        with("post", ":method", "POST"),
        route("rest", PathSpecifier::Prefix("/".to_owned())),
    ]);
    let check = |request: Request, expect: &str| {
        assert_eq!(first(&table, &request).unwrap().name.as_ref(), expect);
    };
    check(
        Request {
            headers: vec![("end-user", "jason")],
            ..get("/")
        },
        "jason",
    );
    check(
        Request {
            headers: vec![("x", "a"), ("x", "b")],
            ..get("/")
        },
        "second",
    );
    check(
        Request {
            method: "POST",
            ..get("/")
        },
        "post",
    );
    check(
        Request {
            headers: vec![("end-user", "Jason")],
            ..get("/")
        },
        "rest",
    );
}

#[test]
fn weights_share_the_random_numbers() {
    use pb::route_action::ClusterSpecifier;
    let weight = |name: &str, weight: u32| pb::weighted_cluster::ClusterWeight {
        name: name.to_owned(),
        weight: Some(UInt32Value { value: weight }),
        ..Default::default()
    };
    let mut weighted = route("w", PathSpecifier::Prefix("/".to_owned()));
    weighted.action = Some(pb::route::Action::Route(pb::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(pb::WeightedCluster {
            clusters: vec![weight("v1", 70), weight("none", 0), weight("v3", 30)],
            ..Default::default()
        })),
        ..Default::default()
    }));
    let table = table(vec![weighted]);
    let route = first(&table, &get("/")).unwrap();
    let RouteAction::Forward(forward) = &route.action else {
        panic!("not a forward")
    };
    let super::ClusterTarget::Weighted(clusters) = &forward.cluster else {
        panic!("not weighted")
    };
    let name = |random| match &clusters.pick(random).target {
        super::ClusterName::Name(name) => name.to_string(),
        super::ClusterName::Header(name) => format!("header {name}"),
    };
    assert_eq!(
        (name(0), name(69), name(70), name(99), name(100)),
        (
            "v1".into(),
            "v1".into(),
            "v3".into(),
            "v3".into(),
            "v1".into()
        )
    );
}

/// What the upstream gets for a path, with `rewrite` set on a route that matches `specifier`.
fn rewritten(
    specifier: PathSpecifier,
    rewrite: impl Fn(&mut pb::RouteAction),
    path: &str,
) -> String {
    let mut message = route("r", specifier);
    if let Some(pb::route::Action::Route(action)) = &mut message.action {
        rewrite(action);
    }
    let route = first(&table(vec![message]), &get(path)).expect("the route matches");
    let RouteAction::Forward(forward) = &route.action else {
        panic!("not a forward")
    };
    let path = route
        .rewritten_path(forward, path.as_bytes())
        .unwrap_or_else(|| path.into());
    String::from_utf8(path).unwrap()
}

#[test]
fn prefix_rewrite_replaces_what_matched() {
    let to =
        |prefix: &'static str| move |a: &mut pb::RouteAction| a.prefix_rewrite = prefix.to_owned();
    let prefix = |p: &str| PathSpecifier::Prefix(p.to_owned());
    for (specifier, rewrite, path, expect) in [
        (prefix("/api/"), "/", "/api/v1?q=1", "/v1?q=1"),
        (prefix("/api"), "/", "/api/v1", "//v1"),
        (prefix("/api"), "/v2", "/api", "/v2"),
        (
            PathSpecifier::PathSeparatedPrefix("/api".into()),
            "/v2",
            "/api/x?y",
            "/v2/x?y",
        ),
        (
            PathSpecifier::Path("/old".into()),
            "/new",
            "/old?q=/old",
            "/new?q=/old",
        ),
        (
            PathSpecifier::SafeRegex(regex("/a.*")),
            "/new",
            "/abc?q",
            "/new?q",
        ),
    ] {
        assert_eq!(rewritten(specifier, to(rewrite), path), expect, "{path}");
    }
}

#[test]
fn regex_rewrite_works_on_the_path_without_its_query() {
    let to = |a: &mut pb::RouteAction| {
        a.regex_rewrite = Some(substitution("^/service/([^/]+)(/.*)$", r"\2/instance/\1"));
    };
    let path = rewritten(
        PathSpecifier::Prefix("/".into()),
        to,
        "/service/foo/v1/api?a=/service/x/y",
    );
    assert_eq!(path, "/v1/api/instance/foo?a=/service/x/y");
}

#[test]
fn host_rewrites() {
    use pb::route_action::HostRewriteSpecifier as Host;
    let check = |specifier: Host, expect: Option<&str>| {
        let mut message = route("r", PathSpecifier::Prefix("/".into()));
        if let Some(pb::route::Action::Route(action)) = &mut message.action {
            action.host_rewrite_specifier = Some(specifier);
        }
        let request = Request {
            headers: vec![("x-host", "from-header")],
            ..get("/shop/eu/x?q")
        };
        let route = first(&table(vec![message]), &request).unwrap();
        let RouteAction::Forward(forward) = &route.action else {
            panic!("not a forward")
        };
        let host = forward
            .rewritten_host(&request)
            .map(|h| String::from_utf8(h.into_owned()).unwrap());
        assert_eq!(host.as_deref(), expect);
    };
    check(Host::HostRewriteLiteral("other".into()), Some("other"));
    check(
        Host::HostRewriteHeader("X-Host".into()),
        Some("from-header"),
    );
    check(Host::HostRewriteHeader("missing".into()), None);
    check(
        Host::HostRewritePathRegex(substitution("^/shop/([^/]+)/.*$", r"\1.shop")),
        Some("eu.shop"),
    );
    check(Host::AutoHostRewrite(BoolValue { value: true }), None);
}

#[test]
fn redirects_follow_envoys_rules() {
    use pb::redirect_action::{PathRewriteSpecifier as Path, SchemeRewriteSpecifier as Scheme};
    let check = |redirect: pb::RedirectAction, host: &str, path: &str, expect: &str| {
        let mut message = route("r", PathSpecifier::Prefix("/old".into()));
        message.action = Some(pb::route::Action::Redirect(redirect));
        let request = Request {
            authority: host.to_owned(),
            headers: vec![("x-forwarded-proto", "http")],
            ..get(path)
        };
        let route = first(&table(vec![message]), &request).unwrap();
        let RouteAction::Redirect(redirect) = &route.action else {
            panic!("not a redirect")
        };
        let location = route.redirect_location(redirect, &request);
        assert_eq!(String::from_utf8(location).unwrap(), expect);
    };
    let redirect = pb::RedirectAction::default;
    let https = || Some(Scheme::HttpsRedirect(true));
    let path = |p: &str| Some(Path::PathRedirect(p.to_owned()));
    check(
        pb::RedirectAction {
            scheme_rewrite_specifier: https(),
            ..redirect()
        },
        "a:80",
        "/old?q",
        "https://a/old?q",
    );
    check(
        pb::RedirectAction {
            scheme_rewrite_specifier: https(),
            ..redirect()
        },
        "a:8080",
        "/old",
        "https://a:8080/old",
    );
    check(
        pb::RedirectAction {
            scheme_rewrite_specifier: https(),
            port_redirect: 8443,
            ..redirect()
        },
        "[::1]:80",
        "/old",
        "https://[::1]:8443/old",
    );
    check(
        pb::RedirectAction {
            host_redirect: "b".into(),
            ..redirect()
        },
        "a:80",
        "/old",
        "http://b/old",
    );
    check(
        pb::RedirectAction {
            path_rewrite_specifier: path("/new"),
            ..redirect()
        },
        "a",
        "/old?q",
        "http://a/new?q",
    );
    check(
        pb::RedirectAction {
            path_rewrite_specifier: path("/new?x"),
            ..redirect()
        },
        "a",
        "/old?q",
        "http://a/new?x",
    );
    check(
        pb::RedirectAction {
            path_rewrite_specifier: path("/new"),
            strip_query: true,
            ..redirect()
        },
        "a",
        "/old?q",
        "http://a/new",
    );
    check(
        pb::RedirectAction {
            strip_query: true,
            ..redirect()
        },
        "a",
        "/old?q",
        "http://a/old",
    );
    let prefix = Some(Path::PrefixRewrite("/new".into()));
    check(
        pb::RedirectAction {
            path_rewrite_specifier: prefix,
            ..redirect()
        },
        "a",
        "/old/x?q",
        "http://a/new/x?q",
    );
    let rewrite = Some(Path::RegexRewrite(substitution("^/old/(.*)$", r"/\1")));
    check(
        pb::RedirectAction {
            path_rewrite_specifier: rewrite,
            ..redirect()
        },
        "a",
        "/old/x?q",
        "http://a/x?q",
    );
    assert!(matches!(RedirectPath::default(), RedirectPath::Keep));
}

/// Small alphabets, so that prefixes, exact paths and requests meet often.
fn specifier() -> impl Strategy<Value = (PathSpecifier, bool)> {
    let path = "(/[ab]{0,2}){1,3}";
    let specifier = prop_oneof![
        path.prop_map(PathSpecifier::Prefix),
        path.prop_map(PathSpecifier::Path),
        "(/[ab]{1,2}){1,3}".prop_map(PathSpecifier::PathSeparatedPrefix),
        "/[ab](/|b|a\\*){0,3}".prop_map(|p| PathSpecifier::SafeRegex(regex(&p))),
        Just(PathSpecifier::ConnectMatcher(
            pb::route_match::ConnectMatcher {}
        )),
    ];
    (specifier, any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_index_finds_what_a_linear_scan_finds(
        specifiers in proptest::collection::vec(specifier(), 0..40),
        paths in proptest::collection::vec("(/[abAB]{0,2}){0,4}(\\?x)?", 1..20),
        random: u64,
    ) {
        let routes = specifiers
            .into_iter()
            .enumerate()
            .map(|(i, (specifier, case_sensitive))| {
                let mut route = route(&i.to_string(), specifier);
                let matcher = route.r#match.as_mut().unwrap();
                matcher.case_sensitive = Some(BoolValue { value: case_sensitive });
                // Some routes have a further condition, so that the first candidate may not match.
                if i % 3 == 0 {
                    matcher.query_parameters =
                        vec![pb::QueryParameterMatcher { name: "x".into(), ..Default::default() }];
                }
                route
            })
            .collect();
        let table = table(routes);
        let host = table.virtual_host(b"any").unwrap();
        for path in &paths {
            let request = get(path);
            let stripped = super::matched_path(request.path(), false);
            let linear = host.routes.iter().find(|r| r.matcher.matches(&request, None, stripped, random));
            let indexed = host.route(&request, None, random);
            prop_assert_eq!(indexed.map(|r| &r.name), linear.map(|r| &r.name), "{}", path);
            if let Some(route) = indexed {
                prop_assert!(!matches!(route.matcher.path, PathMatcher::Connect));
            }
        }
    }
}
