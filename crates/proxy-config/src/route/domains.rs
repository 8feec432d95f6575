//! The search for a virtual host by domain.

/// Domains of one table.
#[derive(Clone, Debug, Default)]
pub(crate) struct DomainIndex {}

impl DomainIndex {
    pub(crate) fn find(&self, _authority: &[u8], _ignore_port: bool) -> Option<usize> {
        None
    }
}
