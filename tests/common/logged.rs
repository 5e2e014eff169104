//! Counts what a whole process logs, by level.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

#[derive(Clone, Default)]
pub struct Logged {
    errors: Arc<AtomicU64>,
    warnings: Arc<AtomicU64>,
}

impl Logged {
    /// From now on, for every thread of the process; once a process.
    pub fn everywhere() -> Self {
        let logged = Self::default();
        let subscriber = tracing_subscriber::registry().with(logged.clone());
        tracing::subscriber::set_global_default(subscriber).unwrap();
        logged
    }

    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }

    pub fn warnings(&self) -> u64 {
        self.warnings.load(Relaxed)
    }
}

impl<S: Subscriber> Layer<S> for Logged {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        match *event.metadata().level() {
            Level::ERROR => self.errors.fetch_add(1, Relaxed),
            Level::WARN => self.warnings.fetch_add(1, Relaxed),
            _ => 0,
        };
    }
}
