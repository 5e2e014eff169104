mod console;
mod foreground_run;
mod offline_box;

use std::process::ExitCode;

use clap::Args;
use vmm_rest::Client;
use vmm_rest::wire::ErrorCode;
use vmm_runtime::ConsoleReader;

use self::console::Console;
use self::foreground_run::ForegroundRun;
use self::offline_box::{BoxExit, OfflineBox};
use super::box_args::BoxArgs;
use crate::failure::{EXIT_SHIMD_FAILED, Failure};
use crate::home::Home;
use crate::output::{plain, print, print_error};
use crate::server_args::ServerArgs;

/// Create a box, start it, print its output, and exit with its exit code
///
/// The output is printed only if the daemon is reached through --home. Both stdout and stderr of
/// the box are printed to stdout; its stdin is empty. The first SIGINT (Ctrl-C), SIGTERM or SIGHUP
/// stops the box, a second one kills it.
///
/// The exit code is that of the command; 128 + N if the signal N killed it, or interrupted its
/// start; 127 if the command is not found; 126 if it cannot be executed; and 125 if shimd fails.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Exit as soon as the box is running, and print its id
    #[arg(short, long)]
    detach: bool,
    /// Remove the box when it has ended
    #[arg(long, conflicts_with = "restart")]
    rm: bool,
    #[command(flatten)]
    bx: BoxArgs,
    #[command(flatten)]
    server: ServerArgs,
}

impl Run {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        // Subscribes before the box starts, so that no event is missed.
        let foreground = if self.detach {
            None
        } else {
            Some(ForegroundRun::subscribe(&client).await?)
        };
        let bx = client
            .create(&self.bx.into_request().auto_remove(self.rm && self.detach))
            .await?;
        let id = bx.box_id;
        let result = match foreground {
            None => client
                .start(&id)
                .await
                .map(BoxExit::from)
                .map_err(Failure::from),
            Some(foreground) => {
                let offline = self.server.is_local(&home).then(|| OfflineBox {
                    dir: home.box_dir(&id),
                    outlives_daemon: bx.detach,
                });
                let console = offline
                    .as_ref()
                    .map(|offline| Console::spawn(ConsoleReader::new(offline.dir.clone())))
                    .transpose()?;
                foreground.run(&id, console, offline).await
            }
        };
        let code = match result {
            Ok(_) if self.detach => {
                print(format_args!("{}\n", plain(&id)))?;
                ExitCode::SUCCESS
            }
            result => exit_code(&client, &id, result).await,
        };
        if self.rm
            && !self.detach
            && let Err(error) = client.remove(&id, true).await
            // Another client may have removed the box.
            && error.code() != Some(ErrorCode::NotFound)
        {
            print_error(Failure::from(error).with_causes());
        }
        Ok(code)
    }
}

/// Prints why the box or the run failed, and returns the exit code of the payload, which a payload
/// that could not be started has too.
async fn exit_code(client: &Client, id: &str, result: Result<BoxExit, Failure>) -> ExitCode {
    let mut default = EXIT_SHIMD_FAILED;
    let exit = match result {
        Ok(exit) => {
            if exit.code.is_none()
                && let Some(reason) = &exit.error
            {
                print_error(format_args!("box {id}: {reason}"));
            }
            Some(exit)
        }
        Err(failure) => {
            default = failure.exit_code();
            print_error(failure.with_causes());
            if failure.is_output_error() {
                None
            } else {
                client.inspect(id).await.ok().map(BoxExit::from)
            }
        }
    };
    // The kernel keeps the low eight bits of an exit code, exit(3).
    let code = exit.and_then(|exit| u8::try_from(exit.code? & 0xff).ok());
    ExitCode::from(code.unwrap_or(default))
}
