use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::process::{ExitStatus, Output};

use crate::c_strings::{CStringArray, CStrings, NulByte};
use crate::child::{Child, Streams};
use crate::command::Command;
use crate::command::streams::connect;
use crate::error::{Cause, Failure, SpawnError, Step};
use crate::path_search;
use crate::plan::Plan;
use crate::stdio::Stdio;
use crate::sys;

/// What the standard streams are connected to where the command does not set it.
type Defaults = [Stdio; 3];

const INHERITED: Defaults = [Stdio::INHERIT, Stdio::INHERIT, Stdio::INHERIT];
const CAPTURED: Defaults = [Stdio::NULL, Stdio::PIPED, Stdio::PIPED];

impl Command {
    /// Spawns the child, and returns when it executes the program. Until then the calling thread is
    /// blocked: see [How it works](crate#how-it-works).
    ///
    /// By default the child inherits the standard streams. Wait for the child, or it stays a zombie.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let mut child = Command::new("true").spawn()?;
    /// assert!(child.wait()?.success());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if the child cannot execute the program, or fails in a [step](Step) before that. No child is
    /// left then: this has reaped it, even if SIGCHLD is ignored or another thread waits for all children.
    pub fn spawn(&mut self) -> Result<Child, SpawnError> {
        let (born, streams) = self.launch(&INHERITED, sys::spawn)?;
        Ok(Child::new(born.pid, born.pidfd, streams))
    }

    /// Spawns the child, waits for it, and returns its exit status.
    ///
    /// By default the child inherits the standard streams. Use [`output`](Self::output) to get what it
    /// writes.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let status = Command::new("sh").args(["-c", "exit 3"]).status()?;
    /// assert_eq!(status.code(), Some(3));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`spawn`](Self::spawn) and [`Child::wait`].
    pub fn status(&mut self) -> io::Result<ExitStatus> {
        self.spawn()?.wait()
    }

    /// Spawns the child, waits for it, and returns its exit status and all that it wrote to its standard
    /// output and standard error.
    ///
    /// By default both are pipes, and the standard input is `/dev/null`. The output is kept in memory,
    /// without a limit.
    ///
    /// ```
    /// # use pidfd_spawn::Command;
    /// let output = Command::new("echo").arg("hello").output()?;
    /// assert!(output.status.success());
    /// assert_eq!(output.stdout, b"hello\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`spawn`](Self::spawn) and [`Child::wait_with_output`].
    pub fn output(&mut self) -> io::Result<Output> {
        let (born, streams) = self.launch(&CAPTURED, sys::spawn)?;
        Child::new(born.pid, born.pidfd, streams).wait_with_output()
    }

    /// Replaces the program of this process, after the same steps as for a child. Returns only if it fails.
    ///
    /// Use it for a program that prepares its process and then becomes another one, such as a wrapper.
    ///
    /// After an error, end the process: the steps before the failed one remain in effect. Those that concern
    /// a thread, such as the user ID, have changed the calling thread only, and [descriptors](Self::fd) have
    /// replaced those that this process had under the same numbers.
    ///
    /// ```no_run
    /// # use pidfd_spawn::Command;
    /// let error = Command::new("worker").no_new_privs(true).exec();
    /// eprintln!("{error}");
    /// std::process::exit(127);
    /// ```
    #[must_use]
    pub fn exec(&mut self) -> SpawnError {
        let Err(error) = self.launch(&INHERITED, |plan| Err::<Infallible, _>(sys::exec(plan)));
        error
    }

    /// Prepares the plan, and starts the child with it.
    pub(crate) fn launch<T>(
        &mut self,
        defaults: &Defaults,
        start: impl FnOnce(&mut Plan<'_>) -> Result<T, Failure>,
    ) -> Result<(T, Streams), SpawnError> {
        self.try_launch(defaults, start)
            .map_err(|cause| SpawnError::new(&self.program, cause))
    }

    fn try_launch<T>(
        &mut self,
        defaults: &Defaults,
        start: impl FnOnce(&mut Plan<'_>) -> Result<T, Failure>,
    ) -> Result<(T, Streams), Cause> {
        let captured = self.environment.capture()?;
        let executable = self.executable.as_ref().unwrap_or(&self.program);
        let candidates = path_search::candidates(executable, captured.path.as_deref())?;
        let arguments = self.argument_strings()?;
        let current_dir = self
            .current_dir
            .as_ref()
            .map(|dir| CString::new(dir.as_os_str().as_bytes()))
            .transpose()
            .map_err(|_| NulByte)?;
        let [stdin, stdout, stderr] = &self.streams;
        let configured = [
            stdin.as_ref().unwrap_or(&defaults[0]),
            stdout.as_ref().unwrap_or(&defaults[1]),
            stderr.as_ref().unwrap_or(&defaults[2]),
        ];
        let (descriptors, streams) = connect(configured, &self.descriptors)
            .map_err(|error| Cause::new(Step::Stdio, error))?;
        let landlock = self
            .attributes
            .landlock
            .as_ref()
            .map(|ruleset| descriptors.keep(ruleset.try_clone()?))
            .transpose()
            .map_err(|error| Cause::new(Step::Stdio, error))?;

        let mut plan = Plan {
            candidates,
            arguments,
            environment: captured.strings,
            current_dir,
            descriptors,
            landlock,
            attributes: &self.attributes,
            pre_exec: &mut self.pre_exec,
        };
        let started = start(&mut plan)?;
        Ok((started, streams))
    }

    fn argument_strings(&self) -> Result<CStringArray, NulByte> {
        let mut arguments = CStrings::default();
        let arg0 = self.arg0.as_ref().unwrap_or(&self.program);
        for arg in [arg0].into_iter().chain(&self.args) {
            arguments.push(&[arg.as_bytes()])?;
        }
        Ok(arguments.freeze())
    }
}
