//! Pages of a list of boxes.

use vmm_runtime::{BoxInfo, VmmRuntime};

use super::ApiError;
use crate::wire::{BoxStatus, ListBoxesQuery, ListBoxesResponse};

const DEFAULT_SIZE: usize = 100;
const MAX_SIZE: usize = 1000;

/// What a page token is made of: the id of the last box of the page before. A box that is removed
/// or created meanwhile makes no other one be missed or listed twice.
const TOKEN: &str = "after-";

/// The page that is asked for.
pub(crate) async fn find(
    runtime: &VmmRuntime,
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
            // A damaged box has whatever name its directory has.
            .filter(|id| !id.is_empty() && !id.contains(['/', '\0']))
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
    let is_wanted = |info: &BoxInfo| status.is_none_or(|wanted| wanted == info.into());

    let mut last = last.to_owned();
    let mut page: Vec<BoxInfo> = Vec::new();
    loop {
        // One more than fits, to see whether there is another page.
        let batch = runtime.list_after(&last, size + 1).await;
        let is_rest = batch.len() <= size;
        for info in batch {
            last.clone_from(&info.id);
            if !is_wanted(&info) {
                continue;
            }
            if page.len() == size {
                return Ok(answer(page, true));
            }
            page.push(info);
        }
        if is_rest {
            return Ok(answer(page, false));
        }
    }
}

fn answer(page: Vec<BoxInfo>, has_next: bool) -> ListBoxesResponse {
    let last = page.last().filter(|_| has_next);
    ListBoxesResponse {
        next_page_token: last.map(|last| format!("{TOKEN}{}", last.id)),
        boxes: page.into_iter().map(Into::into).collect(),
    }
}
