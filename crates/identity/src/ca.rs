//! The authority as it lives: where it comes from, and how it changes while it is used.
//!
//! A change that does not hold together (a file that is half copied, a key that does not fit) is
//! an error, and what was used before stays in use.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::SystemTime;

use crate::authority::{Authority, Lifetimes};
use crate::key::KeyKind;
use crate::pieces::{CaError, Pieces};
use crate::self_signed::{RootLifetimes, SelfSigned};
use crate::spiffe::TrustDomain;

/// What an authority is opened with.
#[derive(Clone, Debug)]
pub struct CaOptions {
    /// Where the self-signed root is kept.
    pub data_dir: PathBuf,
    /// Istio's `cacerts` as a directory; it must be there then.
    pub plugged: Option<PathBuf>,
    pub trust_domain: TrustDomain,
    pub key_kind: KeyKind,
    pub lifetimes: Lifetimes,
    pub roots: RootLifetimes,
}

impl CaOptions {
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            plugged: None,
            trust_domain: TrustDomain::default(),
            key_kind: KeyKind::default(),
            lifetimes: Lifetimes::default(),
            roots: RootLifetimes::default(),
        }
    }
}

/// Where the authority comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    SelfSigned,
    /// A directory that was given when the control plane was started.
    Directory,
    /// A Secret.
    Secret,
}

/// The certificate authority of the mesh.
pub struct Ca {
    options: CaOptions,
    current: RwLock<Arc<Authority>>,
    state: Mutex<State>,
}

struct State {
    origin: Origin,
    /// What the authority was made from, when it was given.
    pieces: Option<Pieces>,
    self_signed: Option<SelfSigned>,
}

impl Ca {
    /// Opens what is there: the directory when one is given, else the Secret, else a root that is
    /// its own (made now if there is none). Blocks on the disk.
    pub fn open(
        options: CaOptions,
        secret: Option<Pieces>,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let (state, authority) = match (&options.plugged, secret) {
            (Some(directory), _) => {
                let pieces = Pieces::in_directory(directory)?.ok_or_else(|| {
                    let reason = "has no ca-cert.pem, ca-key.pem and root-cert.pem (or tls.crt, tls.key and ca.crt)";
                    CaError::new(directory.display().to_string(), reason)
                })?;
                let authority = pieces.authority(now)?;
                (State::given(Origin::Directory, pieces), authority)
            }
            (None, Some(pieces)) => {
                let authority = pieces.authority(now)?;
                (State::given(Origin::Secret, pieces), authority)
            }
            (None, None) => {
                let path = options.data_dir.join("ca").join("self-signed.pem");
                let own = SelfSigned::open(
                    &path,
                    options.key_kind,
                    &options.trust_domain,
                    &options.roots,
                    now,
                )?;
                let authority = own.authority(&options.roots, now)?;
                let state = State {
                    origin: Origin::SelfSigned,
                    pieces: None,
                    self_signed: Some(own),
                };
                (state, authority)
            }
        };
        Ok(Self {
            options,
            current: RwLock::new(Arc::new(authority)),
            state: Mutex::new(state),
        })
    }

    /// The authority of this moment.
    pub fn current(&self) -> Arc<Authority> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub fn lifetimes(&self) -> &Lifetimes {
        &self.options.lifetimes
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.options.trust_domain
    }

    pub fn origin(&self) -> Origin {
        self.state().origin.clone()
    }

    /// Looks for changes: files that were replaced, a root that is due. True when the authority is
    /// another one now. To be called every few seconds; blocks on the disk.
    pub fn refresh(&self, now: SystemTime) -> Result<bool, CaError> {
        let mut state = self.state();
        match (state.origin.clone(), &self.options.plugged) {
            (Origin::Directory, Some(directory)) => match Pieces::in_directory(directory)? {
                Some(pieces) => self.take(&mut state, Origin::Directory, pieces, now),
                None => {
                    let reason =
                        "the files of the authority are gone; what was read before stays in use";
                    Err(CaError::new(directory.display().to_string(), reason))
                }
            },
            (Origin::SelfSigned, _) => self.advance(&mut state, now),
            _ => Ok(false),
        }
    }

    /// Takes the authority of a Secret, unless a directory was given. True when the authority is
    /// another one now.
    pub fn plug_in(&self, pieces: Pieces, now: SystemTime) -> Result<bool, CaError> {
        let mut state = self.state();
        match state.origin {
            Origin::Directory => Ok(false),
            Origin::SelfSigned | Origin::Secret => {
                self.take(&mut state, Origin::Secret, pieces, now)
            }
        }
    }

    /// Begins to replace a self-signed root now instead of at its end. False when the authority
    /// is not self-signed.
    pub fn rotate(&self, now: SystemTime) -> Result<bool, CaError> {
        let mut state = self.state();
        let options = &self.options;
        let Some(own) = state.self_signed.as_mut() else {
            return Ok(false);
        };
        own.add(options.key_kind, &options.trust_domain, &options.roots, now)?;
        self.use_(own.authority(&options.roots, now)?);
        Ok(true)
    }

    fn take(
        &self,
        state: &mut State,
        origin: Origin,
        pieces: Pieces,
        now: SystemTime,
    ) -> Result<bool, CaError> {
        if state.pieces.as_ref() == Some(&pieces) {
            return Ok(false);
        }
        let authority = pieces.authority(now)?;
        let before = self.current();
        let lost = before
            .roots()
            .iter()
            .filter(|root| !authority.roots().contains(root))
            .count();
        if lost > 0 {
            tracing::warn!(
                roots = lost,
                "the new authority does not trust what the old one did: workloads cannot talk to each other until all have new certificates; list the old root in root-cert.pem as well for a while"
            );
        }
        self.use_(authority);
        *state = State::given(origin, pieces);
        Ok(true)
    }

    fn advance(&self, state: &mut State, now: SystemTime) -> Result<bool, CaError> {
        let options = &self.options;
        let Some(own) = state.self_signed.as_mut() else {
            return Ok(false);
        };
        own.advance(options.key_kind, &options.trust_domain, &options.roots, now)?;
        let next = own.authority(&options.roots, now)?;
        // The signing root is the last: the same roots in the same order are the same authority.
        if next.roots() == self.current().roots() {
            return Ok(false);
        }
        self.use_(next);
        Ok(true)
    }

    fn use_(&self, authority: Authority) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(authority);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn given(origin: Origin, pieces: Pieces) -> Self {
        Self {
            origin,
            pieces: Some(pieces),
            self_signed: None,
        }
    }
}
