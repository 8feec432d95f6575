//! Headers added, changed and removed on the way, as Envoy's connection manager and router do.
//!
//! Pure changes of heads: no waiting, no sockets.

use super::exchange::Exchange;
use super::filters;
use super::head::{RequestHead, ResponseHead, Version};
use super::headers::{HeaderBlock, Known, list};
use super::request::Routed;
use super::trailers::note_removed;
use crate::http1::encode::Decimal;
use lateen_proxy_config::{
    AppendAction, ForwardClientCert, HeaderMutations, HeaderOps, HeaderTemplate,
    HttpConnectionManager, ServerHeader, StripPort, Underscores,
};
use lateen_telemetry::format::Missing;
use std::net::IpAddr;
use std::time::Duration;

/// Cuts port and final dot off the authority where configured.
pub(super) fn clean_host(head: &mut RequestHead, manager: &HttpConnectionManager, port: u16) {
    if manager.strip_port == StripPort::Keep && !manager.strip_trailing_host_dot {
        return;
    }
    let authority = head.authority_bytes();
    let (mut host, mut of_port) = split_port(authority);
    let matching = of_port == format!(":{port}").as_bytes();
    if manager.strip_port == StripPort::Any
        || (manager.strip_port == StripPort::Matching && matching)
    {
        of_port = b"";
    }
    if manager.strip_trailing_host_dot {
        host = host.strip_suffix(b".").unwrap_or(host);
    }
    let clean = [host, of_port].concat();
    if clean != authority {
        head.headers.set(Known::Host, &clean);
    }
}

/// Host and `:port`; a bare IPv6 address has no port.
pub(super) fn split_port(authority: &[u8]) -> (&[u8], &[u8]) {
    let Some(colon) = authority.iter().rposition(|b| *b == b':') else {
        return (authority, b"");
    };
    let (host, port) = authority.split_at(colon);
    let digits = port.len() > 1 && port[1..].iter().all(u8::is_ascii_digit);
    let bare_v6 = host.contains(&b':') && !host.ends_with(b"]");
    if digits && !bare_v6 {
        (host, port)
    } else {
        (authority, b"")
    }
}

/// Applies the rule for names with `_`; false: the request is refused.
pub(super) fn check_underscores(headers: &mut HeaderBlock, rule: Underscores) -> bool {
    let bad = |name: &[u8]| name.contains(&b'_');
    match rule {
        Underscores::Allow => true,
        Underscores::Reject => !headers.iter().any(|(_, name, _)| bad(name)),
        Underscores::Drop => {
            headers.remove_if(|_, name, _| bad(name));
            true
        }
    }
}

/// What the connection manager does to a request before routing.
pub(super) fn request_from_client(x: &mut Exchange) {
    let service = x.service.clone();
    let manager = &*service.manager;
    remove_hop_by_hop(&mut x.request.headers, x.request.upgrade);
    remove_internal(&mut x.request.headers, manager.use_remote_address);
    forwarded_for(x, manager);
    request_id(x, manager);
    client_certificate(x, manager);
    if !manager.via.is_empty() {
        append_list(&mut x.request.headers, Known::Via, manager.via.as_bytes());
    }
}

/// What the next proxy, or the application, hears of the client's certificate.
fn client_certificate(x: &mut Exchange, manager: &HttpConnectionManager) {
    let conn = x.conn.clone();
    let headers = &mut x.request.headers;
    let rule = manager.forward_client_cert;
    if rule == ForwardClientCert::AlwaysForwardOnly {
        return;
    }
    // Without a certificate the connection vouches for nobody.
    let certificate = conn
        .tls()
        .and_then(|tls| Some((tls, tls.certificate.as_deref()?)));
    let Some((tls, certificate)) = certificate else {
        return headers.remove(Known::XForwardedClientCert);
    };
    let element = |details| super::client_cert::element(tls, certificate, details);
    match rule {
        ForwardClientCert::Sanitize => headers.remove(Known::XForwardedClientCert),
        ForwardClientCert::AppendForward => {
            let element = element(manager.client_cert_details);
            append_list(headers, Known::XForwardedClientCert, element.as_bytes());
        }
        ForwardClientCert::SanitizeSet => {
            let element = element(manager.client_cert_details);
            headers.set(Known::XForwardedClientCert, element.as_bytes());
        }
        ForwardClientCert::ForwardOnly | ForwardClientCert::AlwaysForwardOnly => {}
    }
}

