//! Pages of a list of boxes.

use ulid::Ulid;
use vmm_runtime::BoxInfo;

use super::ApiError;
use crate::wire::{BoxStatus, ListBoxesQuery, ListBoxesResponse};

const DEFAULT_SIZE: usize = 100;
const MAX_SIZE: usize = 1000;

/// What a page token is made of: the id of the last box of the page before. A box that is removed
/// or created meanwhile makes no other one be missed or listed twice.
const TOKEN: &str = "after-";

/// Of boxes in the order of their ids, the page that is asked for.
pub(crate) fn cut(
    boxes: Vec<BoxInfo>,
    query: &ListBoxesQuery,
) -> Result<ListBoxesResponse, ApiError> {
    let size = match query.page_size.map(usize::try_from) {
        None => DEFAULT_SIZE,
        Some(Ok(size @ 1..=MAX_SIZE)) => size,
        Some(_) => {
            let message = format!("pageSize must be between 1 and {MAX_SIZE}");
            return Err(ApiError::invalid(message));
        }
    };
    let last = match &query.page_token {
        None => "",
        Some(token) => token
            .strip_prefix(TOKEN)
            .filter(|id| Ulid::from_string(id).is_ok())
            .ok_or_else(|| {
                let message = "pageToken is none that this server has given; begin without one";
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
    let mut rest = boxes
        .into_iter()
        .filter(|info| info.id.as_str() > last)
        .filter(|info| status.is_none_or(|wanted| wanted == info.status.into()));
    let page: Vec<_> = rest.by_ref().take(size).collect();
    let next_page_token = match (page.last(), rest.next()) {
        (Some(last), Some(_)) => Some(format!("{TOKEN}{}", last.id)),
        _ => None,
    };
    Ok(ListBoxesResponse {
        boxes: page.into_iter().map(Into::into).collect(),
        next_page_token,
    })
}
