//! What matching reads of a request.

use std::borrow::Cow;

/// A request head, as the route matcher and the rewrites see it.
///
/// The codec implements this over its own header block, so that matching copies nothing.
pub trait RequestView {
    /// `GET`.
    fn method(&self) -> &[u8];
    /// Path and query, after normalisation: `/reviews/0?x=1`. Empty for CONNECT without a path.
    fn path(&self) -> &[u8];
    /// `:authority` or `Host`.
    fn authority(&self) -> &[u8];
    /// `http` or `https`: of the request, not of the connection.
    fn scheme(&self) -> &[u8];
    /// The value of a header by lower-case name; several values joined with `,`
    /// (Envoy's `HeaderUtility::getAllOfHeaderAsString`). `None` when there is none.
    /// Not called with pseudo headers.
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>>;

    /// Whether any of the values of a header passes a test, each for itself: a match looks at them
    /// like that in Envoy 1.40. `None` when there is none. Not called with pseudo headers.
    fn any_value(&self, name: &str, test: impl FnMut(&[u8]) -> bool) -> Option<bool>;

    /// The value of a header or of a pseudo header (`:method`, `:path`, `:authority`, `:scheme`).
    fn header_or_pseudo(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let pseudo = match name {
            ":method" => self.method(),
            ":path" => self.path(),
            ":authority" | "host" => self.authority(),
            ":scheme" => self.scheme(),
            other if other.starts_with(':') => return None,
            other => return self.header(other),
        };
        (!pseudo.is_empty()).then_some(Cow::Borrowed(pseudo))
    }
}
