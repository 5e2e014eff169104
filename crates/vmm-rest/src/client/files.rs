use std::io;
use std::time::Duration;

use futures::TryStreamExt;
use reqwest::{Body, Method, header};
use tokio::io::AsyncRead;
use tokio::time::timeout;
use tokio_util::io::{ReaderStream, StreamReader};

use super::{Client, ClientError};
use crate::wire::{GetFilesQuery, PutFilesQuery};

/// How many bytes of an archive are sent at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Files in guests.
impl Client {
    /// Extracts a tar archive in the guest of a running box. Returns when all files are extracted. The
    /// archive is read as fast as the guest writes, without a timeout.
    ///
    /// An archive that cannot be read fails with [`ClientError::Interrupted`].
    pub async fn put_files(
        &self,
        id: &str,
        query: &PutFilesQuery,
        archive: impl AsyncRead + Send + 'static,
    ) -> Result<(), ClientError> {
        let mut url = self.url(["v1", "boxes", id, "files"])?;
        let overwrite = query.overwrite.to_string();
        url.query_pairs_mut()
            .append_pair("path", &query.path)
            .append_pair("overwrite", &overwrite);
        if let Some(is_dir) = query.source_is_dir {
            url.query_pairs_mut()
                .append_pair("source_is_dir", &is_dir.to_string());
        }
        let chunks = ReaderStream::with_capacity(archive, CHUNK_BYTES);
        let request = self
            .authorized(self.http.request(Method::PUT, url))
            // The timeout of reqwest covers the whole body.
            .timeout(Duration::MAX)
            .header(header::CONTENT_TYPE, "application/x-tar")
            .body(Body::wrap_stream(chunks));
        self.send(request).await?.check().await?;
        Ok(())
    }

    /// Returns a file of the guest of a running box, or a directory with all that is below it, as a tar
    /// archive. A transfer that fails later is an error of the reader.
    ///
    /// A guest can send anything: extract the archive with `vmm-archive`, or another program that
    /// confines it to a directory.
    pub async fn get_files(
        &self,
        id: &str,
        query: &GetFilesQuery,
    ) -> Result<impl AsyncRead + Send + Unpin + use<>, ClientError> {
        let mut url = self.url(["v1", "boxes", id, "files"])?;
        let follow_symlinks = query.follow_symlinks.to_string();
        url.query_pairs_mut()
            .append_pair("path", &query.path)
            .append_pair("follow_symlinks", &follow_symlinks);
        // The timeout of reqwest covers the whole body.
        let request = self.authorized(self.http.get(url)).timeout(Duration::MAX);
        let response = async { self.send(request).await?.check().await };
        let response = timeout(self.response_timeout, response)
            .await
            .map_err(|_| ClientError::stream_idle(&self.at, self.response_timeout))??;
        Ok(StreamReader::new(
            response
                .chunks()
                .map_ok(io::Cursor::new)
                .map_err(io::Error::other),
        ))
    }
}
