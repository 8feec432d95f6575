//! The authority that makes its own root, keeps it in one file, and replaces it in time.
//!
//! The file holds every generation of the root, oldest first, each as a private key and a
//! certificate in PEM. All of them are trusted. A new generation signs only after it was
//! trusted for as long as it takes to reach every workload; an old one is dropped when the last
//! certificate it signed has expired. What happens when is read from the certificates, so
//! there is no state besides them.
//!
//! Invariant: the file is complete or absent at any moment (written beside and renamed), and
//! nobody but its owner can read it.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::authority::{Authority, CLOCK_SKEW, IssueError, hexadecimal, serial};
use crate::certificate::{self, About};
use crate::key::{KeyKind, SigningKey};
use crate::pieces::{CaError, read_bounded};
use crate::spiffe::TrustDomain;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// The most generations that a file may hold.
const MAX_GENERATIONS: usize = 16;

/// How long roots live, and how one follows the other.
#[derive(Clone, Copy, Debug)]
pub struct RootLifetimes {
    /// Validity of a root. Istio's `CITADEL_SELF_SIGNED_CA_CERT_TTL`: 10 years.
    pub validity: Duration,
    /// The next root is made when this share of the validity is left, in percent. Istio's
    /// `CITADEL_SELF_SIGNED_ROOT_CERT_GRACE_PERIOD_PERCENTILE`.
    pub grace_percent: u32,
    /// How long a new root is trusted before it signs: until every workload has fetched a
    /// certificate, and with it the roots, again.
    pub distribution: Duration,
    /// How long a root is trusted after its last signature.
    pub retention: Duration,
}

impl Default for RootLifetimes {
    fn default() -> Self {
        Self {
            validity: DAY * 3650,
            grace_percent: 20,
            distribution: DAY,
            retention: DAY * 90,
        }
    }
}

/// All generations of the root.
pub(crate) struct SelfSigned {
    path: PathBuf,
    generations: Vec<Generation>,
}

struct Generation {
    key: Zeroizing<String>,
    certificate: CertificateDer<'static>,
    about: About,
}

impl Generation {
    fn make(
        kind: KeyKind,
        domain: &TrustDomain,
        validity: Duration,
        now: SystemTime,
    ) -> Result<Self, IssueError> {
        let encoding = |error: rcgen::Error| IssueError::Encoding(error.to_string());
        let key = SigningKey::generate(kind)?;
        let serial = serial()?;
        let mut params = CertificateParams::default();
        let mut name = DistinguishedName::new();
        // RFC 5280 A.1: an organization has 64 characters at most.
        if domain.as_str().len() <= 64 {
            name.push(DnType::OrganizationName, domain.as_str());
        }
        // Of its own, so that a verifier can tell two generations apart by name.
        name.push(
            DnType::CommonName,
            format!("Lateen root {}", hexadecimal(&serial[..4])),
        );
        params.distinguished_name = name;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = OffsetDateTime::from(now - CLOCK_SKEW);
        params.not_after = OffsetDateTime::from(now + validity);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate = params.self_signed(&key).map_err(encoding)?.der().clone();
        let about = About::read(&certificate)
            .ok_or_else(|| IssueError::Encoding("the new root cannot be read".to_owned()))?;
        Ok(Self {
            key: key.to_pem()?,
            certificate,
            about,
        })
    }

    fn made(&self) -> SystemTime {
        self.about.not_before + CLOCK_SKEW
    }
}

