//! The pages of a list of boxes.

use vmm_runtime::{ListOptions, VmmRuntime};

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
    let mut options = match &query.status {
        None => ListOptions::default(),
        Some(name) => {
            let parsed = name.parse::<BoxStatus>();
            let status = parsed.map_err(|error| ApiError::invalid(format!("status: {error}")))?;
            match status.options() {
                Some(options) => options,
                None => return Ok(ListBoxesResponse::default()),
            }
        }
    };
    options.after = match &query.page_token {
        None => None,
        Some(token) => {
            let last = token.strip_prefix(TOKEN_PREFIX);
            let message = "pageToken is invalid; start again without one";
            let id = last.and_then(|id| id.parse().ok());
            Some(id.ok_or_else(|| ApiError::invalid(message))?)
        }
    };
    // One more than fits, which shows whether there is another page.
    options.limit = Some(size + 1);
    let mut page = runtime.list_with(&options).await;
    let has_next = page.len() > size;
    page.truncate(size);
    let last = page.last().filter(|_| has_next);
    Ok(ListBoxesResponse {
        next_page_token: last.map(|last| format!("{TOKEN_PREFIX}{}", last.id)),
        boxes: page.into_iter().map(Into::into).collect(),
    })
}
