mod outgoing;
mod place;

use std::fs;
use std::io::{self, IsTerminal, PipeWriter};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::spawn_blocking;
use vmm_archive::{ArchiveError, CreateOptions, ExtractOptions, create, extract};
use vmm_rest::Client;
use vmm_rest::wire::{GetFilesQuery, PutFilesQuery};

use self::outgoing::Outgoing;
use self::place::Place;
use crate::failure::Failure;
use crate::home::Home;
use crate::server_args::ServerArgs;

/// Copy files from or to the guest of a running box
///
/// One of SRC and DST is BOX:PATH, where PATH is relative to the root of the guest. The other is a
/// local path, or `-` for a tar archive on stdin or stdout. A local path with a colon needs a slash
/// before it: ./a:b.
///
/// A directory is copied with all that is below it: into DST if that is a directory, and under the
/// name DST otherwise. SRC/. stands for the contents of the directory. Files that exist are replaced.
///
/// Files belong to root in the guest, and to the caller on this host, where nothing is written outside
/// of DST.
#[derive(Args, Debug)]
pub(crate) struct Copy {
    /// Keep the owners of all files. On this host, this needs root, and also keeps set-user-ID bits and
    /// devices: use it only for a box that you trust
    #[arg(short, long)]
    archive: bool,
    /// Copy the targets of symbolic links in SRC, in place of the links
    #[arg(short = 'L', long)]
    follow_link: bool,
    #[command(flatten)]
    server: ServerArgs,
    /// What to copy: BOX:PATH, a local path, or `-`
    #[arg(value_name = "SRC", allow_hyphen_values = true)]
    source: Place,
    /// Where to: BOX:PATH, a local path, or `-`
    #[arg(value_name = "DST", allow_hyphen_values = true)]
    destination: Place,
}

impl Copy {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = || self.server.client(&home);
        match (&self.source, &self.destination) {
            (Place::Stream, Place::Guest { bx, path }) => {
                let query = PutFilesQuery::new(path);
                let copy = |mut pipe| io::copy(&mut io::stdin().lock(), &mut pipe);
                let write = move |pipe| copy(pipe).map(drop).map_err(ArchiveError::Read);
                send(&client().await?, bx, &query, write).await?;
            }
            (Place::Local(source), Place::Guest { bx, path }) => {
                self.send_tree(&client().await?, source, bx, path).await?;
            }
            (Place::Guest { bx, path }, Place::Stream) => {
                if io::stdout().is_terminal() {
                    return Err(Failure::ArchiveOnTerminal);
                }
                let archive = client().await?.get_files(bx, &self.query(path)).await?;
                print_archive(archive).await?;
            }
            (Place::Guest { bx, path }, Place::Local(destination)) => {
                let archive = client().await?.get_files(bx, &self.query(path)).await?;
                self.receive(archive, destination.clone()).await?;
            }
            _ => return Err(Failure::CopyWithoutBox),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn query(&self, path: &str) -> GetFilesQuery {
        GetFilesQuery::new(path).follow_symlinks(self.follow_link)
    }

    async fn send_tree(
        &self,
        client: &Client,
        source: &Path,
        bx: &str,
        path: &str,
    ) -> Result<(), Failure> {
        let metadata = if self.follow_link {
            fs::metadata(source)
        } else {
            fs::symlink_metadata(source)
        };
        // An error of it is an error of the archive, too.
        let is_dir = metadata.is_ok_and(|metadata| metadata.is_dir());
        let query = PutFilesQuery::new(path).copy_of(is_dir);
        let mut options = CreateOptions::default().follow_symlinks(self.follow_link);
        if !self.archive {
            options = options.owner(0, 0);
        }
        let source = source.to_owned();
        let write = move |pipe| create(&source, pipe, &options);
        send(client, bx, &query, write).await
    }

    async fn receive(
        &self,
        mut archive: impl AsyncRead + Unpin,
        destination: PathBuf,
    ) -> Result<(), Failure> {
        let options = ExtractOptions::default()
            .rename_root(true)
            .preserve(self.archive);
        let pipe_error = || Failure::system("create a pipe");
        let (reader, writer) = io::pipe().map_err(pipe_error())?;
        let extraction = spawn_blocking(move || extract(reader, &destination, &options));
        let writer = pipe::Sender::from_owned_fd(writer.into());
        let mut writer = writer.map_err(pipe_error())?;
        let received = tokio::io::copy(&mut archive, &mut writer).await;
        drop(writer);
        match extraction.await {
            Ok(extracted) => extracted?,
            Err(error) => return Err(Failure::system("extract the archive")(error.into())),
        }
        received.map_err(Failure::system("receive the archive"))?;
        Ok(())
    }
}

/// Sends the archive that a thread writes.
async fn send(
    client: &Client,
    bx: &str,
    query: &PutFilesQuery,
    write: impl FnOnce(PipeWriter) -> Result<(), ArchiveError> + Send + 'static,
) -> Result<(), Failure> {
    let archive = Outgoing::start(write).map_err(Failure::system("create the archive"))?;
    let failure = archive.failure();
    let sent = client.put_files(bx, query, archive).await;
    // The cause of a request that was not completed.
    match failure.take() {
        Some(error) => Err(error.into()),
        None => Ok(sent?),
    }
}

async fn print_archive(mut archive: impl AsyncRead + Unpin) -> Result<(), Failure> {
    let mut stdout = tokio::io::stdout();
    tokio::io::copy(&mut archive, &mut stdout)
        .await
        .map_err(Failure::system("copy the archive to stdout"))?;
    stdout.flush().await.map_err(Failure::Output)
}
