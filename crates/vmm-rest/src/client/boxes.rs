use std::time::Duration;

use reqwest::Method;
use tokio::time::timeout;

use super::{BoxLogs, Client, ClientError};
use crate::wire::{
    BoxMetricsResponse, BoxResponse, CreateBoxRequest, ListBoxesQuery, ListBoxesResponse,
    StopBoxRequest,
};

/// Boxes.
impl Client {
    /// Returns a page of boxes, in order of creation.
    pub async fn boxes(&self, query: &ListBoxesQuery) -> Result<ListBoxesResponse, ClientError> {
        let mut url = self.url(["v1", "boxes"])?;
        let pairs = [
            ("pageSize", query.page_size.map(|size| size.to_string())),
            ("pageToken", query.page_token.clone()),
            ("status", query.status.clone()),
        ];
        for (name, value) in pairs {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, &value);
            }
        }
        let request = self.authorized(self.http.get(url));
        self.send(request).await?.check().await?.json().await
    }

    /// Returns all boxes, in order of creation. The list is read in pages, and can include boxes that are
    /// created during the call.
    pub async fn all_boxes(&self) -> Result<Vec<BoxResponse>, ClientError> {
        let mut query = ListBoxesQuery::default().page_size(1000);
        let mut boxes = Vec::new();
        loop {
            let page = self.boxes(&query).await?;
            boxes.extend(page.boxes);
            match page.next_page_token {
                Some(token) => query = query.page_token(token),
                None => return Ok(boxes),
            }
        }
    }

    /// Returns the box with this id or name.
    pub async fn inspect(&self, id: &str) -> Result<BoxResponse, ClientError> {
        self.get(["v1", "boxes", id]).await
    }

    /// Returns whether a box has this id or name.
    pub async fn exists(&self, id: &str) -> Result<bool, ClientError> {
        self.head(["v1", "boxes", id]).await
    }

    /// Creates a box without starting it.
    pub async fn create(&self, body: &CreateBoxRequest) -> Result<BoxResponse, ClientError> {
        let request = self.request(Method::POST, ["v1", "boxes"])?.json(body);
        self.send(request).await?.check().await?.json().await
    }

    /// Creates a box once per key, a UUID. After an error, call this method again with the same key: if
    /// the first request has created a box, the server returns that box.
    pub async fn create_once(
        &self,
        body: &CreateBoxRequest,
        key: &str,
    ) -> Result<BoxResponse, ClientError> {
        let request = self.request(Method::POST, ["v1", "boxes"])?;
        let request = request.header("Idempotency-Key", key).json(body);
        self.send(request).await?.check().await?.json().await
    }

    /// Starts a box. Returns when the payload is ready, or at once if the box is running.
    pub async fn start(&self, id: &str) -> Result<BoxResponse, ClientError> {
        let request = self.request(Method::POST, ["v1", "boxes", id, "start"])?;
        self.send(request).await?.check().await?.json().await
    }

    /// Stops a box. Returns when it has ended, or at once if it is not running. The grace period of the
    /// request extends the timeout of the response.
    pub async fn stop(&self, id: &str, body: &StopBoxRequest) -> Result<BoxResponse, ClientError> {
        let request = self.request(Method::POST, ["v1", "boxes", id, "stop"])?;
        // The server rejects an invalid grace period.
        let grace = body.grace().unwrap_or_default();
        let request = request
            .timeout(self.response_timeout.saturating_add(grace))
            .json(body);
        self.send(request).await?.check().await?.json().await
    }

    /// Pauses a box: freezes its payload. Returns at once if it is paused.
    pub async fn pause(&self, id: &str) -> Result<BoxResponse, ClientError> {
        let request = self.request(Method::POST, ["v1", "boxes", id, "pause"])?;
        self.send(request).await?.check().await?.json().await
    }

    /// Resumes a box that is paused. Returns at once if it is not.
    pub async fn resume(&self, id: &str) -> Result<BoxResponse, ClientError> {
        let request = self.request(Method::POST, ["v1", "boxes", id, "resume"])?;
        self.send(request).await?.check().await?.json().await
    }

    /// Removes a box. A running box is removed only with `force`.
    pub async fn remove(&self, id: &str, force: bool) -> Result<(), ClientError> {
        let mut url = self.url(["v1", "boxes", id])?;
        if force {
            url.query_pairs_mut().append_pair("force", "true");
        }
        let request = self.authorized(self.http.delete(url));
        self.send(request).await?.check().await?;
        Ok(())
    }

    /// Returns the output of a box that is kept, or its last `tail` lines. With `follow`, the stream
    /// ends when the box has ended.
    pub async fn logs(
        &self,
        id: &str,
        follow: bool,
        tail: Option<u32>,
    ) -> Result<BoxLogs, ClientError> {
        let mut url = self.url(["v1", "boxes", id, "logs"])?;
        url.query_pairs_mut()
            .append_pair("follow", if follow { "true" } else { "false" });
        if let Some(lines) = tail {
            url.query_pairs_mut()
                .append_pair("tail", &lines.to_string());
        }
        // The timeout of reqwest covers the whole body.
        let request = self.authorized(self.http.get(url)).timeout(Duration::MAX);
        let response = async { self.send(request).await?.check().await };
        let response = timeout(self.response_timeout, response)
            .await
            .map_err(|_| ClientError::stream_idle(&self.at, self.response_timeout))??;
        Ok(BoxLogs::new(response))
    }

    /// Returns the resource usage of a box.
    pub async fn box_metrics(&self, id: &str) -> Result<BoxMetricsResponse, ClientError> {
        self.get(["v1", "boxes", id, "metrics"]).await
    }
}
