//! What can go wrong in a run. Where it concerns a contestant, its name stands before it.

/// The result of everything in this program.
pub type Result<T = ()> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what}: {source}")]
    Io {
        what: String,
        source: std::io::Error,
    },

    #[error("{program} is not installed; {remedy}")]
    Missing { program: String, remedy: String },

    #[error("ended by itself ({status}); the end of its log:\n{log}")]
    Ended { status: String, log: String },

    #[error("did not answer within {seconds} s ({last}); the end of its log:\n{log}")]
    NotReady {
        seconds: u64,
        last: String,
        log: String,
    },

    #[error("rejected its configuration: {reason}")]
    Rejected { reason: String },

    #[error("{program} printed something else than expected: {text}")]
    Output { program: String, text: String },

    /// A figure that would count answers that were none.
    #[error("{0} requests failed")]
    Requests(String),

    #[error("{0}")]
    Unsuitable(String),
}

impl Error {
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }
}
