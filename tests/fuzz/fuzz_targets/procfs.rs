#![no_main]

fuzz::target!(|input| {
    vmm_protocol::fuzz::procfs(input);
    shim_reaper::fuzz::procfs(input);
    // The two parsers of `/proc/<pid>/stat` agree.
    let stat = vmm_protocol::fuzz::stat(input);
    if let (Some(one), Some(other)) = (stat, shim_reaper::fuzz::stat(input)) {
        assert_eq!(one, other);
    }
});
