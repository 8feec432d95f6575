//! Who may talk to the API: programs on this machine, not web pages.
//!
//! The API has no authentication and listens on loopback. A web page in a browser on the same
//! machine could still reach it, by DNS rebinding (its own name resolved to 127.0.0.1) or by a
//! plain cross-origin request. Browsers always say so, in `Host` and `Origin`.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::status::ApiError;

pub(crate) async fn guard(request: Request, next: Next) -> Response {
    match check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(reason) => ApiError::new(StatusCode::FORBIDDEN, "Forbidden", reason).into_response(),
    }
}

fn check(uri: &Uri, headers: &HeaderMap) -> Result<(), String> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = uri
        .authority()
        .map(|a| a.as_str())
        .or_else(|| text(header::HOST));
    let host = host.unwrap_or_default();
    if !is_address_or_localhost(host) {
        return Err(format!(
            "the Host {host:?} is refused: this API answers to IP addresses and localhost only"
        ));
    }
    match text(header::ORIGIN) {
        Some(origin) if origin.strip_prefix("http://") != Some(host) => Err(format!(
            "the Origin {origin:?} is refused: this API does not answer web pages of others"
        )),
        _ => Ok(()),
    }
}

fn is_address_or_localhost(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_programs_pass() {
        let check = |host: &str, origin: Option<&str>, expect: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            let uri = Uri::from_static("/api");
            assert_eq!(
                super::check(&uri, &headers).is_ok(),
                expect,
                "{host} {origin:?}"
            );
        };
        check("127.0.0.1:15088", None, true);
        check("localhost:15088", None, true);
        check("[::1]:15088", None, true);
        check("127.0.0.1:15088", Some("http://127.0.0.1:15088"), true);
        check("attacker.example:15088", None, false);
        check("localhost.attacker.example", None, false);
        check("127.0.0.1:15088", Some("http://attacker.example"), false);
        check("127.0.0.1:15088", Some("null"), false);
        check("127.0.0.1:15088", Some("http://127.0.0.1:8080"), false);
        check("", None, false);
    }
}
