//! Whom the control plane believes, and what it signs: the certificate authority of the mesh, the
//! issuers of workload tokens, the trust domain.
//!
//! The authority is that of `--ca-dir`, else that of the Secret `cacerts` in the root namespace,
//! else that of a Secret `istio-ca-secret` that came from elsewhere (Istio's own root, brought along),
//! else a root of its own in the data directory.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use base64::Engine as _;
use lateen_identity::token::{CA_AUDIENCE, Proof, TokenIssuer, TokenVerifier, TrustedIssuer};
use lateen_identity::{Authority, Ca, CaError, CaOptions, Pieces, SpiffeId, TrustDomain};
use lateen_store::{ObjectKey, Stored};
use zeroize::Zeroizing;

use crate::error::ControlError;
use crate::mesh::Mesh;
use crate::options::Options;

/// Who issues tokens on a machine without Kubernetes: the control plane itself.
const LOCAL_ISSUER: &str = "https://lateen.istio-system.svc";

/// The Secrets that may hold the authority, the one that counts first; the second is where Istio
/// keeps a root that it made itself.
const SECRETS: [&str; 2] = ["cacerts", OWN_SECRET];

/// Where Istio keeps a root that it made itself. Ours is in a file, and shown under this name.
pub(crate) const OWN_SECRET: &str = "istio-ca-secret";

/// The most bytes of a key set that is read from a file.
const MAX_KEY_SET: u64 = 1 << 20;

/// The roots of trust of a control plane.
pub(crate) struct Trust {
    ca: Ca,
    tokens: TokenIssuer,
    verifier: TokenVerifier,
    mesh: Arc<Mesh>,
    /// The last complaint, which is not repeated.
    complaint: Mutex<String>,
}

impl Trust {
    /// Opens or makes the authority and the key for tokens. Blocks on the disk.
    pub fn open(options: &Options, mesh: Arc<Mesh>) -> Result<Self, ControlError> {
        let wrong = |error: CaError| ControlError::Authority(error);
        let tokens = TokenIssuer::open(&options.data_dir.join("ca/token-key.pem"), LOCAL_ISSUER);
        let tokens = tokens.map_err(wrong)?;
        let mut issuers = vec![tokens.trusted()];
        for (name, file) in &options.token_issuers {
            issuers.push(key_set(name, file).map_err(wrong)?);
        }
        let ca = CaOptions {
            plugged: options.plugged_ca.clone(),
            trust_domain: trust_domain(&mesh),
            key_kind: options.ca_key,
            lifetimes: options.workload_lifetimes,
            roots: options.root_lifetimes,
            ..CaOptions::new(&options.data_dir)
        };
        let secret = in_secrets(&mesh).map_err(wrong)?;
        let ca = Ca::open(ca, secret, SystemTime::now()).map_err(wrong)?;
        Ok(Self {
            ca,
            tokens,
            verifier: TokenVerifier::new(issuers),
            mesh,
            complaint: Mutex::default(),
        })
    }

    pub fn authority(&self) -> Arc<Authority> {
        self.ca.current()
    }

    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    pub fn tokens(&self) -> &TokenIssuer {
        &self.tokens
    }

    /// The trust domain that certificates are issued for.
    pub fn domain(&self) -> TrustDomain {
        trust_domain(&self.mesh)
    }

    /// Whether certificates may be issued: what the mesh is called, and who is of it, is known.
    pub fn is_known(&self) -> Result<(), String> {
        self.mesh.is_known()
    }

    /// Whether a workload of this trust domain may have configuration: the mesh's own one, or one
    /// that the mesh calls its alias.
    pub fn knows(&self, domain: &TrustDomain) -> bool {
        let snapshot = self.mesh.snapshot();
        snapshot
            .settings
            .trust_domains()
            .any(|known| known == domain.as_str())
    }

    /// The workload that a token is for, and until when the token says so.
    pub fn bearer(&self, token: &str) -> Result<(SpiffeId, SystemTime), String> {
        let proof = self.verifier.verify(token, CA_AUDIENCE, SystemTime::now());
        let Proof { subject, expires } = proof.map_err(|error| error.to_string())?;
        let id = subject.identity(self.domain());
        Ok((id.map_err(|error| error.to_string())?, expires))
    }

