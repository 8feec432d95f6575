//! An authority from files: what it issues, what is wrong with bad files, replacing them.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use lateen_identity::{Ca, CaOptions, Issued, Origin, SpiffeId};
use lateen_testkit::certificates::Authority;

use crate::openssl::{P256, Plugged, ok, request, verify};

fn open(plugged: &Plugged, data: &Path) -> Result<Ca, String> {
    open_at(plugged, data, SystemTime::now())
}

fn open_at(plugged: &Plugged, data: &Path, now: SystemTime) -> Result<Ca, String> {
    let options = CaOptions {
        plugged: Some(plugged.directory.clone()),
        ..CaOptions::new(data)
    };
    Ca::open(options, None, now).map_err(|error| error.to_string())
}

fn issue(ca: &Ca, at: &Path) -> Issued {
    let csr = request(at, P256, &[]);
    let id = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/a").unwrap();
    ca.current()
        .issue(&csr, &id, None, ca.lifetimes(), SystemTime::now())
        .unwrap()
}

#[test]
fn a_plugged_in_authority_issues_chains_that_openssl_verifies() {
    let directory = tempfile::tempdir().unwrap();
    let plugged = Plugged::make(&directory.path().join("cacerts"));
    let ca = open(&plugged, directory.path()).unwrap();
    assert_eq!(ca.origin(), Origin::Directory);
    assert!(!directory.path().join("ca").exists(), "no root of its own");
    let issued = issue(&ca, directory.path());
    let file = |name: &str| fs::read_to_string(plugged.file(name)).unwrap();
    // The root stands in cert-chain.pem as well, and is answered once.
    assert_eq!(
        issued.chain[1..],
        [file("ca-cert.pem"), file("root-cert.pem")]
    );
    verify(directory.path(), &issued.chain, "sslclient").unwrap();
    let ends = ok(
        &plugged.directory,
        &["x509", "-in", "ca-cert.pem", "-noout", "-enddate"],
    );
    assert!(!ends.is_empty());

    // In the form of cert-manager it is the same.
    for (from, to) in [
        ("cert-chain.pem", "tls.crt"),
        ("ca-key.pem", "tls.key"),
        ("root-cert.pem", "ca.crt"),
    ] {
        fs::rename(plugged.file(from), plugged.file(to)).unwrap();
    }
    fs::remove_file(plugged.file("ca-cert.pem")).unwrap();
    let ca = open(&plugged, directory.path()).unwrap();
    let issued = issue(&ca, directory.path());
    assert_eq!(issued.chain.len(), 3);
    verify(directory.path(), &issued.chain, "sslserver").unwrap();
}

#[test]
fn what_is_wrong_with_the_files_is_said_with_their_names() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("cacerts");
    let plugged = Plugged::make(&at);
    let check = |file: &str, content: Option<&str>, expect: &[&str]| {
        let path = plugged.file(file);
        let before = fs::read(&path).ok();
        match content {
            Some(content) => fs::write(&path, content).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = open(&plugged, directory.path())
            .err()
            .unwrap_or_else(|| panic!("{file} is accepted"));
        for expect in expect {
            assert!(error.contains(expect), "{file}: {error}");
        }
        if let Some(before) = before {
            fs::write(&path, before).unwrap();
        }
        open(&plugged, directory.path()).unwrap();
    };
    let read = |name: &str| fs::read_to_string(plugged.file(name)).unwrap();
    check("ca-cert.pem", None, &["ca-cert.pem", "is missing"]);
    check("ca-key.pem", None, &["ca-key.pem", "is missing"]);
    check("root-cert.pem", None, &["root-cert.pem", "is missing"]);
    check("ca-cert.pem", Some(""), &["ca-cert.pem", "no certificate"]);
    check(
        "ca-key.pem",
        Some("nonsense"),
        &["ca-key.pem", "no private key"],
    );
    check(
        "ca-key.pem",
        Some(&read("made-root.key")),
        &["ca-key.pem", "not the key of", "ca-cert.pem"],
    );
    check(
        "cert-chain.pem",
        Some("-----BEGIN CERTIFICATE-----\nx\n"),
        &["cert-chain.pem"],
    );
    ok(
        &at,
        &[
            "genpkey",
            "-quiet",
            "-algorithm",
            "RSA",
            "-pkeyopt",
            "rsa_keygen_bits:2048",
            "-aes256",
            "-pass",
            "pass:secret",
            "-out",
            "locked.pem",
        ],
    );
    check(
        "ca-key.pem",
        Some(&read("locked.pem")),
        &["ca-key.pem", "passphrase"],
    );
    // A root that did not sign the authority.
    Plugged::root(&at, "other", "/CN=Root CA");
    check(
        "root-cert.pem",
        Some(&read("other.crt")),
        &["root-cert.pem", "cannot be verified"],
    );
    // The certificate of somebody who is no authority.
    Plugged::intermediate(&at, "made-root", "leaf", "/CN=leaf", "CA:FALSE");
    fs::write(plugged.file("made-leaf.key"), read("leaf.key")).unwrap();
    check(
        "ca-cert.pem",
        Some(&read("leaf.crt")),
        &["ca-cert.pem", "not the certificate of an authority"],
    );
    // An authority that is not yet valid, or expired (it is made for 20 days).
    let day = Duration::from_secs(24 * 60 * 60);
    let now = SystemTime::now();
    let at = |now| open_at(&plugged, directory.path(), now).map(|_| ());
    at(now).unwrap();
    let early = at(now - day).unwrap_err();
    assert!(early.contains("ca-cert.pem: is not yet valid"), "{early}");
    let late = at(now + 21 * day).unwrap_err();
    assert!(late.contains("ca-cert.pem: has expired"), "{late}");

    // No directory at all.
    let options = CaOptions {
        plugged: Some(directory.path().join("nothing")),
        ..CaOptions::new(directory.path())
    };
    let error = Ca::open(options, None, SystemTime::now())
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("nothing") && error.contains("ca-cert.pem"),
        "{error}"
    );
}

