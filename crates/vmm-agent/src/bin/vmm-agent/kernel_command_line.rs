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
    /// `vmm.share=TAG:DIR` or `vmm.share=TAG:DIR:ro`, any number of them: the shared directories to mount.
    pub(crate) shares: Vec<Share<'a>>,
}

/// A directory that the host shares over virtiofs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Share<'a> {
    pub(crate) tag: &'a str,
    /// Where it is mounted.
    pub(crate) target: &'a str,
    pub(crate) is_read_only: bool,
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
            shares: text
                .split_ascii_whitespace()
                .filter_map(|word| Share::parse(word.strip_prefix("vmm.share=")?))
                .collect(),
        }
    }
}

impl<'a> Share<'a> {
    fn parse(value: &'a str) -> Option<Self> {
        let (tag, target) = value.split_once(':')?;
        let read_only = target.strip_suffix(":ro");
        Some(Self {
            tag,
            target: read_only.unwrap_or(target),
            is_read_only: read_only.is_some(),
        })
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
            shares: Vec::new(),
        };
        assert_eq!(KernelCommandLine::parse(text), expected);
        assert!(!KernelCommandLine::parse("vmm.overlay=off").overlay);
    }

    #[test]
    fn all_shares_count() {
        let text = "vmm.share=a:/srv/a quiet vmm.share=b:/b:ro vmm.share=c\n";
        let share = |tag, target, is_read_only| Share {
            tag,
            target,
            is_read_only,
        };
        assert_eq!(
            KernelCommandLine::parse(text).shares,
            [share("a", "/srv/a", false), share("b", "/b", true)]
        );
    }
}
