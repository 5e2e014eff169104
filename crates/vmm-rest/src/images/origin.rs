use std::collections::BTreeMap;

/// The image that a box was made from. The runtime keeps it among the box's labels, which a client
/// can neither set nor see under this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin(String);

const LABEL: &str = "vmm-rest/image";

impl Origin {
    pub(crate) fn of(image: String) -> Self {
        Self(image)
    }

    pub(crate) fn into_name(self) -> String {
        self.0
    }

    pub(crate) fn put_into(self, labels: &mut BTreeMap<String, String>) {
        labels.insert(LABEL.to_owned(), self.0);
    }

    /// Of a box that was not made by the server: an image that nobody knows.
    pub(crate) fn take_from(labels: &mut BTreeMap<String, String>) -> Self {
        Self(labels.remove(LABEL).unwrap_or_else(|| "unknown".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_taken_out_of_the_labels_as_it_was_put_in() {
        let sent = Origin::of("web".into());
        let mut labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        sent.clone().put_into(&mut labels);
        assert_eq!(Origin::take_from(&mut labels), sent);
        assert_eq!(labels.len(), 1);
        assert_eq!(Origin::take_from(&mut labels).into_name(), "unknown");
    }
}
