use std::time::Duration;

/// What a server lets one client, or all of them together, take.
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
    /// The longest body of a request, in bytes; 1 MiB by default. Where a body means nothing, it
    /// is 1 KiB at most.
    pub body_bytes: usize,
    /// How long a client may take to send the head of a request, and stay idle between two of them;
    /// 10 s by default.
    pub head_timeout: Duration,
    /// How long a client may take to send a body; 10 s by default.
    pub body_timeout: Duration,
    /// How long an answer may take, beside the time that a request to stop a box gives that; 90 s by
    /// default, longer than any start, or end of a box whose time is over.
    pub request_timeout: Duration,
    /// How long a client may read nothing of an answer that waits for it before it is hung up on;
    /// 30 s by default. What the system buffers does not wait.
    pub write_timeout: Duration,
    /// Connections at one time to all Unix sockets together, and as many over TCP; more wait for
    /// their turn. Over TCP, when there are that many, the server closes the oldest connection
    /// whose client has not shown the token. Such a client gets one connection for one request, for
    /// no longer than `head_timeout` and `body_timeout` together. 512 by default, and never more
    /// than a quarter of the descriptors that the process may have, which leaves half of them to
    /// the shims.
    pub connections: usize,
    /// Readers of events at one time; more are refused. 256 by default.
    pub event_readers: usize,
    /// How long the reaper may not sweep before the server is not ready: 10 s by default, forty
    /// times what a runtime usually takes between two sweeps.
    pub reaper_stall_timeout: Duration,
    /// Whether a box is kept to 1 processor and 512 MiB where neither its request nor its image says
    /// anything; true by default. Where there are no
    /// [control groups](vmm_runtime::ControlGroup::check), what stands in for them also bounds what
    /// is only reserved, such as the stacks of threads: few programs expect that.
    pub apply_default_limits: bool,
    /// How long requests may take to be finished once the server is to end; 60 s by default.
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
            event_readers: 256,
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

    /// Sets [`event_readers`](Self::event_readers).
    #[must_use]
    pub fn event_readers(mut self, count: usize) -> Self {
        self.event_readers = count;
        self
    }

    /// Sets [`reaper_stall_timeout`](Self::reaper_stall_timeout).
    #[must_use]
    pub fn reaper_stall_timeout(mut self, silence: Duration) -> Self {
        self.reaper_stall_timeout = silence;
        self
    }

    /// Sets [`apply_default_limits`](Self::apply_default_limits).
    #[must_use]
    pub fn apply_default_limits(mut self, bounds: bool) -> Self {
        self.apply_default_limits = bounds;
        self
    }

    /// Sets [`drain_timeout`](Self::drain_timeout).
    #[must_use]
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }
}
