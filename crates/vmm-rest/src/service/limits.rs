use std::time::Duration;

/// The limits and timeouts of a server.
///
/// ```
/// use vmm_rest::Limits;
///
/// let limits = Limits::default().connections(64);
/// assert_eq!(limits.body_bytes, 1 << 20);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// The longest body of a request, in bytes; 1 MiB by default. A body that the server ignores can
    /// have at most 1 KiB.
    pub body_bytes: usize,
    /// How long a client may take to send the head of a request, and be idle between two requests;
    /// 10 s by default.
    pub head_timeout: Duration,
    /// How long a client may take to send a body; 10 s by default.
    pub body_timeout: Duration,
    /// How long a request may take, in addition to the grace period of a stop; 90 s by default, longer
    /// than starting a box or killing it can take.
    pub request_timeout: Duration,
    /// How long a client may read nothing of a pending response before the server closes the
    /// connection; 30 s by default. The time starts when the buffers of the kernel are full.
    pub write_timeout: Duration,
    /// The maximum number of concurrent connections to all Unix sockets, and separately over TCP; 512
    /// by default. Further connections wait in the backlog.
    ///
    /// When all TCP slots are taken, the server closes the oldest unauthenticated connection. An
    /// unauthenticated client gets one response per connection, and can hold the connection for at most
    /// `head_timeout` plus `body_timeout`.
    ///
    /// The value is capped at a quarter of the process's file descriptor limit, which leaves half of
    /// the descriptors to the shims.
    pub connections: usize,
    /// The maximum number of streams, which last as long as their client: of events, of a log that is
    /// followed, of an execution, of the files of a guest; 256 by default. Further ones are rejected, and
    /// so are new executions while no client could attach to them.
    pub streams: usize,
    /// How long a client that is attached to an execution may send nothing, not even the response to a
    /// ping, before the server closes its connection; 45 s by default, as the public API defines. The
    /// server sends three pings in that time. A client that has not read all output yet may be silent
    /// for longer, since it reads the ping after that.
    pub attach_timeout: Duration,
    /// How long the reaper may go without a sweep before the server reports that it is not ready; 10 s
    /// by default, forty times the default sweep interval of a VMM runtime.
    pub reaper_stall_timeout: Duration,
    /// Whether a box is limited to 1 processor and 512 MiB if neither its request nor its image sets
    /// limits; true by default.
    ///
    /// Without [control groups](vmm_runtime::ControlGroup::check), the memory limit also counts address
    /// space that is only reserved, such as thread stacks, which few programs expect.
    pub apply_default_limits: bool,
    /// How long the server waits for requests to finish when it shuts down; 60 s by default.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 1 << 20,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(90),
            write_timeout: Duration::from_secs(30),
            connections: 512,
            streams: 256,
            attach_timeout: Duration::from_secs(45),
            reaper_stall_timeout: Duration::from_secs(10),
            apply_default_limits: true,
            drain_timeout: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// Sets [`body_bytes`](Self::body_bytes).
    #[must_use]
    pub fn body_bytes(mut self, bytes: usize) -> Self {
        self.body_bytes = bytes;
        self
    }

    /// Sets [`head_timeout`](Self::head_timeout).
    #[must_use]
    pub fn head_timeout(mut self, timeout: Duration) -> Self {
        self.head_timeout = timeout;
        self
    }

    /// Sets [`body_timeout`](Self::body_timeout).
    #[must_use]
    pub fn body_timeout(mut self, timeout: Duration) -> Self {
        self.body_timeout = timeout;
        self
    }

    /// Sets [`request_timeout`](Self::request_timeout).
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets [`write_timeout`](Self::write_timeout).
    #[must_use]
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.write_timeout = timeout;
        self
    }

    /// Sets [`connections`](Self::connections).
    #[must_use]
    pub fn connections(mut self, count: usize) -> Self {
        self.connections = count;
        self
    }

    /// Sets [`streams`](Self::streams).
    #[must_use]
    pub fn streams(mut self, count: usize) -> Self {
        self.streams = count;
        self
    }

    /// Sets [`attach_timeout`](Self::attach_timeout).
    #[must_use]
    pub fn attach_timeout(mut self, timeout: Duration) -> Self {
        self.attach_timeout = timeout;
        self
    }

    /// Sets [`reaper_stall_timeout`](Self::reaper_stall_timeout).
    #[must_use]
    pub fn reaper_stall_timeout(mut self, timeout: Duration) -> Self {
        self.reaper_stall_timeout = timeout;
        self
    }

    /// Sets [`apply_default_limits`](Self::apply_default_limits).
    #[must_use]
    pub fn apply_default_limits(mut self, apply: bool) -> Self {
        self.apply_default_limits = apply;
        self
    }

    /// Sets [`drain_timeout`](Self::drain_timeout).
    #[must_use]
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }
}
