//! The parts of an `http` or `https` URI that a fetch needs.

/// Where to connect, and what to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Uri {
    pub https: bool,
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// As the `Host` header has it.
    pub authority: String,
    /// Path and query.
    pub target: String,
}

impl Uri {
    /// Reads a URI. Those with credentials are refused, the answer would not say whose they are.
    pub fn parse(text: &str) -> Result<Uri, String> {
        let bad = |reason: &str| format!("{text:?} {reason}");
        let parsed: axum::http::Uri = text.parse().map_err(|_| bad("is not a URI"))?;
        let https = match parsed.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad("is neither http nor https")),
        };
        let authority = parsed.authority().ok_or_else(|| bad("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("holds credentials"));
        }
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let default = if https { 443 } else { 80 };
        let target = parsed
            .path_and_query()
            .map_or("/", |target| target.as_str());
        Ok(Uri {
            https,
            host: bare.unwrap_or(host).to_owned(),
            port: authority.port_u16().unwrap_or(default),
            authority: authority.to_string(),
            target: target.to_owned(),
        })
    }

    /// Where a `location` leads from here. From https nothing leads to http.
    pub fn redirected(&self, location: &str) -> Result<Uri, String> {
        let next = match location.starts_with('/') && !location.starts_with("//") {
            true => {
                let scheme = if self.https { "https" } else { "http" };
                Uri::parse(&format!("{scheme}://{}{location}", self.authority))?
            }
            false => Uri::parse(location)?,
        };
        match self.https && !next.https {
            true => Err(format!("a redirect to {location:?} gives up TLS")),
            false => Ok(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_uris_and_where_redirects_lead() {
        let parts = |uri: Uri| (uri.https, uri.host, uri.port, uri.authority, uri.target);
        let check = |text: &str, expect: (bool, &str, u16, &str, &str)| {
            let (https, host, port, authority, target) = expect;
            let expect = (https, host.into(), port, authority.into(), target.into());
            assert_eq!(parts(Uri::parse(text).unwrap()), expect, "{text}");
        };
        check("http://a.test", (false, "a.test", 80, "a.test", "/"));
        check(
            "https://a.test/k?x=1",
            (true, "a.test", 443, "a.test", "/k?x=1"),
        );
        check(
            "https://[::1]:8443/k",
            (true, "::1", 8443, "[::1]:8443", "/k"),
        );
        for wrong in [
            "",
            "a.test/x",
            "ftp://a.test",
            "https://u@a.test",
            "https://",
        ] {
            assert!(Uri::parse(wrong).is_err(), "{wrong}");
        }
        let https = Uri::parse("https://a.test:1/x").unwrap();
        assert_eq!(https.redirected("/y").unwrap().authority, "a.test:1");
        assert!(https.redirected("http://a.test/y").is_err());
        let http = Uri::parse("http://a.test/x").unwrap();
        assert_eq!(http.redirected("https://b.test/y").unwrap().host, "b.test");
    }
}
