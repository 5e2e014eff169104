//! The pages of a list of boxes.

use vmm_runtime::{BoxInfo, VmmRuntime};

use super::ApiError;
use crate::wire::{BoxStatus, ListBoxesQuery, ListBoxesResponse};

const DEFAULT_PAGE_SIZE: usize = 100;
const PAGE_SIZE_MAX: usize = 1000;

/// The prefix of a page token. The id of the last box of the previous page follows, so that boxes that
/// are created or removed between two pages neither hide nor repeat others.
const TOKEN_PREFIX: &str = "after-";

/// Returns the page of boxes that a query asks for.
pub(crate) async fn list_page(
    runtime: &VmmRuntime,
    query: &ListBoxesQuery,
) -> Result<ListBoxesResponse, ApiError> {
    let size = match query.page_size.map(usize::try_from) {
        None => DEFAULT_PAGE_SIZE,
        Some(Ok(size @ 1..=PAGE_SIZE_MAX)) => size,
        Some(_) => {
            let message = format!("pageSize must be between 1 and {PAGE_SIZE_MAX}");
            return Err(ApiError::invalid(message));
        }
    };
    let last = match &query.page_token {
        None => "",
        Some(token) => token
            .strip_prefix(TOKEN_PREFIX)
            // The id of a damaged box is the name of its directory, so any file name is valid.
            .filter(|id| !id.is_empty() && !id.contains(['/', '\0']))
            .ok_or_else(|| {
                let message = "pageToken is invalid; start again without one";
                ApiError::invalid(message)
            })?,
    };
    let status: Option<BoxStatus> = match &query.status {
        None => None,
        Some(name) => {
            let parsed = name.parse();
            Some(parsed.map_err(|error| ApiError::invalid(format!("status: {error}")))?)
        }
    };
    let is_match = |info: &BoxInfo| status.is_none_or(|status| status == info.into());

    let mut last = last.to_owned();
    let mut page: Vec<BoxInfo> = Vec::new();
    loop {
        // One more than fits, which shows whether there is another page.
        let batch = runtime.list_after(&last, size + 1).await;
        let is_last_batch = batch.len() <= size;
        for info in batch {
            info.id.as_str().clone_into(&mut last);
            if !is_match(&info) {
                continue;
            }
            if page.len() == size {
                return Ok(response(page, true));
            }
            page.push(info);
        }
        if is_last_batch {
            return Ok(response(page, false));
        }
    }
}

fn response(page: Vec<BoxInfo>, has_next: bool) -> ListBoxesResponse {
    let last = page.last().filter(|_| has_next);
    ListBoxesResponse {
        next_page_token: last.map(|last| format!("{TOKEN_PREFIX}{}", last.id)),
        boxes: page.into_iter().map(Into::into).collect(),
    }
}
