use std::process::ExitCode;

use clap::Args;
use vmm_rest::Client;
use vmm_rest::wire::{ExecutionInfo, ExecutionStatus};

use super::session::Session;
use super::terminal;
use crate::failure::Failure;
use crate::home::Home;
use crate::server_args::ServerArgs;

/// Attach to a command that `shimd exec` has started, and exit with its exit code
///
/// What the command has written since is printed first, at most the last 64 KiB. The signals, the
/// keys and the exit code are those of `shimd exec`.
#[derive(Args, Debug)]
pub(crate) struct Attach {
    /// Do not send stdin to the command
    #[arg(long)]
    no_stdin: bool,
    #[command(flatten)]
    server: ServerArgs,
    /// Id or name of the box
    #[arg(value_name = "BOX")]
    bx: String,
    /// Id of the execution [default: the only one that is running]
    execution: Option<String>,
}

impl Attach {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        let client = self.server.client(&home).await?;
        let execution = self.find(&client).await?;
        let session = Session {
            client: &client,
            box_id: &self.bx,
            execution: &execution.execution_id,
            interactive: !self.no_stdin && (!execution.tty || terminal::is_stdin_terminal()),
            tty: execution.tty,
        };
        session.run().await
    }

    async fn find(&self, client: &Client) -> Result<ExecutionInfo, Failure> {
        if let Some(execution) = &self.execution {
            return Ok(client.execution(&self.bx, execution).await?);
        }
        let mut running = client.executions(&self.bx).await?;
        running.retain(|execution| execution.status == ExecutionStatus::Running);
        match running.pop() {
            Some(execution) if running.is_empty() => Ok(execution),
            last => {
                let all = running.into_iter().chain(last);
                Err(Failure::WhichExecution {
                    name: self.bx.clone(),
                    running: all.map(|execution| execution.execution_id).collect(),
                })
            }
        }
    }
}
