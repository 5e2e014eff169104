use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{BoxResponse, BoxStatus};

/// The query of a list of boxes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
#[non_exhaustive]
pub struct ListBoxesQuery {
    /// The maximum number of boxes in a page, up to 1000; 100 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000, default = 100, nullable = false)]
    pub page_size: Option<u32>,
    /// The `next_page_token` of the previous page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(nullable = false, pattern = r"^after-[^/\x00]+$")]
    pub page_token: Option<String>,
    /// Lists only boxes with this status.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<BoxStatus>, nullable = false)]
    pub status: Option<String>,
}

/// A page of boxes, in order of creation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ListBoxesResponse {
    /// The boxes of the page.
    pub boxes: Vec<BoxResponse>,
    /// The token of the next page; absent on the last page.
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
