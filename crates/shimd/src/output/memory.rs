/// Formats a number of bytes in at most 6 characters, such as `12.5M`.
pub(crate) fn format_memory(bytes: u64) -> String {
    const MIB: f64 = 1048576.0;
    let mib = bytes as f64 / MIB;
    if mib < 1000.0 {
        format!("{mib:.1}M")
    } else {
        format!("{:.1}G", mib / 1024.0)
    }
}
