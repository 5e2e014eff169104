use super::{Client, ClientError};
use crate::wire::{ImageInfo, ListImagesQuery, ListImagesResponse};

/// Images. The methods with a name fail with [`ClientError::Name`] if it cannot be that of an image.
impl Client {
    /// Returns a page of the images that boxes can be created from, in order of their names.
    pub async fn images(&self, query: &ListImagesQuery) -> Result<ListImagesResponse, ClientError> {
        let mut url = self.url(["v1", "images"])?;
        let pairs = [
            ("pageSize", query.page_size.map(|size| size.to_string())),
            ("pageToken", query.page_token.clone()),
        ];
        for (name, value) in pairs {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, &value);
            }
        }
        let request = self.authorized(self.http.get(url));
        self.send(request).await?.check().await?.json().await
    }

    /// Returns the image of this name.
    pub async fn image(&self, name: &str) -> Result<ImageInfo, ClientError> {
        self.get(["v1", "images", name]).await
    }

    /// Returns whether an image has this name.
    pub async fn image_exists(&self, name: &str) -> Result<bool, ClientError> {
        self.head(["v1", "images", name]).await
    }
}
