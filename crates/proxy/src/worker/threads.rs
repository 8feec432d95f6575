//! How many workers a process should have.

use std::path::Path;

/// The CPUs this process may use, rounded up: the smaller of the scheduler's affinity and the
/// cgroup v2 quota (`cpu.max`). Kubernetes CPU limits are such quotas, so `nproc` alone would give
/// a pod with half a CPU as many workers as the node has cores.
pub fn default_concurrency() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let quota = std::fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| cgroup_v2_path(&text).map(str::to_owned))
        .and_then(|path| lowest_quota(Path::new("/sys/fs/cgroup"), &path));
    quota.map_or(cores, |quota| cores.min(quota)).max(1)
}

fn cgroup_v2_path(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

/// A limit may stand on any level above the process.
fn lowest_quota(root: &Path, path: &str) -> Option<usize> {
    let mut at = root.join(path.trim_start_matches('/'));
    let mut lowest: Option<usize> = None;
    loop {
        let here = std::fs::read_to_string(at.join("cpu.max")).ok();
        if let Some(quota) = here.as_deref().and_then(parse_cpu_max) {
            lowest = Some(lowest.map_or(quota, |l| l.min(quota)));
        }
        if at == root || !at.pop() {
            return lowest;
        }
    }
}

/// `cpu.max` is `QUOTA PERIOD` in microseconds, or `max PERIOD`.
fn parse_cpu_max(text: &str) -> Option<usize> {
    let mut words = text.split_whitespace();
    let quota: u64 = words.next()?.parse().ok()?;
    let period: u64 = words.next()?.parse().ok()?;
    usize::try_from(quota.div_ceil(period.max(1))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_of_a_cpu_counts_as_one_and_no_quota_as_none() {
        for (text, expect) in [
            ("50000 100000\n", Some(1)),
            ("250000 100000\n", Some(3)),
            ("max 100000\n", None),
            ("", None),
        ] {
            assert_eq!(parse_cpu_max(text), expect, "{text:?}");
        }
        assert_eq!(cgroup_v2_path("0::/a/b\n"), Some("/a/b"));
    }
}
