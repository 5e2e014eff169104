use std::collections::BTreeMap;

use super::{BoxId, BoxInfo, BoxStatus};

/// Which boxes [`VmmRuntime::list_with`](crate::VmmRuntime::list_with) returns, and in which order.
/// By default it returns all boxes, in the order of their creation. A box must satisfy all
/// conditions.
///
/// ```no_run
/// # async fn example(runtime: vmm_runtime::VmmRuntime) {
/// use vmm_runtime::{BoxStatus, ListOptions};
///
/// // The three newest boxes of the team that have failed.
/// let options = ListOptions::default()
///     .status(BoxStatus::Failed)
///     .label("team", "a")
///     .newest_first(true)
///     .limit(3);
/// let boxes = runtime.list_with(&options).await;
///
/// // The next three.
/// if let Some(last) = boxes.last() {
///     let boxes = runtime.list_with(&options.after(last.id.clone())).await;
/// }
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListOptions {
    /// The box has one of these statuses; any if empty.
    pub statuses: Vec<BoxStatus>,
    /// Whether the box is [about to end](BoxInfo::stopping).
    pub stopping: Option<bool>,
    /// The name of the box contains this text.
    pub name: Option<String>,
    /// The box was created from this image.
    pub image: Option<String>,
    /// The box has these labels, with the value if there is one.
    pub labels: BTreeMap<String, Option<String>>,
    /// Whether the newest box comes first, in place of the oldest.
    pub newest_first: bool,
    /// The box follows this one in the order. That box may have been removed.
    pub after: Option<BoxId>,
    /// The maximum number of boxes.
    pub limit: Option<usize>,
}

impl ListOptions {
    /// Adds a status to [`statuses`](Self::statuses).
    #[must_use]
    pub fn status(mut self, status: BoxStatus) -> Self {
        self.statuses.push(status);
        self
    }

    /// Sets [`stopping`](Self::stopping).
    #[must_use]
    pub fn stopping(mut self, stopping: bool) -> Self {
        self.stopping = Some(stopping);
        self
    }

    /// Sets [`name`](Self::name).
    #[must_use]
    pub fn name(mut self, part: impl Into<String>) -> Self {
        self.name = Some(part.into());
        self
    }

    /// Sets [`image`](Self::image).
    #[must_use]
    pub fn image(mut self, name: impl Into<String>) -> Self {
        self.image = Some(name.into());
        self
    }

    /// Adds a label that the box has, with this value.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), Some(value.into()));
        self
    }

    /// Adds a label that the box has, with any value.
    #[must_use]
    pub fn has_label(mut self, key: impl Into<String>) -> Self {
        self.labels.insert(key.into(), None);
        self
    }

    /// Sets [`newest_first`](Self::newest_first).
    #[must_use]
    pub fn newest_first(mut self, on: bool) -> Self {
        self.newest_first = on;
        self
    }

    /// Sets [`after`](Self::after).
    #[must_use]
    pub fn after(mut self, id: BoxId) -> Self {
        self.after = Some(id);
        self
    }

    /// Sets [`limit`](Self::limit).
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Returns whether the box satisfies the conditions that do not concern the order.
    pub(crate) fn is_match(&self, info: &BoxInfo) -> bool {
        let has_label = |(key, value): (&String, &Option<String>)| {
            let found = info.labels.get(key);
            found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        let contains = |part: &String| info.name.as_ref().is_some_and(|name| name.contains(part));
        (self.statuses.is_empty() || self.statuses.contains(&info.status))
            && self.stopping.is_none_or(|it| it == info.stopping)
            && self.name.as_ref().is_none_or(contains)
            && (self.image.is_none() || self.image == info.image)
            && self.labels.iter().all(has_label)
    }
}
