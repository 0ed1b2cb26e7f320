//! The limit of open files.

/// Raises the limit of open files of this process to the highest value that it may set. A resolved path has a descriptor open for each
/// of its directories in each layer, and there may be hundreds of layers.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|text| text.trim().parse().ok());
    let limit: u64 = limit.unwrap_or(1 << 20);
    // Root may raise it to the limit of the kernel, other users to their hard limit.
    if setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) }).is_err() {
        let hard = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard });
    }
}