#[test]
fn files_that_are_replaced_are_used_when_they_fit_together() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("cacerts");
    let plugged = Plugged::make(&at);
    let ca = open(&plugged, directory.path()).unwrap();
    let first = ca.current().roots_pem();
    assert!(!ca.refresh(SystemTime::now()).unwrap(), "nothing changed");

    let next = Plugged::make(&directory.path().join("next"));
    fs::copy(next.file("ca-cert.pem"), plugged.file("ca-cert.pem")).unwrap();
    let error = ca.refresh(SystemTime::now()).unwrap_err().to_string();
    assert!(error.contains("ca-key.pem"), "{error}");
    assert_eq!(ca.current().roots_pem(), first, "the last good one is kept");
    let issued = issue(&ca, directory.path());
    verify(directory.path(), &issued.chain, "sslclient").unwrap();

    for name in ["ca-key.pem", "cert-chain.pem"] {
        fs::copy(next.file(name), plugged.file(name)).unwrap();
    }
    assert!(
        ca.refresh(SystemTime::now()).is_err(),
        "the root is not yet there"
    );
    // Both roots, the old one first.
    let both = first.clone() + &fs::read_to_string(next.file("root-cert.pem")).unwrap();
    fs::write(plugged.file("root-cert.pem"), both).unwrap();
    assert!(ca.refresh(SystemTime::now()).unwrap());
    let issued = issue(&ca, directory.path());
    assert_eq!(issued.chain.len(), 4, "leaf, authority, two roots");
    assert_eq!(
        issued.chain[3],
        fs::read_to_string(next.file("root-cert.pem")).unwrap(),
        "its own root is the last"
    );
    verify(
        directory.path(),
        &[&issued.chain[..2], &issued.chain[3..]].concat(),
        "sslclient",
    )
    .unwrap();

    fs::remove_file(plugged.file("ca-cert.pem")).unwrap();
    fs::remove_file(plugged.file("ca-key.pem")).unwrap();
    fs::remove_file(plugged.file("root-cert.pem")).unwrap();
    assert!(ca.refresh(SystemTime::now()).is_err());
    issue(&ca, directory.path());
}

#[test]
fn lists_of_revoked_certificates_are_taken_when_the_authority_still_counts_with_them() {
    let directory = tempfile::tempdir().unwrap();
    let (data, files) = (directory.path(), directory.path().join("cacerts"));
    fs::create_dir(&files).unwrap();
    let root = Authority::new("root");
    let (ours, other) = (root.intermediate("ours"), root.intermediate("other"));
    for (name, content) in [
        ("ca-cert.pem", &ours.pem),
        ("ca-key.pem", &ours.key),
        ("cert-chain.pem", &ours.above),
        ("root-cert.pem", &ours.root),
    ] {
        fs::write(files.join(name), content).unwrap();
    }
    let options = CaOptions {
        plugged: Some(files.clone()),
        ..CaOptions::new(data)
    };
    let ca = Ca::open(options, None, SystemTime::now()).unwrap();
    let lists = || Some(ca.current().revocations()?.pem.clone());
    assert_eq!(lists(), None);
    let good = root.revokes_serials(&[other.serial]) + &ours.revokes(&[]);
    let replace = |content: &str| {
        fs::write(files.join("ca-crl.pem"), content).unwrap();
        ca.refresh(SystemTime::now()).map_err(|e| e.to_string())
    };
    assert_eq!(replace(&good), Ok(true));
    assert_eq!(lists().as_deref(), Some(good.as_str()));
    for (wrong, expect) in [
        ("nonsense".to_owned(), "has no list"),
        // Of the root alone: nobody would know about what the authority itself signs.
        (root.revokes(&[]), "no list for each authority"),
        (
            root.revokes_serials(&[ours.serial]) + &ours.revokes(&[]),
            "revokes a certificate of the very chain",
        ),
        // Somebody else's lists.
        (
            Authority::new("root").revokes(&[]) + &ours.revokes(&[]),
            "cannot be verified",
        ),
    ] {
        let error = replace(&wrong).unwrap_err();
        assert!(
            error.contains("ca-crl.pem") && error.contains(expect),
            "{error}"
        );
        assert_eq!(
            lists().as_deref(),
            Some(good.as_str()),
            "the last good ones"
        );
    }
    assert_eq!(replace(""), Ok(true));
    assert_eq!(lists(), None);
}