/// Connection-level headers end here (RFC 9110 section 7.6.1).
fn remove_hop_by_hop(headers: &mut HeaderBlock, upgrade: bool) {
    remove_nominated(headers);
    headers.remove_if(|known, _, value| match known {
        Known::Connection
        | Known::KeepAlive
        | Known::ProxyConnection
        | Known::TransferEncoding
        | Known::Http2Settings => true,
        Known::Upgrade => !upgrade,
        // Only the willingness to take trailers is end to end.
        Known::Te => !list(value).any(|token| token.eq_ignore_ascii_case(b"trailers")),
        _ => false,
    });
    if headers.get(Known::Te).is_some_and(|te| te != b"trailers") {
        headers.set(Known::Te, b"trailers");
    }
}

/// Headers that `connection` names end here too, but not those that the proxies themselves vouch
/// for: a client must not be able to have them removed.
fn remove_nominated(headers: &mut HeaderBlock) {
    let Some(value) = headers.get(Known::Connection) else {
        return;
    };
    if value.eq_ignore_ascii_case(b"close") || value.eq_ignore_ascii_case(b"keep-alive") {
        return;
    }
    let values: Vec<Vec<u8>> = headers
        .all(Known::Connection)
        .flat_map(list)
        .map(<[u8]>::to_vec)
        .collect();
    for name in values {
        match Known::of(&name) {
            Known::Other | Known::Via | Known::Cookie | Known::Trailer => {
                headers.remove_name(&name);
            }
            _ => {}
        }
    }
}

/// `x-envoy-*` headers that only a trusted proxy may send. No address is internal unless it is
/// configured to be (Envoy since 1.33), so they never come from one.
fn remove_internal(headers: &mut HeaderBlock, edge: bool) {
    headers.remove_if(|known, name, _| match known {
        Known::EnvoyInternal
        | Known::EnvoyRetryOn
        | Known::EnvoyRetryGrpcOn
        | Known::EnvoyMaxRetries
        | Known::EnvoyRqTimeout
        | Known::EnvoyRqPerTryTimeout
        | Known::EnvoyExpectedTimeout
        | Known::EnvoyAltResponse
        | Known::EnvoyRetriableStatusCodes
        | Known::EnvoyRetriableHeaderNames => true,
        Known::EnvoyDecorator
        | Known::EnvoyExternalAddress
        | Known::EnvoyOriginalHost
        | Known::EnvoyOriginalPath => edge,
        Known::Other => {
            INTERNAL.iter().any(|own| name.eq_ignore_ascii_case(own))
                || (edge && OF_THE_EDGE.iter().any(|own| name.eq_ignore_ascii_case(own)))
        }
        _ => false,
    });
}

/// What [`remove_internal`] removes besides the names that have an id.
const INTERNAL: [&[u8]; 5] = [
    b"x-envoy-force-trace",
    b"x-envoy-hedge-on-per-try-timeout",
    b"x-envoy-ip-tags",
    b"x-envoy-upstream-alt-stat-name",
    b"x-envoy-upstream-stream-duration-ms",
];

/// What it removes where the mesh begins.
const OF_THE_EDGE: [&[u8]; 2] = [
    b"x-envoy-downstream-service-cluster",
    b"x-envoy-downstream-service-node",
];

fn forwarded_for(x: &mut Exchange, manager: &HttpConnectionManager) {
    let headers = &mut x.request.headers;
    let scheme: &[u8] = if x.request.https { b"https" } else { b"http" };
    if manager.use_remote_address {
        let hops = manager.xff_num_trusted_hops.checked_sub(1);
        x.remote = hops.and_then(|hops| forwarded_address(headers, hops));
        let client = x.remote.unwrap_or_else(|| x.conn.peer.ip()).to_canonical();
        let client = client.to_string();
        headers.set(Known::EnvoyExternalAddress, client.as_bytes());
        if !manager.skip_xff_append {
            append_address(headers, x.conn.peer.ip());
        }
        if manager.xff_num_trusted_hops == 0 || !headers.has(Known::XForwardedProto) {
            headers.set(Known::XForwardedProto, scheme);
        }
    } else {
        x.remote = forwarded_address(headers, manager.xff_num_trusted_hops);
        if !headers.has(Known::XForwardedProto) {
            headers.push(Known::XForwardedProto, scheme);
        }
    }
    if manager.append_x_forwarded_port {
        headers.set(
            Known::XForwardedPort,
            Decimal::new(u64::from(x.conn.local.port())).as_bytes(),
        );
    }
    let forwarded_https = headers
        .get(Known::XForwardedProto)
        .is_some_and(|p| p.eq_ignore_ascii_case(b"https"));
    match manager.scheme_override.as_deref() {
        Some(scheme) => x.request.https = scheme == "https",
        None if x.request.version != Version::Http2 => x.request.https |= forwarded_https,
        None => {}
    }
}

