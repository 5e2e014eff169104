mod attach;
mod detach_keys;
mod session;
mod terminal;

use std::process::ExitCode;

use clap::Args;
use vmm_rest::wire::ExecRequest;
use vmm_rest::{Client, ClientError};

pub(crate) use self::attach::Attach;
use self::session::Session;
use super::box_args::parse_variable;
use crate::failure::{EXIT_SHIMD_FAILED, Failure};
use crate::home::Home;
use crate::output::{plain, print, print_error};
use crate::server_args::ServerArgs;

/// Run a command in a running box, and exit with its exit code
///
/// SIGINT (Ctrl-C), SIGTERM and SIGHUP are sent to the command; a second SIGINT or SIGTERM kills it.
/// With --interactive and --tty, the terminal sends all keys to the command, and Ctrl-P Ctrl-Q leaves
/// the command running: `shimd attach` returns to it.
///
/// The exit code is that of the command; 128 + N if the signal N killed it; 127 if the command is
/// not found; 126 if it cannot be executed; and 125 if shimd fails.
#[derive(Args, Debug)]
pub(crate) struct Exec {
    /// Send stdin to the command
    #[arg(short, long)]
    interactive: bool,
    /// Run the command in a terminal
    #[arg(short, long)]
    tty: bool,
    /// Exit as soon as the command is running, and print the id of the execution
    #[arg(short, long, conflicts_with = "interactive")]
    detach: bool,
    /// Set an environment variable; without a value, copy it from this environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Working directory of the command
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// Id or name of the box
    #[arg(value_name = "BOX")]
    bx: String,
    /// Command to run
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Exec {
    pub(crate) async fn run(self, home: Home) -> Result<ExitCode, Failure> {
        if self.interactive && self.tty && !terminal::is_stdin_terminal() {
            return Err(Failure::InputNotATerminal);
        }
        let client = self.server.client(&home).await?;
        let bx = client.inspect(&self.bx).await?;
        if !bx.status.is_alive() && !bx.starting {
            return Err(Failure::NotRunning { name: self.bx });
        }
        let mut command = self.command.into_iter();
        let mut request = ExecRequest::new(command.next().unwrap_or_default(), command);
        let env = self.env.iter().filter_map(|arg| parse_variable(arg));
        request.env = Some(env.collect());
        request.working_dir = self.workdir;
        request.tty = Some(self.tty);
        request.stdin = Some(self.interactive || self.tty);
        let execution = match start(&client, &bx.box_id, &request).await {
            Ok(execution) => execution,
            Err(error) => return Ok(start_failed(error)),
        };
        if self.detach {
            print(format_args!("{}\n", plain(&execution)))?;
            return Ok(ExitCode::SUCCESS);
        }
        let session = Session {
            client: &client,
            box_id: &bx.box_id,
            execution: &execution,
            interactive: self.interactive,
            tty: self.tty,
        };
        session.run().await
    }
}

async fn start(client: &Client, id: &str, request: &ExecRequest) -> Result<String, ClientError> {
    Ok(client.exec(id, request).await?.execution_id)
}

/// Prints why a command could not be started, and returns the exit code of docker.
fn start_failed(error: ClientError) -> ExitCode {
    let code = error.exit_code().unwrap_or(EXIT_SHIMD_FAILED);
    print_error(Failure::from(error).with_causes());
    ExitCode::from(code)
}
