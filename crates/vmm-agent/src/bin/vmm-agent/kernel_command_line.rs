/// The parameters of the kernel command line that are for the agent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KernelCommandLine<'a> {
    /// `vmm.root=DEVICE`: the root file system; the initrd without.
    pub(crate) root: Option<&'a str>,
    /// `vmm.rootfstype=TYPE`; erofs, then ext4 without.
    pub(crate) root_type: Option<&'a str>,
    /// `vmm.overlay=off`: mounts the root file system writable, instead of below an overlay in
    /// memory.
    pub(crate) overlay: bool,
}

impl<'a> KernelCommandLine<'a> {
    /// Parses the text of `/proc/cmdline`. Of a parameter that occurs twice, the last one counts.
    pub(crate) fn parse(text: &'a str) -> Self {
        let value = |name: &str| {
            let words = text.split_ascii_whitespace().rev();
            words
                .filter_map(|word| word.split_once('='))
                .find_map(|(key, value)| (key == name).then_some(value))
        };
        Self {
            root: value("vmm.root"),
            root_type: value("vmm.rootfstype"),
            overlay: value("vmm.overlay") != Some("off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_equal_parameters_counts_and_others_are_ignored() {
        let text = "quiet vmm.root=/dev/vda root=/dev/sda vmm.root=/dev/vdb vmm.rootfstype=ext4\n";
        let expected = KernelCommandLine {
            root: Some("/dev/vdb"),
            root_type: Some("ext4"),
            overlay: true,
        };
        assert_eq!(KernelCommandLine::parse(text), expected);
        assert!(!KernelCommandLine::parse("vmm.overlay=off").overlay);
    }
}
