//! Keeps an idle proxy small. Not a limit: it only stops the kernel from rounding up.

/// Allocators ask the kernel for huge pages (2 MiB each) where the system allows it. A sidecar's
/// heap is a few MiB in all, spread over as many size classes, and measured 10 MiB more with huge
/// pages than without.
pub(super) fn no_huge_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "transparent huge pages stay on");
    }
}
