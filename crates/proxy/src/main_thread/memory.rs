//! Keeps an idle proxy small. Not a limit: it only stops the kernel from rounding up.

/// Where the system gives huge pages (2 MiB each) without being asked, every part of the heap that
/// is touched takes one: 10 MiB more for a sidecar whose heap is 1 MiB. The allocator is built not
/// to ask for them (`no_thp`).
pub(super) fn no_huge_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "transparent huge pages stay on");
    }
}
