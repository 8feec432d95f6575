//! A TLS client that shows a certificate and takes any server's: what a server lets in is asked, not
//! whom the client trusts.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme, SupportedCipherSuite,
    SupportedProtocolVersion,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::certificates::Pair;

/// How long a server that says nothing is listened to.
const SILENCE: Duration = Duration::from_secs(10);

/// How a connection is made.
#[derive(Clone, Copy)]
pub enum Dial<'a> {
    Plain,
    /// With a certificate or none, offering these protocols by ALPN.
    Tls(Option<&'a Pair>, &'a [&'a str]),
}

/// What a server answers to these bytes, until `ends` says that it is all or the server closes;
/// nothing of a connection that is not served, with the reason.
pub async fn ask(
    to: SocketAddr,
    dial: Dial<'_>,
    bytes: &[u8],
    ends: impl Fn(&[u8]) -> bool,
) -> Result<Vec<u8>, String> {
    let tcp = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    let asked = async {
        match dial {
            Dial::Plain => converse(tcp, bytes, ends).await,
            Dial::Tls(pair, alpn) => {
                let connector = tokio_rustls::TlsConnector::from(Arc::new(config(pair, alpn)));
                let name = ServerName::try_from("server.test").map_err(|e| e.to_string())?;
                let stream = connector.connect(name, tcp).await;
                converse(stream.map_err(|e| e.to_string())?, bytes, ends).await
            }
        }
    };
    let answer = tokio::time::timeout(SILENCE, asked).await;
    answer.map_err(|_| "silence".to_owned())?
}

/// What a client can do, for a server to choose from. Names are those of the standards, as
/// `TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256`, `TLSv1_2`, `secp256r1`; none: all that there are.
#[derive(Clone, Copy, Default)]
pub struct Offer<'a> {
    pub name: &'a str,
    pub pair: Option<&'a Pair>,
    pub alpn: &'a [&'a str],
    pub version: &'a str,
    pub suites: &'a [&'a str],
    pub groups: &'a [&'a str],
}

/// What client and server agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    pub version: String,
    pub suite: String,
    pub group: String,
}

/// What a server agrees on with a client that can do this.
pub async fn handshake(to: SocketAddr, offer: Offer<'_>) -> Result<Agreed, String> {
    let name = ServerName::try_from(offer.name.to_owned()).map_err(|e| e.to_string())?;
    let tcp = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
    let limited = Limited {
        version: offer.version,
        suites: offer.suites,
        groups: offer.groups,
    };
    let connector =
        tokio_rustls::TlsConnector::from(Arc::new(limited_config(offer.pair, offer.alpn, limited)));
    let shaking = tokio::time::timeout(SILENCE, connector.connect(name, tcp)).await;
    let stream = shaking.map_err(|_| "silence".to_owned())?;
    let stream = stream.map_err(|e| e.to_string())?;
    let (_, connection) = stream.get_ref();
    let group = connection.negotiated_key_exchange_group();
    Ok(Agreed {
        version: format!("{:?}", connection.protocol_version().expect("a version")),
        suite: format!(
            "{:?}",
            connection
                .negotiated_cipher_suite()
                .expect("a suite")
                .suite()
        ),
        group: group
            .map(|group| format!("{:?}", group.name()))
            .unwrap_or_default(),
    })
}

/// What one side of TLS can do; empty: all that there is. Suites are offered in this order.
#[derive(Clone, Copy, Default)]
pub struct Limited<'a> {
    pub version: &'a str,
    pub suites: &'a [&'a str],
    pub groups: &'a [&'a str],
}