impl SelfSigned {
    /// Reads the file, or makes the first root and the file.
    pub fn open(
        path: &Path,
        kind: KeyKind,
        domain: &TrustDomain,
        lifetimes: &RootLifetimes,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let generations = match read_bounded(path) {
            Ok(content) => {
                keep_private(path).map_err(|error| at(path, "cannot be made private", &error))?;
                parse(path, &content)?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(at(path, "cannot be read", &error)),
        };
        let is_new = generations.is_empty();
        let mut own = Self {
            path: path.to_owned(),
            generations,
        };
        if is_new {
            own.add(kind, domain, lifetimes, now)?;
            tracing::info!(path = %path.display(), "made a self-signed root");
        }
        Ok(own)
    }

    /// Makes the next generation.
    pub fn add(
        &mut self,
        kind: KeyKind,
        domain: &TrustDomain,
        lifetimes: &RootLifetimes,
        now: SystemTime,
    ) -> Result<(), CaError> {
        let wrong =
            |error: IssueError| CaError::new(self.path.display().to_string(), error.to_string());
        if self.generations.len() >= MAX_GENERATIONS {
            let reason = "holds as many roots as it may; wait until old ones are no longer needed";
            return Err(CaError::new(self.path.display().to_string(), reason));
        }
        let next = Generation::make(kind, domain, lifetimes.validity, now).map_err(wrong)?;
        self.generations.push(next);
        let written = self.write();
        if written.is_err() {
            self.generations.pop();
        }
        written
    }

    /// Does what is due: makes the next root, drops old ones. True when something was done.
    pub fn advance(
        &mut self,
        kind: KeyKind,
        domain: &TrustDomain,
        lifetimes: &RootLifetimes,
        now: SystemTime,
    ) -> Result<bool, CaError> {
        let signer = self.signer(lifetimes, now);
        let signs_since = self.generations[signer].made() + lifetimes.distribution;
        let mut done = false;
        if signer > 0 && now >= signs_since + lifetimes.retention {
            let old: Vec<Generation> = self.generations.drain(..signer).collect();
            if let Err(error) = self.write() {
                self.generations.splice(..0, old);
                return Err(error);
            }
            done = true;
        }
        let is_due = self.generations.last().is_some_and(|newest| {
            let grace = lifetimes
                .validity
                .mul_f64(f64::from(lifetimes.grace_percent) / 100.0);
            now + grace >= newest.about.not_after
        });
        if is_due {
            self.add(kind, domain, lifetimes, now)?;
            tracing::info!(path = %self.path.display(), "made the next self-signed root");
            done = true;
        }
        Ok(done)
    }

    /// The newest generation that has been trusted for long enough, or that has no choice.
    pub fn signer(&self, lifetimes: &RootLifetimes, now: SystemTime) -> usize {
        let is_known = |one: &Generation| one.made() + lifetimes.distribution <= now;
        let known = self.generations.iter().rposition(is_known);
        let usable = |one: &Generation| now < one.about.not_after;
        let usable = self.generations.iter().position(usable);
        // An expired signer is worse than one that not everybody knows yet.
        known.max(usable).unwrap_or(0)
    }

    /// The authority of this moment.
    pub fn authority(
        &self,
        lifetimes: &RootLifetimes,
        now: SystemTime,
    ) -> Result<Authority, CaError> {
        let wrong = |reason: String| CaError::new(self.path.display().to_string(), reason);
        let signer = &self.generations[self.signer(lifetimes, now)];
        let key = SigningKey::from_pem(signer.key.as_bytes())
            .map_err(|reason| wrong(reason.to_owned()))?;
        let roots: Vec<_> = self
            .generations
            .iter()
            .map(|one| one.certificate.clone())
            .collect();
        Authority::new(key, &signer.certificate, Vec::new(), roots, now)
            .map_err(|error| wrong(error.to_string()))
    }

    fn write(&self) -> Result<(), CaError> {
        let size = self
            .generations
            .iter()
            .map(|one| one.key.len() + 4096)
            .sum();
        let mut content = Zeroizing::new(String::with_capacity(size));
        for one in &self.generations {
            content.push_str(&one.key);
            content.push_str(&certificate::to_pem(&one.certificate));
        }
        write_private(&self.path, content.as_bytes())
            .map_err(|error| at(&self.path, "cannot be written", &error))
    }
}

fn at(path: &Path, what: &str, error: &io::Error) -> CaError {
    CaError::new(path.display().to_string(), format!("{what}: {error}"))
}

/// Key, certificate, key, certificate...
fn parse(path: &Path, content: &[u8]) -> Result<Vec<Generation>, CaError> {
    let wrong = |reason: String| CaError::new(path.display().to_string(), reason);
    let remedy = "restore it from a backup; without it every workload has to be given a new root";
    let text = std::str::from_utf8(content).map_err(|_| wrong(format!("is damaged; {remedy}")))?;
    let certificates =
        certificate::read(content).map_err(|reason| wrong(format!("{reason}; {remedy}")))?;
    let mut keys = Vec::new();
    let mut rest = text;
    const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
    const END: &str = "-----END PRIVATE KEY-----\n";
    while let Some(start) = rest.find(BEGIN) {
        let end = rest[start..]
            .find(END)
            .ok_or_else(|| wrong(format!("is damaged; {remedy}")))?;
        let end = start + end + END.len();
        keys.push(Zeroizing::new(rest[start..end].to_owned()));
        rest = &rest[end..];
    }
    if keys.len() != certificates.len() || keys.len() > MAX_GENERATIONS {
        let (keys, certificates) = (keys.len(), certificates.len());
        return Err(wrong(format!(
            "has {keys} keys and {certificates} certificates; {remedy}"
        )));
    }
    let pairs = keys.into_iter().zip(certificates);
    pairs
        .map(|(key, certificate)| {
            let about = About::read(&certificate)
                .ok_or_else(|| wrong(format!("has a certificate that cannot be read; {remedy}")))?;
            let own =
                SigningKey::from_pem(key.as_bytes()).map_err(|reason| wrong(reason.to_owned()))?;
            if rcgen::PublicKeyData::der_bytes(&own) != about.public_key {
                return Err(wrong(format!(
                    "has a key that is not that of its certificate; {remedy}"
                )));
            }
            Ok(Generation {
                key,
                certificate,
                about,
            })
        })
        .collect()
}

/// Writes a file that only its owner can read, completely or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // What a killed process left behind.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    fs::File::open(directory)?.sync_all()
}

/// Takes away what others may do with a file.
pub(crate) fn keep_private(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "others could read a private key; its mode is 600 now");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}
