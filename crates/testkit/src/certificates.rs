//! Authorities and certificates made on the spot, and the programs that try them: curl and openssl.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::process::Command;

use crate::child::Child;
use crate::ports;
use crate::tls_client::Limited;

/// An authority that signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub pem: String,
    /// The key that it signs with, in PEM.
    pub key: String,
    /// What peers that trust only the root must be shown beside what it issues, in PEM: nothing of
    /// a root.
    pub above: String,
    /// The certificate that others trust, in PEM.
    pub root: String,
    /// Of its own certificate.
    pub serial: u64,
}

/// A certificate chain and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub chain: String,
    pub key: String,
    pub serial: u64,
}

/// Serial numbers, for lists of revoked certificates.
static SERIAL: AtomicU64 = AtomicU64::new(1000);

impl Authority {
    pub fn new(name: &str) -> Self {
        let (params, serial) = Self::params(name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority {
            root: pem.clone(),
            pem,
            key: key.serialize_pem(),
            above: String::new(),
            serial,
            issuer: Issuer::new(params, key),
        }
    }

    /// One whose certificate this one signs.
    pub fn intermediate(&self, name: &str) -> Self {
        let (params, serial) = Self::params(name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer);
        let pem = certificate.expect("a certificate").pem();
        Authority {
            above: format!("{pem}{}", self.above),
            pem,
            key: key.serialize_pem(),
            root: self.root.clone(),
            serial,
            issuer: Issuer::new(params, key),
        }
    }

    fn params(name: &str) -> (CertificateParams, u64) {
        let serial = SERIAL.fetch_add(1, Relaxed);
        let mut params = named(name, &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(SerialNumber::from(serial));
        (params, serial)
    }

    /// A certificate for who made the request (in PEM), valid from an hour ago until `lifetime`
    /// from now, with the names that were asked for.
    pub fn sign(&self, request: &str, lifetime: std::time::Duration) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(request).expect("a request");
        let now = std::time::SystemTime::now();
        request.params.not_before = (now - std::time::Duration::from_secs(3600)).into();
        request.params.not_after = (now + lifetime).into();
        request.params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = request.signed_by(&self.issuer);
        certificate.expect("a certificate").pem()
    }

    /// A certificate for servers and clients with the common name and DNS names (or URIs).
    pub fn issue(&self, name: &str, also: &[&str]) -> Pair {
        self.certify(named(name, also), KeyPair::generate().expect("a key"))
    }

    /// The same with an RSA key.
    pub fn issue_rsa(&self, name: &str, also: &[&str]) -> Pair {
        let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256);
        self.certify(named(name, also), key.expect("a key"))
    }

    /// As [`Authority::issue`], but the certificate's time was over long ago.
    pub fn issue_expired(&self, name: &str, also: &[&str]) -> Pair {
        let mut params = named(name, also);
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
        self.certify(params, KeyPair::generate().expect("a key"))
    }

    fn certify(&self, mut params: CertificateParams, key: KeyPair) -> Pair {
        let serial = SERIAL.fetch_add(1, Relaxed);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.serial_number = Some(SerialNumber::from(serial));
        let certificate = params.signed_by(&key, &self.issuer);
        Pair {
            chain: certificate.expect("a certificate").pem() + &self.above,
            key: key.serialize_pem(),
            serial,
        }
    }

    /// A list of these certificates as revoked, in PEM.
    pub fn revokes(&self, pairs: &[&Pair]) -> String {
        let serials: Vec<u64> = pairs.iter().map(|pair| pair.serial).collect();
        self.revokes_serials(&serials)
    }

    /// The same by serial numbers.
    pub fn revokes_serials(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2124, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("a list");
        list.pem().expect("a list in PEM")
    }
}

fn named(name: &str, also: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    let names = also.iter().map(|name| {
        let text = (*name).try_into().expect("ASCII");
        match name.contains("://") {
            true => SanType::URI(text),
            false => SanType::DnsName(text),
        }
    });
    params.subject_alt_names = names.collect();
    params
}

