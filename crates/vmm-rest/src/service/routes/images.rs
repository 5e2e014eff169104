use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::service::{ApiError, ApiState, extract, paging, run_blocking};
use crate::wire::{ErrorCode, ErrorResponse, ImageInfo, ListImagesQuery, ListImagesResponse};

/// The path parameter that identifies an image.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(
    dead_code,
    reason = "only describes the path parameter for the document"
)]
pub(super) struct ImageIdParam {
    /// The id of an image: its name.
    #[param(min_length = 1, max_length = 128, example = "debian:12")]
    image_id: String,
}

/// Lists the images that boxes can be created from, in order of their names.
#[utoipa::path(
    get, path = "/v1/images", tag = "Images", operation_id = "listImages",
    params(ListImagesQuery),
    responses(
        (status = 200, description = "A page of images", body = ListImagesResponse),
        (status = 400, description = "The query is malformed", body = ErrorResponse),
    ),
)]
pub(super) async fn list(
    State(api): State<ApiState>,
    extract::Query(query): extract::Query<ListImagesQuery>,
) -> Result<Json<ListImagesResponse>, ApiError> {
    let images = run_blocking(move || Ok(api.images.list()?)).await?;
    paging::image_page(images, &query).map(Json)
}

/// Returns an image.
#[utoipa::path(
    get, path = "/v1/images/{image_id}", tag = "Images", operation_id = "getImage",
    params(ImageIdParam),
    responses(
        (status = 200, description = "The image", body = ImageInfo),
        (status = 404, description = "The image was not found", body = ErrorResponse),
    ),
)]
pub(super) async fn inspect(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<ImageInfo>, ApiError> {
    find(api, id).await.map(Json)
}

/// Checks that an image exists.
#[utoipa::path(
    head, path = "/v1/images/{image_id}", tag = "Images", operation_id = "imageExists",
    params(ImageIdParam),
    responses(
        (status = 204, description = "The image exists"),
        (status = 404, description = "The image was not found"),
    ),
)]
pub(super) async fn exists(
    State(api): State<ApiState>,
    extract::Path(id): extract::Path<String>,
) -> Result<StatusCode, ApiError> {
    find(api, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn find(api: ApiState, id: String) -> Result<ImageInfo, ApiError> {
    run_blocking(move || match api.images.get(&id)? {
        Some(image) => Ok(image.into()),
        None => Err(ApiError::new(
            ErrorCode::NotFound,
            format!("image {id:?} not found; GET /v1/images lists the images"),
        )),
    })
    .await
}
