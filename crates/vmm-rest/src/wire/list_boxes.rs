use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{BoxResponse, BoxStatus};

/// Which boxes to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
#[non_exhaustive]
pub struct ListBoxesQuery {
    /// At most so many in one page, up to 1000; 100 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000, default = 100, nullable = false)]
    pub page_size: Option<u32>,
    /// The `next_page_token` of the page before.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(nullable = false, pattern = r"^after-[^/\x00]+$")]
    pub page_token: Option<String>,
    /// Only boxes with this status.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<BoxStatus>, nullable = false)]
    pub status: Option<String>,
}

/// A page of boxes, in the order of their creation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ListBoxesResponse {
    /// The boxes.
    pub boxes: Vec<BoxResponse>,
    /// For the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

impl ListBoxesQuery {
    /// Sets [`page_size`](Self::page_size).
    #[must_use]
    pub fn page_size(mut self, size: u32) -> Self {
        self.page_size = Some(size);
        self
    }

    /// Sets [`page_token`](Self::page_token).
    #[must_use]
    pub fn page_token(mut self, token: impl Into<String>) -> Self {
        self.page_token = Some(token.into());
        self
    }

    /// Sets [`status`](Self::status).
    #[must_use]
    pub fn status(mut self, status: BoxStatus) -> Self {
        self.status = Some(status.name().to_owned());
        self
    }
}