impl Limited<'_> {
    /// Everything that is named.
    pub fn provider(&self) -> Arc<CryptoProvider> {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        let named = |list: &[&str], name: String| list.is_empty() || list.contains(&name.as_str());
        let suites = &mut provider.cipher_suites;
        suites.retain(|one| named(self.suites, format!("{:?}", one.suite())));
        let place = |one: &SupportedCipherSuite| {
            let name = format!("{:?}", one.suite());
            self.suites.iter().position(|wanted| *wanted == name)
        };
        suites.sort_by_key(place);
        let groups = &mut provider.kx_groups;
        groups.retain(|one| named(self.groups, format!("{:?}", one.name())));
        Arc::new(provider)
    }

    pub fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        let all = rustls::ALL_VERSIONS.iter().copied();
        all.filter(|one| self.version.is_empty() || format!("{:?}", one.version) == self.version)
            .collect()
    }
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    bytes: &[u8],
    ends: impl Fn(&[u8]) -> bool,
) -> Result<Vec<u8>, String> {
    let said = |error: std::io::Error| error.to_string();
    stream.write_all(bytes).await.map_err(said)?;
    stream.flush().await.map_err(said)?;
    let mut answer = Vec::new();
    while !ends(&answer) {
        if stream.read_buf(&mut answer).await.map_err(said)? == 0 {
            return Err(format!(
                "closed after {:?}",
                String::from_utf8_lossy(&answer)
            ));
        }
    }
    Ok(answer)
}

/// How a client behaves that takes every server, with a certificate of its own or without.
pub fn config(pair: Option<&Pair>, alpn: &[&str]) -> ClientConfig {
    limited_config(pair, alpn, Limited::default())
}

fn limited_config(pair: Option<&Pair>, alpn: &[&str], limited: Limited<'_>) -> ClientConfig {
    let provider = limited.provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&limited.versions())
        .expect("versions that the provider has")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)));
    let mut config = match pair {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes());
            let chain = chain.collect::<Result<_, _>>().expect("certificates");
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).expect("a key");
            let config = builder.with_client_auth_cert(chain, key);
            config.expect("a certificate with its key")
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A client's first message.
pub fn hello(alpn: &[&str]) -> Vec<u8> {
    let name = ServerName::try_from("server.test").expect("a name");
    let tls = rustls::ClientConnection::new(Arc::new(config(None, alpn)), name);
    let mut hello = Vec::new();
    let written = tls.expect("a client").write_tls(&mut hello);
    written.expect("a buffer takes all");
    hello
}

/// A client that has its records in its own hands, to end a connection in any way.
pub struct Records {
    tcp: TcpStream,
    tls: rustls::ClientConnection,
}

impl Records {
    /// After the handshake.
    pub async fn connect(to: SocketAddr, alpn: &[&str]) -> Records {
        let tcp = TcpStream::connect(to).await.expect("a connection");
        let name = ServerName::try_from("server.test").expect("a name");
        let tls = rustls::ClientConnection::new(Arc::new(config(None, alpn)), name);
        let tls = tls.expect("a client's configuration");
        let mut records = Records { tcp, tls };
        while records.tls.is_handshaking() {
            records.flush().await;
            let mut none = Vec::new();
            assert!(records.read(&mut none).await, "closed in the handshake");
        }
        records.flush().await;
        records
    }

    /// Sends bytes, and with them that no more will come.
    pub async fn send_last(&mut self, bytes: &[u8]) {
        self.buffer(bytes);
        self.tls.send_close_notify();
        self.flush().await;
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.buffer(bytes);
        self.flush().await;
    }

    /// Ends this side of the TCP connection.
    pub async fn shutdown(&mut self) {
        // The other end may be gone.
        let _ = self.tcp.shutdown().await;
    }

    /// What comes until there is `enough`, or the end.
    pub async fn receive(&mut self, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut all = Vec::new();
        while !enough(&all) && self.read(&mut all).await {}
        all
    }

    fn buffer(&mut self, bytes: &[u8]) {
        let written = self.tls.writer().write_all(bytes);
        written.expect("room for a request");
    }

    async fn flush(&mut self) {
        let mut out = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut out).expect("a buffer takes all");
        }
        // The other end may be gone.
        let _ = self.tcp.write_all(&out).await;
    }

    /// Whether anything came.
    async fn read(&mut self, into: &mut Vec<u8>) -> bool {
        let mut buffer = [0; 16_384];
        let read = self.tcp.read(&mut buffer).await.unwrap_or(0);
        let mut rest = &buffer[..read];
        while !rest.is_empty() {
            self.tls.read_tls(&mut rest).expect("a slice can be read");
            let state = self.tls.process_new_packets().expect("records");
            let at = into.len();
            into.resize(at + state.plaintext_bytes_to_read(), 0);
            let plain = self.tls.reader().read_exact(&mut into[at..]);
            plain.expect("what there is");
        }
        read > 0
    }
}
