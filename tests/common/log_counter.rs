//! A count of the errors that this process logs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

#[derive(Clone, Default)]
pub struct LogCounter {
    errors: Arc<AtomicU64>,
}

impl LogCounter {
    /// Installs a counter for all threads of this process. Works once per process.
    pub fn install() -> Self {
        let counter = Self::default();
        let subscriber = tracing_subscriber::registry().with(counter.clone());
        tracing::subscriber::set_global_default(subscriber).unwrap();
        counter
    }

    pub fn errors(&self) -> u64 {
        self.errors.load(Relaxed)
    }
}

impl<S: Subscriber> Layer<S> for LogCounter {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() == Level::ERROR {
            self.errors.fetch_add(1, Relaxed);
        }
    }
}
