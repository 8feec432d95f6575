//! The self-signed root: kept, private, replaced in time.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use lateen_identity::{Ca, CaOptions, Origin, RootLifetimes, SpiffeId};

use crate::openssl::{P256, request, verify};

const HOUR: Duration = Duration::from_secs(3600);

fn open(data: &Path, now: SystemTime) -> Ca {
    Ca::open(options(data), None, now).unwrap()
}

fn options(data: &Path) -> CaOptions {
    CaOptions {
        roots: RootLifetimes {
            validity: HOUR * 1000,
            grace_percent: 20,
            distribution: HOUR * 24,
            retention: HOUR * 48,
        },
        ..CaOptions::new(data)
    }
}

#[test]
fn the_root_survives_restarts_and_only_its_owner_can_read_it() {
    let directory = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let ca = open(directory.path(), now);
    assert_eq!(ca.origin(), Origin::SelfSigned);
    let roots = ca.current().roots_pem();
    let path = directory.path().join("ca/self-signed.pem");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let again = open(directory.path(), now + HOUR);
    assert_eq!(again.current().roots_pem(), roots);
    assert_eq!(mode(&path), 0o600, "made private again");
    assert!(!format!("{:?}", ca.current()).contains("PRIVATE"));
}

#[test]
fn what_a_killed_process_left_behind_is_no_obstacle_and_a_damaged_root_is_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("ca")).unwrap();
    fs::write(directory.path().join("ca/self-signed.pem.new"), "half a fi").unwrap();
    open(directory.path(), SystemTime::now());
    let path = directory.path().join("ca/self-signed.pem");
    let good = fs::read_to_string(&path).unwrap();
    for damaged in [
        "",
        "x",
        &good[..good.len() / 2],
        &good[20..],
        &good.replace("BEGIN PRIVATE", "BEGIN PUBLIC"),
    ] {
        fs::write(&path, damaged).unwrap();
        let error = Ca::open(options(directory.path()), None, SystemTime::now())
            .err()
            .expect("refused");
        assert!(error.to_string().contains("self-signed.pem"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged, "left as it is");
    }
}

#[test]
fn a_new_root_is_trusted_before_it_signs_and_the_old_one_until_nothing_of_it_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let start = SystemTime::now();
    let ca = open(at, start);
    let csr = request(at, P256, &[]);
    let id = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/a").unwrap();
    let roots = |ca: &Ca| -> Vec<Vec<u8>> {
        ca.current()
            .roots()
            .iter()
            .map(|root| root.to_vec())
            .collect()
    };
    let old = roots(&ca)[0].clone();

    assert!(
        !ca.refresh(start + HOUR * 799).unwrap(),
        "80 percent of the validity are not over"
    );
    assert_eq!(roots(&ca).len(), 1);
    let made = start + HOUR * 801;
    assert!(ca.refresh(made).unwrap());
    let both = roots(&ca);
    assert_eq!(both.len(), 2);
    assert_eq!(both[1], old, "the old one signs");
    let new = both[0].clone();
    assert!(!ca.refresh(made + HOUR * 23).unwrap());

    // Restarted in between: nothing is forgotten.
    let ca = open(at, made + HOUR * 23);
    assert_eq!(roots(&ca), [new.clone(), old.clone()]);
    assert!(ca.refresh(made + HOUR * 25).unwrap());
    assert_eq!(roots(&ca), [old.clone(), new.clone()], "the new one signs");
    let issued = ca
        .current()
        .issue(&csr, &id, None, ca.lifetimes(), made + HOUR * 25)
        .unwrap();
    assert_eq!(issued.chain.len(), 3);
    assert!(!ca.refresh(made + HOUR * 71).unwrap());
    assert!(ca.refresh(made + HOUR * 73).unwrap());
    assert_eq!(roots(&ca), std::slice::from_ref(&new));
    assert_eq!(roots(&open(at, made + HOUR * 73)), [new]);
}

#[test]
fn rotation_on_demand_leaves_old_and_new_certificates_valid() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let now = SystemTime::now();
    let options = CaOptions {
        roots: RootLifetimes {
            distribution: Duration::ZERO,
            ..RootLifetimes::default()
        },
        ..CaOptions::new(at)
    };
    let ca = Ca::open(options, None, now).unwrap();
    let csr = request(at, P256, &[]);
    let id = SpiffeId::parse("spiffe://cluster.local/ns/default/sa/a").unwrap();
    let before = ca
        .current()
        .issue(&csr, &id, None, ca.lifetimes(), now)
        .unwrap();
    assert!(ca.rotate(now).unwrap());
    let after = ca
        .current()
        .issue(&csr, &id, None, ca.lifetimes(), now)
        .unwrap();
    assert_eq!(after.chain.len(), 3);
    assert_eq!(
        after.chain[1], before.chain[1],
        "the old root is still trusted"
    );
    verify(
        at,
        &[before.chain[0].clone(), after.chain[1].clone()],
        "sslclient",
    )
    .unwrap();
    verify(
        at,
        &[after.chain[0].clone(), after.chain[2].clone()],
        "sslclient",
    )
    .unwrap();
    assert!(
        verify(
            at,
            &[after.chain[0].clone(), after.chain[1].clone()],
            "sslclient"
        )
        .is_err()
    );
}