/// The address in `x-forwarded-for` with `after` others behind it; none when there is no such
/// address. An empty member counts, as in Envoy (`Utility::getLastAddressFromXFF`).
fn forwarded_address(headers: &HeaderBlock, after: u32) -> Option<IpAddr> {
    if !headers.has(Known::XForwardedFor) {
        return None;
    }
    let all = headers.joined(Known::XForwardedFor.name().as_bytes())?;
    let member = all
        .rsplit(|b| *b == b',')
        .nth(usize::try_from(after).ok()?)?;
    std::str::from_utf8(member.trim_ascii()).ok()?.parse().ok()
}

fn append_address(headers: &mut HeaderBlock, address: IpAddr) {
    append_list(
        headers,
        Known::XForwardedFor,
        address.to_canonical().to_string().as_bytes(),
    );
}

/// Appends a member to a list header, without space as Envoy does.
fn append_list(headers: &mut HeaderBlock, known: Known, member: &[u8]) {
    match headers.joined(known.name().as_bytes()) {
        None => headers.push(known, member),
        Some(have) if have.is_empty() => headers.set(known, member),
        Some(have) => {
            let value = [have.as_ref(), b",", member].concat();
            headers.set(known, &value);
        }
    }
}

fn request_id(x: &mut Exchange, manager: &HttpConnectionManager) {
    let keep = !manager.use_remote_address || manager.preserve_external_request_id;
    if !manager.generate_request_id || (keep && x.request.headers.has(Known::XRequestId)) {
        return;
    }
    let random = (u128::from(x.worker.random()) << 64) | u128::from(x.worker.random());
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let id = uuid::Builder::from_u128(random)
        .with_variant(uuid::Variant::RFC4122)
        .with_version(uuid::Version::Random)
        .into_uuid();
    let id = id.hyphenated().encode_lower(&mut text);
    x.request.headers.set(Known::XRequestId, id.as_bytes());
}

/// What the router adds to a request that is forwarded, before the first try.
pub(super) fn request_to_upstream(
    x: &mut Exchange,
    routed: Routed<'_>,
    cluster_ops: Option<&HeaderOps>,
    timeout: Option<Duration>,
) {
    if !x.service.router.suppress_envoy_headers
        && let Some(timeout) = timeout
    {
        x.request.headers.set(
            Known::EnvoyExpectedTimeout,
            Decimal::new(timeout.as_millis() as u64).as_bytes(),
        );
    }
    for ops in levels(routed, cluster_ops).into_iter().flatten() {
        if !ops.request.is_empty() {
            apply_request(x, routed, &ops.request);
            note_removed(x, ops.request.remove.iter().map(|name| &**name));
        }
    }
}

/// The levels of header operations in the order they are applied: the most specific first, unless
/// the table says that the most specific wins and so comes last.
fn levels<'a>(routed: Routed<'a>, cluster: Option<&'a HeaderOps>) -> [Option<&'a HeaderOps>; 4] {
    let mut levels = [
        cluster,
        Some(&routed.route.headers),
        Some(&routed.host.headers),
        Some(&routed.table.headers),
    ];
    if routed.table.most_specific_header_mutations_wins {
        levels.reverse();
    }
    levels
}

fn apply_request(x: &mut Exchange, routed: Routed<'_>, ops: &HeaderMutations) {
    for add in &ops.add {
        let mut rendered = Vec::new();
        let value = match &add.value {
            HeaderTemplate::Literal(value) => &value[..],
            HeaderTemplate::Format(format) => {
                format.render(&x.facts(Some(routed)), Missing::Empty, &mut rendered);
                &rendered
            }
        };
        apply_one(
            &mut x.request.headers,
            &add.name,
            value,
            add.action,
            add.keep_empty_value,
        );
    }
    ops.remove
        .iter()
        .for_each(|name| remove_unless_host(&mut x.request.headers, name));
}

fn remove_unless_host(headers: &mut HeaderBlock, name: &str) {
    // A request without an authority cannot be sent; Envoy refuses to remove it too.
    if name != "host" {
        headers.remove_name(name.as_bytes());
    }
}

fn apply_one(
    headers: &mut HeaderBlock,
    name: &str,
    value: &[u8],
    action: AppendAction,
    keep_empty: bool,
) {
    if (value.is_empty() && !keep_empty) || !super::headers::is_value(value) {
        return;
    }
    let name = name
        .strip_prefix(":authority")
        .map_or(name, |_| "host")
        .as_bytes();
    let exists = headers.get_name(name).is_some();
    match action {
        // There is one authority.
        _ if name == b"host" => headers.set(Known::Host, value),
        AppendAction::Append => headers.push_name(name, value),
        AppendAction::AddIfAbsent if exists => {}
        AppendAction::AddIfAbsent => headers.push_name(name, value),
        AppendAction::OverwriteIfExists if !exists => {}
        AppendAction::Overwrite | AppendAction::OverwriteIfExists => {
            headers.set_name(name, value);
        }
    }
}

