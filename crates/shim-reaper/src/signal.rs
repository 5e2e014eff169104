use std::fmt;

use nix::libc;

/// A signal: one of `signal(7)`, or a real-time signal.
///
/// It displays as its name, and converts from and to the number that it has on this architecture.
///
/// ```
/// use shim_reaper::Signal;
///
/// assert_eq!(Signal::SIGTERM.as_raw(), 15);
/// assert_eq!(Signal::try_from(9)?, Signal::SIGKILL);
/// assert_eq!(Signal::real_time(3).map(|signal| signal.to_string()).as_deref(), Some("SIGRTMIN+3"));
/// assert!(Signal::try_from(0).is_err());
/// # Ok::<(), shim_reaper::InvalidSignal>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(i32);

/// The error of [`Signal::try_from`](Signal) for a number that is not a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{number} is not a signal; pass 1 to 31, or SIGRTMIN to SIGRTMAX (34 to 64 with glibc)")]
pub struct InvalidSignal {
    number: i32,
}

macro_rules! signals {
    ($($(#[$attribute:meta])* $name:ident: $meaning:literal,)*) => {
        impl Signal {
            $(
                #[doc = $meaning]
                $(#[$attribute])*
                pub const $name: Self = Self(libc::$name);
            )*

            const NAMES: &[(i32, &str)] = &[$(
                $(#[$attribute])*
                (libc::$name, stringify!($name)),
            )*];
        }
    };
}

signals! {
    SIGHUP: "The terminal was closed, or a daemon reads its configuration again.",
    SIGINT: "Interrupt from the keyboard.",
    SIGQUIT: "Quit from the keyboard, with a core dump.",
    SIGILL: "Illegal instruction.",
    SIGTRAP: "Breakpoint.",
    SIGABRT: "`abort(3)` was called.",
    SIGBUS: "Access to memory that does not exist.",
    SIGFPE: "Arithmetic error.",
    SIGKILL: "Ends the process. It cannot be caught, blocked or ignored.",
    SIGUSR1: "For the use of the program.",
    SIGSEGV: "Invalid memory access.",
    SIGUSR2: "For the use of the program.",
    SIGPIPE: "Write to a pipe that has no reader.",
    SIGALRM: "A timer of `alarm(2)` has expired.",
    SIGTERM: "Asks the process to end.",
    // These architectures have no such signal.
    #[cfg(not(any(target_arch = "mips64", target_arch = "mips64r6", target_arch = "sparc64")))]
    SIGSTKFLT: "Stack fault of a coprocessor. Linux does not send it.",
    SIGCHLD: "A child has ended, stopped or continued.",
    SIGCONT: "Continues the process if it is stopped.",
    SIGSTOP: "Stops the process. It cannot be caught, blocked or ignored.",
    SIGTSTP: "Stop from the keyboard.",
    SIGTTIN: "A background process reads from the terminal.",
    SIGTTOU: "A background process writes to the terminal.",
    SIGURG: "Urgent data on a socket.",
    SIGXCPU: "The limit of CPU time is exceeded.",
    SIGXFSZ: "The limit of the file size is exceeded.",
    SIGVTALRM: "A timer of CPU time in user mode has expired.",
    SIGPROF: "A profiling timer has expired.",
    SIGWINCH: "The size of the terminal has changed.",
    SIGIO: "Input or output is possible on a descriptor.",
    SIGPWR: "The power supply has changed.",
    SIGSYS: "Bad system call.",
}

impl Signal {
    /// Returns the real-time signal `SIGRTMIN + n`, or `None` if it is above `SIGRTMAX`.
    ///
    /// ```
    /// # use shim_reaper::Signal;
    /// let signal = Signal::real_time(3).expect("glibc and musl have at least 28");
    /// assert_eq!(signal.to_string(), "SIGRTMIN+3");
    /// assert_eq!(Signal::real_time(100), None);
    /// ```
    pub fn real_time(n: u8) -> Option<Self> {
        let number = libc::SIGRTMIN() + i32::from(n);
        (number <= libc::SIGRTMAX()).then_some(Self(number))
    }

    /// Returns the number of the signal on this architecture.
    ///
    /// ```
    /// # use shim_reaper::Signal;
    /// assert_eq!(Signal::SIGKILL.as_raw(), 9);
    /// ```
    pub fn as_raw(self) -> i32 {
        self.0
    }
}

impl TryFrom<i32> for Signal {
    type Error = InvalidSignal;

    /// # Errors
    ///
    /// Fails for 0, for numbers above `SIGRTMAX`, and for 32 and 33, which the C library uses itself
    /// (`signal(7)`).
    fn try_from(number: i32) -> Result<Self, InvalidSignal> {
        let is_real_time = (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&number);
        if is_real_time || (1..=31).contains(&number) {
            Ok(Self(number))
        } else {
            Err(InvalidSignal { number })
        }
    }
}

impl From<Signal> for i32 {
    fn from(signal: Signal) -> Self {
        signal.as_raw()
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((_, name)) = Self::NAMES.iter().find(|(number, _)| *number == self.0) {
            return f.pad(name);
        }
        match self.0 - libc::SIGRTMIN() {
            n @ 0.. => f.pad(&format!("SIGRTMIN+{n}")),
            _ => f.pad(&format!("signal {}", self.0)),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_a_signal_is_accepted_and_no_other() {
        let valid = (-1..=70)
            .filter(|&number| Signal::try_from(number).is_ok())
            .count() as i32;
        assert_eq!(valid, 31 + libc::SIGRTMAX() - libc::SIGRTMIN() + 1);
        for number in [0, -1, 32, 33, 65, i32::MIN, i32::MAX] {
            assert!(Signal::try_from(number).is_err(), "{number}");
        }
    }

    /// `signal(7)` lists 31 signals.
    #[test]
    fn every_signal_has_a_name() {
        let numbers = (1..=31).chain([libc::SIGRTMIN(), libc::SIGRTMAX()]);
        let names: Vec<_> = numbers
            .map(|number| Signal::try_from(number).unwrap().to_string())
            .collect();
        let unnamed = names.iter().find(|name| !name.starts_with("SIG"));
        assert_eq!(unnamed, None, "{names:?}");
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        assert_eq!(Signal::SIGSTKFLT.as_raw(), 16);
    }

    #[test]
    fn signal_converts_to_its_number_and_shows_its_name() {
        assert_eq!(i32::from(Signal::SIGTERM), 15);
        assert_eq!(format!("{:?}", Signal::SIGTERM), "SIGTERM");
    }

    #[test]
    fn real_time_signals_are_named_after_the_first() {
        assert_eq!(Signal::real_time(0).unwrap().to_string(), "SIGRTMIN+0");
        assert_eq!(Signal::real_time(30).map(Signal::as_raw), Some(64));
        assert_eq!(Signal::real_time(31), None);
    }
}