impl Pair {
    /// How a server that has this certificate takes connections. With `clients` it wants theirs to
    /// be signed by that authority.
    pub fn server(&self, clients: Option<&Authority>, alpn: &[&str]) -> Arc<ServerConfig> {
        self.server_that_asks(clients, false, alpn)
    }

    /// The same for clients with a certificate of that authority and for clients without any.
    pub fn server_for_any(&self, clients: &Authority, alpn: &[&str]) -> Arc<ServerConfig> {
        self.server_that_asks(Some(clients), true, alpn)
    }

    /// How a server takes connections that can do no more than this.
    pub fn server_limited(&self, limited: Limited<'_>) -> Arc<ServerConfig> {
        let builder = ServerConfig::builder_with_provider(limited.provider())
            .with_protocol_versions(&limited.versions())
            .expect("versions that the provider has")
            .with_no_client_auth();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("a key");
        let config = builder.with_single_cert(certificates(&self.chain), key);
        Arc::new(config.expect("a certificate with its key"))
    }

    fn server_that_asks(
        &self,
        clients: Option<&Authority>,
        optional: bool,
        alpn: &[&str],
    ) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder.expect("versions that the provider has");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates(&authority.pem));
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match optional {
                    true => verifier.allow_unauthenticated(),
                    false => verifier,
                };
                builder.with_client_cert_verifier(verifier.build().expect("an authority"))
            }
        };
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("a key");
        let config = builder.with_single_cert(certificates(&self.chain), key);
        let mut config = config.expect("a certificate with its key");
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .expect("certificates in PEM")
}

/// Writes a file and says where. It is put in place whole: a program that reads it while it is
/// written again sees the old content or the new.
pub fn file(directory: &Path, name: &str, content: &str) -> PathBuf {
    let path = directory.join(name);
    let mut whole = tempfile::NamedTempFile::new_in(directory).expect("a file can be made");
    std::io::Write::write_all(&mut whole, content.as_bytes()).expect("a file can be written");
    whole.persist(&path).expect("a file can be put in place");
    path
}

/// What a program said and whether it ended well.
#[derive(Clone, Debug)]
pub struct Said {
    pub success: bool,
    pub text: String,
}

/// Runs a program without input to its end, for 20 s at most.
pub async fn run(program: &str, arguments: &[&str]) -> Said {
    let mut command = Command::new("timeout");
    command
        .arg("20")
        .arg(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = command
        .output()
        .await
        .expect("timeout and the program are there");
    let text = [output.stdout, output.stderr].concat();
    Said {
        success: output.status.success(),
        text: String::from_utf8_lossy(&text).into_owned(),
    }
}

/// `openssl s_client` to an address, asking for a server name: what was agreed on, shortly.
pub async fn s_client(address: SocketAddr, name: &str, arguments: &[&str]) -> Said {
    let address = address.to_string();
    let mut all = vec!["s_client", "-brief", "-connect", &address];
    match name {
        "" => all.push("-noservername"),
        name => all.extend(["-servername", name]),
    }
    all.extend(arguments);
    run("openssl", &all).await
}

/// A TLS server that sends every connection `name` in a line; its certificate has that name.
pub struct TlsBackend {
    pub port: u16,
    _server: Child,
}

impl TlsBackend {
    pub async fn start(authority: &Authority, name: &str, directory: &Path) -> Self {
        let pair = authority.issue(name, &[name]);
        let certificate = file(directory, &format!("{name}.crt"), &pair.chain);
        let key = file(directory, &format!("{name}.key"), &pair.key);
        let port = ports::reserve();
        let mut command = std::process::Command::new("openssl");
        command
            .args(["s_server", "-www", "-quiet", "-accept"])
            .arg(format!("127.0.0.1:{port}"))
            .arg("-cert")
            .arg(certificate)
            .arg("-key")
            .arg(key);
        let server = Child::start(&command, &directory.join(format!("{name}.log")));
        crate::eventually(name, async || {
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            match tokio::net::TcpStream::connect(address).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        TlsBackend {
            port,
            _server: server,
        }
    }
}