/// What router and connection manager do to a response before it goes to the client.
pub(super) fn response_to_client(
    x: &mut Exchange,
    routed: Option<Routed<'_>>,
    head: &mut ResponseHead,
) {
    let tunnel = head.status == 101;
    remove_hop_by_hop(&mut head.headers, tunnel);
    if let Some(routed) = routed {
        let cluster = x.cluster_ops(routed);
        for ops in levels(routed, cluster).into_iter().flatten() {
            if !ops.response.is_empty() {
                apply_response(x, routed, &ops.response, head);
            }
        }
        if routed.host.include_attempt_count_in_response && x.tries > 0 {
            head.headers.set(
                Known::EnvoyAttemptCount,
                Decimal::new(u64::from(x.tries)).as_bytes(),
            );
        }
        filters::response(x, routed, head);
    }
    let manager = &x.service.manager;
    if !head.headers.has(Known::Date) {
        x.worker
            .with_date(x.started, |date| head.headers.push(Known::Date, date));
    }
    match manager.server_header {
        ServerHeader::Overwrite => head
            .headers
            .set(Known::Server, manager.server_name.as_bytes()),
        ServerHeader::AppendIfAbsent if !head.headers.has(Known::Server) => {
            head.headers
                .push(Known::Server, manager.server_name.as_bytes());
        }
        ServerHeader::AppendIfAbsent | ServerHeader::PassThrough => {}
    }
    if manager.always_set_request_id_in_response
        && let Some(id) = x.request.headers.get(Known::XRequestId)
    {
        head.headers.set(Known::XRequestId, id);
    }
    if !manager.via.is_empty() {
        append_list(&mut head.headers, Known::Via, manager.via.as_bytes());
    }
}

fn apply_response(
    x: &mut Exchange,
    routed: Routed<'_>,
    ops: &HeaderMutations,
    head: &mut ResponseHead,
) {
    for add in &ops.add {
        let mut rendered = Vec::new();
        let value = match &add.value {
            HeaderTemplate::Literal(value) => &value[..],
            HeaderTemplate::Format(format) => {
                let facts = x.facts(Some(routed)).with_response(head);
                format.render(&facts, Missing::Empty, &mut rendered);
                &rendered
            }
        };
        apply_one(
            &mut head.headers,
            &add.name,
            value,
            add.action,
            add.keep_empty_value,
        );
    }
    for name in &ops.remove {
        head.headers.remove_name(name.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_told_from_parts_of_addresses() {
        for (authority, host, port) in [
            ("a", "a", ""),
            ("a:80", "a", ":80"),
            ("a:", "a:", ""),
            ("[::1]", "[::1]", ""),
            ("[::1]:80", "[::1]", ":80"),
            ("::1", "::1", ""),
        ] {
            let expect = (host.as_bytes(), port.as_bytes());
            assert_eq!(split_port(authority.as_bytes()), expect, "{authority}");
        }
    }

    #[test]
    fn a_client_cannot_have_the_proxys_own_headers_removed() {
        let mut headers = HeaderBlock::default();
        for (name, value) in [
            ("connection", "x-secret, X-Forwarded-For, host"),
            ("x-secret", "1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("host", "h"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
        ] {
            headers.push_name(name.as_bytes(), value.as_bytes());
        }
        remove_hop_by_hop(&mut headers, false);
        let left: Vec<_> = headers
            .iter()
            .map(|(_, n, _)| String::from_utf8_lossy(n).into_owned())
            .collect();
        assert_eq!(left, ["x-forwarded-for", "host"]);
    }

    #[test]
    fn the_actions_on_an_existing_header() {
        let check = |action, exists: bool, expect: &str| {
            let mut headers = HeaderBlock::default();
            if exists {
                headers.push_name(b"a", b"1");
            }
            apply_one(&mut headers, "a", b"2", action, false);
            let joined = headers.joined(b"a").unwrap_or_default().into_owned();
            assert_eq!(
                String::from_utf8(joined).unwrap(),
                expect,
                "{action:?} {exists}"
            );
        };
        check(AppendAction::Append, true, "1,2");
        check(AppendAction::AddIfAbsent, true, "1");
        check(AppendAction::AddIfAbsent, false, "2");
        check(AppendAction::Overwrite, true, "2");
        check(AppendAction::Overwrite, false, "2");
        check(AppendAction::OverwriteIfExists, true, "2");
        check(AppendAction::OverwriteIfExists, false, "");
    }
}
