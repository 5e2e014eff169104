mod attended;
mod console;
mod console_reader;
mod end;
mod interrupts;
mod remains;

use std::process::ExitCode;

use clap::Args;
use vmm_rest::Client;
use vmm_rest::wire::ErrorCode;

use self::attended::Attended;
use self::console::Console;
use self::console_reader::ConsoleReader;
use self::end::End;
use self::remains::Remains;
use super::NewBox;
use crate::cli::{OWN_FAILURE, complain};
use crate::failure::Failure;
use crate::home::Home;
use crate::output::{plain, print};
use crate::server::Server;

/// Make a box, start it, show what it prints, and end as it does
///
/// What it prints can be shown only when the daemon is reached through --home. It is shown on
/// stdout, also what it prints to stderr; its stdin is empty. Ctrl-C, SIGTERM, or the end of the
/// terminal stops it, another one kills it. The exit code is that of the command, 128 + N if the
/// signal N ended it or came before it ran, 127 if there is no such command, 126 if it cannot be
/// executed, and 125 for everything else that goes wrong.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// Return as soon as it runs, and print its id
    #[arg(short, long)]
    detach: bool,
    /// Remove it when it has ended
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    #[command(flatten)]
    new_box: NewBox,
    #[command(flatten)]
    server: Server,
}

impl Run {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        // Before the box can start, so that its end cannot be missed.
        let attended = match self.detach {
            true => None,
            false => Some(Attended::begin(&client).await?),
        };
        let made = client.create(&self.new_box.request()).await?;
        let id = made.box_id;
        let outcome = match attended {
            None => client
                .start(&id)
                .await
                .map(End::from)
                .map_err(Failure::from),
            Some(attended) => {
                let is_local = self.server.is_local(&home);
                let remains = is_local.then(|| Remains {
                    dir: home.box_dir(&id),
                    outlives: made.detach,
                });
                let console = remains
                    .as_ref()
                    .map(|remains| Console::follow(ConsoleReader::new(remains.dir.clone())))
                    .transpose()?;
                attended.until_end(&id, console, remains).await
            }
        };
        let code = match outcome {
            Ok(_) if self.detach => {
                print(format_args!("{}\n", plain(&id)))?;
                ExitCode::SUCCESS
            }
            outcome => code_of(&client, &id, outcome).await,
        };
        if self.rm
            && let Err(error) = client.remove(&id, true).await
            // Somebody else was faster.
            && error.code() != Some(ErrorCode::NotFound)
        {
            complain(Failure::from(error));
        }
        Ok(code)
    }
}

/// The payload's, also when it could not be started.
async fn code_of(client: &Client, id: &str, outcome: Result<End, Failure>) -> ExitCode {
    let mut otherwise = OWN_FAILURE;
    let ended = match outcome {
        Ok(ended) => {
            if ended.code.is_none()
                && let Some(reason) = &ended.error
            {
                complain(format_args!("the box {id}: {reason}"));
            }
            Some(ended)
        }
        Err(failure) => {
            let is_ours = failure.is_of_output();
            otherwise = failure.exit_code();
            complain(failure);
            match is_ours {
                true => None,
                false => client.inspect(id).await.ok().map(End::from),
            }
        }
    };
    // As the kernel cuts it.
    let code = ended.and_then(|ended| u8::try_from(ended.code? & 0xff).ok());
    ExitCode::from(code.unwrap_or(otherwise))
}
