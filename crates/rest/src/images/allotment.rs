use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// How many virtual processors a box may have.
pub(crate) const CPUS: RangeInclusive<u32> = 1..=32;
/// How much memory, in MiB.
pub(crate) const MEMORY_MIB: RangeInclusive<u32> = 128..=1 << 20;

pub(crate) const DEFAULT_CPUS: u32 = 1;
pub(crate) const DEFAULT_MEMORY_MIB: u32 = 512;

/// What a box was made from and what it was given. The runtime keeps it among the box's labels,
/// which a client can neither set nor see under these names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allotment {
    pub(crate) image: String,
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
}

const IMAGE: &str = "vmm-rest/image";
const CPUS_LABEL: &str = "vmm-rest/cpus";
const MEMORY_LABEL: &str = "vmm-rest/memory_mib";

impl Allotment {
    pub(crate) fn put_into(&self, labels: &mut BTreeMap<String, String>) {
        labels.insert(IMAGE.to_owned(), self.image.clone());
        labels.insert(CPUS_LABEL.to_owned(), self.cpus.to_string());
        labels.insert(MEMORY_LABEL.to_owned(), self.memory_mib.to_string());
    }

    /// Of a box that was not made by the server: the defaults, of an image that nobody knows.
    pub(crate) fn take_from(labels: &mut BTreeMap<String, String>) -> Self {
        let mut number = |label| labels.remove(label)?.parse().ok();
        Self {
            cpus: number(CPUS_LABEL).unwrap_or(DEFAULT_CPUS),
            memory_mib: number(MEMORY_LABEL).unwrap_or(DEFAULT_MEMORY_MIB),
            image: labels.remove(IMAGE).unwrap_or_else(|| "unknown".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allotment_is_taken_out_of_the_labels_as_it_was_put_in() {
        let sent = Allotment {
            image: "web".into(),
            cpus: 4,
            memory_mib: 2048,
        };
        let mut labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        sent.put_into(&mut labels);
        assert_eq!(Allotment::take_from(&mut labels), sent);
        assert_eq!(labels.len(), 1);
        let stranger = Allotment::take_from(&mut labels);
        assert_eq!((stranger.image.as_str(), stranger.cpus), ("unknown", 1));
    }
}
