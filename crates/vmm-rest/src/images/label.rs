use std::collections::BTreeMap;

/// The label that records which image a box was created from. Clients can neither set nor see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageLabel(String);

const KEY: &str = "vmm-rest/image";

impl ImageLabel {
    pub(crate) fn new(image: String) -> Self {
        Self(image)
    }

    pub(crate) fn into_name(self) -> String {
        self.0
    }

    pub(crate) fn put_into(self, labels: &mut BTreeMap<String, String>) {
        labels.insert(KEY.to_owned(), self.0);
    }

    /// Removes the label and returns it; `unknown` for a box that was not created through the API.
    pub(crate) fn take_from(labels: &mut BTreeMap<String, String>) -> Self {
        Self(labels.remove(KEY).unwrap_or_else(|| "unknown".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_label_is_read_back_and_removed() {
        let sent = ImageLabel::new("web".into());
        let mut labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        sent.clone().put_into(&mut labels);
        assert_eq!(ImageLabel::take_from(&mut labels), sent);
        assert_eq!(labels.len(), 1);
        assert_eq!(ImageLabel::take_from(&mut labels).into_name(), "unknown");
    }
}
