//! The openssl program: makes keys, requests and authorities, and says what it sees.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs openssl in a directory; what it printed, on both streams.
pub fn openssl(directory: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(directory)
        .env("HOME", directory)
        .output()
        .expect("openssl can be started");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => Err(text),
    }
}

pub fn ok(directory: &Path, arguments: &[&str]) -> String {
    openssl(directory, arguments).unwrap_or_else(|text| panic!("openssl {arguments:?}: {text}"))
}

pub fn write(directory: &Path, name: &str, content: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

/// A key and a request for it, made by `openssl req`; the request in PEM.
pub fn request(directory: &Path, key: &[&str], more: &[&str]) -> String {
    let mut genpkey = vec!["genpkey", "-quiet", "-out", "key.pem"];
    genpkey.extend(key);
    ok(directory, &genpkey);
    let mut req = vec![
        "req",
        "-new",
        "-key",
        "key.pem",
        "-subj",
        "/O=somebody else",
    ];
    req.extend(more);
    ok(directory, &req)
}

pub const P256: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
pub const P384: &[&str] = &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];
pub const RSA: &[&str] = &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];

/// `openssl verify` of a chain whose last certificate is the root.
pub fn verify(directory: &Path, chain: &[String], purpose: &str) -> Result<String, String> {
    let (leaf, rest) = chain.split_first().unwrap();
    let (root, between) = rest.split_last().unwrap();
    write(directory, "leaf.pem", leaf);
    write(directory, "between.pem", &between.concat());
    write(directory, "root.pem", root);
    let mut arguments = vec![
        "verify",
        "-x509_strict",
        "-purpose",
        purpose,
        "-CAfile",
        "root.pem",
    ];
    if !between.is_empty() {
        arguments.extend(["-untrusted", "between.pem"]);
    }
    arguments.push("leaf.pem");
    openssl(directory, &arguments)
}

/// A root and an authority below it, as Istio's documentation has them made, in `cacerts` form.
pub struct Plugged {
    pub directory: PathBuf,
}

impl Plugged {
    pub fn make(directory: &Path) -> Self {
        let at = directory.to_owned();
        std::fs::create_dir_all(&at).unwrap();
        Self::root(&at, "root", "/O=Example/CN=Root CA");
        Self::intermediate(
            &at,
            "root",
            "ca",
            "/O=Example/CN=Intermediate CA/L=cluster1",
            "CA:TRUE,pathlen:0",
        );
        for (from, to) in [
            ("root.crt", "root-cert.pem"),
            ("ca.crt", "ca-cert.pem"),
            ("ca.key", "ca-key.pem"),
        ] {
            std::fs::copy(at.join(from), at.join(to)).unwrap();
        }
        let read = |name: &str| std::fs::read_to_string(at.join(name)).unwrap();
        write(&at, "cert-chain.pem", &(read("ca.crt") + &read("root.crt")));
        for name in ["root.crt", "root.key", "ca.crt", "ca.key"] {
            std::fs::rename(at.join(name), at.join(format!("made-{name}"))).unwrap();
        }
        Self { directory: at }
    }

    pub fn root(at: &Path, name: &str, subject: &str) {
        ok(
            at,
            &[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-noenc",
                "-days",
                "30",
                "-keyout",
                &format!("{name}.key"),
                "-out",
                &format!("{name}.crt"),
                "-subj",
                subject,
                "-addext",
                "keyUsage=critical,keyCertSign,cRLSign",
            ],
        );
    }

    pub fn intermediate(at: &Path, issuer: &str, name: &str, subject: &str, constraints: &str) {
        ok(
            at,
            &[
                "req",
                "-new",
                "-newkey",
                "rsa:2048",
                "-noenc",
                "-keyout",
                &format!("{name}.key"),
                "-out",
                &format!("{name}.csr"),
                "-subj",
                subject,
            ],
        );
        write(
            at,
            &format!("{name}.extensions"),
            &format!(
                "basicConstraints=critical,{constraints}\nkeyUsage=critical,keyCertSign,digitalSignature\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
            ),
        );
        ok(
            at,
            &[
                "x509",
                "-req",
                "-days",
                "20",
                "-in",
                &format!("{name}.csr"),
                "-CA",
                &format!("{issuer}.crt"),
                "-CAkey",
                &format!("{issuer}.key"),
                "-CAcreateserial",
                "-extfile",
                &format!("{name}.extensions"),
                "-out",
                &format!("{name}.crt"),
            ],
        );
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}
