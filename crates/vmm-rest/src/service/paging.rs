//! The pages of lists.

use vmm_runtime::{ImageInfo, ListOptions, VmmRuntime};

use super::ApiError;
use crate::wire::{
    BoxStatus, ListBoxesQuery, ListBoxesResponse, ListImagesQuery, ListImagesResponse,
};

const DEFAULT_PAGE_SIZE: usize = 100;
const PAGE_SIZE_MAX: usize = 1000;

/// The prefix of a page token. The id of the last item of the previous page follows, so that items that
/// are created or removed between two pages neither hide nor repeat others.
const TOKEN_PREFIX: &str = "after-";

/// Returns the page of boxes that a query asks for.
pub(crate) async fn list_page(
    runtime: &VmmRuntime,
    query: &ListBoxesQuery,
) -> Result<ListBoxesResponse, ApiError> {
    let size = page_size(query.page_size)?;
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
    options.after = match last_of_previous(query.page_token.as_deref())? {
        None => None,
        Some(id) => Some(id.parse().map_err(|_| invalid_token())?),
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

/// Returns the page of images that a query asks for, of all images in order of their names.
pub(crate) fn image_page(
    mut images: Vec<ImageInfo>,
    query: &ListImagesQuery,
) -> Result<ListImagesResponse, ApiError> {
    let size = page_size(query.page_size)?;
    if let Some(last) = last_of_previous(query.page_token.as_deref())? {
        images.retain(|image| image.name.as_str() > last);
    }
    let has_next = images.len() > size;
    images.truncate(size);
    let last = images.last().filter(|_| has_next);
    Ok(ListImagesResponse {
        next_page_token: last.map(|last| format!("{TOKEN_PREFIX}{}", last.name)),
        images: images.into_iter().map(Into::into).collect(),
    })
}

fn page_size(requested: Option<u32>) -> Result<usize, ApiError> {
    match requested.map(usize::try_from) {
        None => Ok(DEFAULT_PAGE_SIZE),
        Some(Ok(size @ 1..=PAGE_SIZE_MAX)) => Ok(size),
        Some(_) => {
            let message = format!("pageSize must be between 1 and {PAGE_SIZE_MAX}");
            Err(ApiError::invalid(message))
        }
    }
}

/// Returns the id in a page token.
fn last_of_previous(token: Option<&str>) -> Result<Option<&str>, ApiError> {
    token
        .map(|token| token.strip_prefix(TOKEN_PREFIX).ok_or_else(invalid_token))
        .transpose()
}

fn invalid_token() -> ApiError {
    ApiError::invalid("pageToken is invalid; start again without one")
}
