use tokio::io::AsyncRead;
use vmm_protocol::frames::HostMessage;

use super::{Execution, FileArchive, receive_archive, send_archive, start_transfer};
use crate::{BoxId, GetSpec, PutSpec, RuntimeError, VmmRuntime};

/// Files in guests.
impl VmmRuntime {
    /// Extracts a tar archive in the guest of a box. Owners and modes are those of the archive.
    ///
    /// No path of the archive leads out of [`PutSpec::path`]. Returns when all is extracted. The
    /// reader waits while the guest does.
    ///
    /// ```no_run
    /// # use vmm_runtime::{PutSpec, VmmRuntime};
    /// # async fn example(runtime: VmmRuntime) -> Result<(), Box<dyn std::error::Error>> {
    /// let archive = tokio::fs::File::open("site.tar").await?;
    /// runtime.put("web", PutSpec::new("/var/www"), archive).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`exec`](Self::exec). The source of [`RuntimeError::Exec`] is
    /// [`ExecError::Archive`](crate::ExecError::Archive) if the archive cannot be read, or
    /// [`ExecError::Refused`](crate::ExecError::Refused) with the kind `NotFound`, `NotADirectory`,
    /// `Exists`, `Invalid` for a malformed archive, or `Unsupported` if the payload is not a guest.
    /// What was extracted before stays.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the guest stops extracting. What was extracted before stays.
    pub async fn put(
        &self,
        id_or_name: &str,
        spec: PutSpec,
        archive: impl AsyncRead + Unpin,
    ) -> Result<(), RuntimeError> {
        let (id, transfer) = self
            .start_transfer(id_or_name, HostMessage::Put(spec))
            .await?;
        let sent = send_archive(transfer, archive).await;
        sent.map_err(|source| RuntimeError::Exec { id, source })
    }

    /// Returns a file of the guest of a box, or a directory with all that is below it, as a tar
    /// archive. A file that changes meanwhile keeps the size that it had.
    ///
    /// A guest can send anything: extract the archive with `vmm-archive`, or another program that
    /// confines it to a directory.
    ///
    /// # Errors
    ///
    /// Those of [`put`](Self::put), before the first byte is sent. Later ones are errors of the
    /// reader.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the transfer ends.
    pub async fn get(&self, id_or_name: &str, spec: GetSpec) -> Result<FileArchive, RuntimeError> {
        let (id, transfer) = self
            .start_transfer(id_or_name, HostMessage::Get(spec))
            .await?;
        let received = receive_archive(transfer).await;
        received.map_err(|source| RuntimeError::Exec { id, source })
    }

    async fn start_transfer(
        &self,
        id_or_name: &str,
        request: HostMessage,
    ) -> Result<(BoxId, Execution), RuntimeError> {
        self.check_not_paused(id_or_name)?;
        let id = self.core().boxes.find(id_or_name)?.id().clone();
        let started = self
            .request_shim(id.as_str(), |core, dir| start_transfer(core, dir, request))
            .await?;
        Ok((id, started))
    }
}
