use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// An image that boxes can be created from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ImageInfo {
    /// The name of the image.
    #[schema(example = "debian:12")]
    pub reference: String,
    /// The name without its tag.
    #[schema(example = "debian")]
    pub repository: String,
    /// The tag, `latest` for a name without one.
    #[schema(example = "12")]
    pub tag: String,
    /// The id of the image: on this server, its name.
    #[schema(example = "debian:12")]
    pub id: String,
    /// When the image was built, or read by the server.
    #[schema(value_type = String, format = DateTime)]
    pub cached_at: Timestamp,
    /// The space in bytes that the files of the image take. Absent for an image without files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// The query of a list of images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(default, rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
#[non_exhaustive]
pub struct ListImagesQuery {
    /// The maximum number of images in a page, up to 1000; 100 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(minimum = 1, maximum = 1000, default = 100, nullable = false)]
    pub page_size: Option<u32>,
    /// The `next_page_token` of the previous page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[param(nullable = false, pattern = r"^after-")]
    pub page_token: Option<String>,
}

/// A page of images, in order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[non_exhaustive]
pub struct ListImagesResponse {
    /// The images of the page.
    pub images: Vec<ImageInfo>,
    /// The token of the next page; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page_token: Option<String>,
}

impl ListImagesQuery {
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
}

#[cfg(feature = "server")]
impl From<vmm_runtime::ImageInfo> for ImageInfo {
    fn from(info: vmm_runtime::ImageInfo) -> Self {
        let (repository, tag) = match info.name.rsplit_once(':') {
            Some((repository, tag)) => (repository.to_owned(), tag.to_owned()),
            None => (info.name.clone(), "latest".to_owned()),
        };
        Self {
            id: info.name.clone(),
            reference: info.name,
            repository,
            tag,
            cached_at: info.created_at,
            size_bytes: info.size_bytes,
        }
    }
}