    /// The namespace of the control plane.
    pub fn root_namespace(&self) -> String {
        self.mesh.snapshot().settings.root_namespace.clone()
    }

    /// Follows the files, the Secret and the clock. Blocks on the disk.
    pub fn refresh(&self) {
        let now = SystemTime::now();
        let from_secret = in_secrets(&self.mesh).and_then(|pieces| match pieces {
            Some(pieces) => self.ca.plug_in(pieces, now),
            None => Ok(false),
        });
        let followed = match from_secret {
            Ok(changed) => self.ca.refresh(now).map(|also| changed || also),
            Err(error) => Err(error),
        };
        match followed {
            Ok(changed) => {
                self.complain(String::new());
                if changed {
                    tracing::info!(origin = ?self.ca.origin(), "the authority of the mesh has changed");
                }
            }
            Err(error) => self.complain(error.to_string()),
        }
    }

    fn complain(&self, about: String) {
        let mut last = self
            .complaint
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if *last != about {
            if !about.is_empty() {
                tracing::error!(reason = about, "the authority of the mesh stays as it was");
            }
            *last = about;
        }
    }
}

/// What a mesh calls itself was checked when it was written; a name that is none after all is not
/// replaced by another.
fn trust_domain(mesh: &Mesh) -> TrustDomain {
    let snapshot = mesh.snapshot();
    let name = &snapshot.settings.trust_domain;
    TrustDomain::new(name).unwrap_or_else(|error| {
        tracing::error!(%error, "the mesh's trustDomain is not usable; cluster.local is used");
        TrustDomain::default()
    })
}

fn key_set(name: &str, file: &Path) -> Result<TrustedIssuer, CaError> {
    use std::io::Read as _;
    let wrong = |reason: String| CaError {
        file: file.display().to_string(),
        reason,
    };
    let mut text = String::new();
    let read = std::fs::File::open(file)
        .and_then(|file| file.take(MAX_KEY_SET + 1).read_to_string(&mut text));
    read.map_err(|error| wrong(format!("cannot be read: {error}")))?;
    TrustedIssuer::from_jwks(name, &text).map_err(|error| wrong(error.to_string()))
}

/// The authority that stands in a Secret, if one does.
fn in_secrets(mesh: &Mesh) -> Result<Option<Pieces>, CaError> {
    let namespace = mesh.snapshot().settings.root_namespace.clone();
    for name in SECRETS {
        let key = ObjectKey::new("", "Secret", &namespace, name);
        let Some(secret) = mesh.store().get(&key) else {
            continue;
        };
        let place = format!("Secret {namespace}/{name}");
        // What this API showed, saved and applied again, is no authority: it never had a key.
        if name == OWN_SECRET && !has_key(&secret, &place)? {
            continue;
        }
        // In Istio's own Secret the authority is the root.
        let has_root = value(&secret, &place, "root-cert.pem")?.is_some();
        let pieces = Pieces::find(&place, |wanted| {
            let wanted = match wanted {
                "root-cert.pem" if !has_root && name == OWN_SECRET => "ca-cert.pem",
                wanted => wanted,
            };
            value(&secret, &place, wanted)
        })?;
        if pieces.is_some() {
            return Ok(pieces);
        }
    }
    Ok(None)
}

fn has_key(secret: &Stored, place: &str) -> Result<bool, CaError> {
    for key in ["ca-key.pem", "tls.key"] {
        if value(secret, place, key)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn value(secret: &Stored, place: &str, key: &str) -> Result<Option<Zeroizing<Vec<u8>>>, CaError> {
    let document = secret.document();
    // An empty value stands for none, as in the Secret that Istio's documentation makes first.
    let Some(text) = document["data"][key]
        .as_str()
        .filter(|text| !text.is_empty())
    else {
        return Ok(None);
    };
    let decoded = base64::engine::general_purpose::STANDARD.decode(text);
    let decoded = decoded.map_err(|_| CaError {
        file: format!("{place}/{key}"),
        reason: "is no base64".to_owned(),
    })?;
    Ok(Some(Zeroizing::new(decoded)))
}
