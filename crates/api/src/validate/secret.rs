//! Rules of Kubernetes' `Secret`: what a gateway can serve with is told at once, not when the
//! gateway refuses it.
//!
//! A Secret of type `kubernetes.io/tls` must be right. Others may hold anything; what looks like a
//! certificate there has to be one. No finding repeats a value.

use super::{Checker, Validate};
use crate::certificate::{self, PairError};
use crate::secret::*;

impl Validate for Secret {
    fn validate(&self, check: &mut Checker) {
        for (part, entries) in [("data", &self.data), ("stringData", &self.string_data)] {
            check.map(part, entries, |check, name, value| {
                let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
                if name.is_empty() || !name.chars().all(allowed) {
                    check.error("a key of a Secret consists of letters, digits, '-', '_' and '.'");
                }
                if part == "data" && decode_base64(&value.0).is_none() {
                    check.error_hint("not base64", "write plain text below stringData");
                }
            });
        }
        if self.secret_type == TLS_TYPE {
            for name in ["tls.crt", "tls.key"] {
                if !self.data.contains_key(name) && !self.string_data.contains_key(name) {
                    check.missing("data", format!("a Secret of type {TLS_TYPE} needs {name}"));
                }
            }
        }
        self.pair(check);
        self.bundle(check, AUTHORITY_KEYS, certificate::check_authorities);
        self.bundle(check, REVOCATION_KEYS, certificate::check_revocations);
    }
}

impl Secret {
    /// The certificate and its key.
    fn pair(&self, check: &mut Checker) {
        for (chain_name, key_name) in CERTIFICATE_KEYS.into_iter().zip(PRIVATE_KEY_KEYS) {
            match (self.meant(chain_name), self.meant(key_name)) {
                (None, None) => {}
                (Some(chain), Some(key)) => match certificate::check_pair(&chain, &key) {
                    Ok(()) => {}
                    Err(PairError::Certificate(why)) => self.wrong(check, chain_name, why),
                    Err(PairError::Key(why)) => self.wrong(check, key_name, why),
                },
                (Some(_), None) => self.doubtful(check, chain_name, key_name),
                (None, Some(_)) => self.doubtful(check, key_name, chain_name),
            }
        }
    }

    fn bundle(
        &self,
        check: &mut Checker,
        names: [&'static str; 2],
        test: fn(&[u8]) -> Result<(), &'static str>,
    ) {
        for name in names {
            if let Some(Err(why)) = self.meant(name).map(|content| test(&content)) {
                self.wrong(check, name, why);
            }
        }
    }

    /// An entry that is meant for TLS: by the Secret's type, or by its looks.
    fn meant(&self, name: &str) -> Option<Vec<u8>> {
        let content = self.entry(name)?;
        let looks = content.windows(11).any(|window| window == b"-----BEGIN ");
        let of_type = self.secret_type == TLS_TYPE && name.starts_with("tls.");
        (looks || of_type).then_some(content)
    }

    fn wrong(&self, check: &mut Checker, name: &str, why: &str) {
        check.field(self.part(name), |check| {
            check.field(name, |check| check.error(why));
        });
    }

    fn doubtful(&self, check: &mut Checker, name: &str, other: &str) {
        if self.secret_type == TLS_TYPE || self.entry(other).is_some() {
            return;
        }
        let (part, of) = (self.part(name), format!("{name} without {other}"));
        check.field(part, |check| {
            check.field(name, |check| {
                check.warning(format!("{of}: a gateway cannot serve with this Secret"));
            });
        });
    }

    fn part(&self, name: &str) -> &'static str {
        match self.string_data.contains_key(name) {
            true => "stringData",
            false => "data",
        }
    }
}
